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
    gpu.main()
    shown = capsys.readouterr().out
    for name in ("forward", "forward_and_backward", "jvp", "exact_diagonal", "adam_step", "tr2_step"):
        assert f"24x20.{name} " in shown
