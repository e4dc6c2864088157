"""The program that is to be run on a GPU runs, and says where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu
from benchmarks.measurement import Measurement


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_rehearsal_measures_everything(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--rehearse"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    shown = capsys.readouterr().out
    for name in (
        "forward", "forward_and_backward", "forward_of_floor", "both_of_floor", "adam_step", "adam_step_of_floor",
        "adam_step_peak", "jvp", "exact_diagonal", "tr2_step", "learned_tiny", "learned_small", "learned_base",
    ):  # fmt: skip
        assert f"24x20.{name} " in shown
    assert "not measured" not in shown
    assert ended.value.code == 0


def test_a_question_that_fails_is_listed_and_the_next_is_asked(capsys):
    def fails():
        yield Measurement("before", 1.0, "ms", "lower")
        raise RuntimeError("CUDA error:\nout of memory")

    findings = gpu.Findings()
    findings.ask(("first", fails))
    findings.ask(("second", lambda: iter([Measurement("after", 2.0, "ms", "lower", 1.5)])))
    findings.ask(("third", fails), reserve=2 * gpu.LIMIT)
    assert [entry.name for entry in findings.measured] == ["before", "after"]
    assert findings.missing == [("first", "RuntimeError: out of memory"), ("third", "no time was left")]
    gpu.show(findings, "title")
    shown = capsys.readouterr().out
    assert "1.5 missed" in shown
    assert "not measured: first: RuntimeError: out of memory" in shown


def test_a_program_beside_is_ended_when_its_time_is_up():
    quick = gpu.Compiling([sys.executable, "-c", "print('done'); raise SystemExit(3)"])
    endless = gpu.Compiling([sys.executable, "-c", "import time; time.sleep(600)"])
    assert quick.end(60.0) == (3, "done")
    assert endless.end(0.0)[0] is None


def test_only_what_compiled_is_compared_with(monkeypatch, tmp_path):
    commands = []

    class Program:
        def __init__(self, command: list[str]) -> None:
            commands.append(command)

        def end(self, seconds: float) -> tuple[int | None, str]:
            return (0, "") if "pytest" in commands[0] else (1, "nvcc is not installed")

    monkeypatch.setattr(gpu, "Compiling", Program)
    monkeypatch.setattr(gpu, "is_installed", lambda name: False)
    findings = gpu.Findings()
    assert gpu.compile_all(tmp_path, findings) == (False, ())
    assert findings.measured[0].reached
    assert dict(findings.missing)["gsplat"].startswith("it is not installed")
    assert dict(findings.missing)["fox_960"] == f"{tmp_path / 'fox_960'} is not there"
    assert "gpu and not slow" in commands[0]
