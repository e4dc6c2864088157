"""Whole runs at any number of threads and on each instruction set, and what a run says of its set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splatopt.cli import main
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.runs.events import Warned
from splatopt.train import loop as loop_module
from splatopt.train import trainer as trainer_module
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.machine import with_own_instructions
from splatopt.train.result import TrainResult
from splatopt.train.run import open_run
from train.toys import Listener, make_toy_capture

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")

STEPS = {"adam": 12, "sign-tr": 12, "tr2": 8, "block-gn": 8, "learned": 8, "lm": 3}
"""Optimizers with native passes of their own, or whose steps are the renderer's products."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A capture with more Gaussians, tiles and rows than one task of any pass takes."""
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "large", width=112, height=104, points=1700)


BEFORE_ROUNDING_DECIDES = {**STEPS, "learned": 1, "lm": 1}
"""Of these one step: after it the turns of round Gaussians, whose gradient is rounding, and lm's choice between taking
and leaving a step make runs differ for good."""


def run(capture: Path, out: Path, optimizer: str, *words: str, steps: dict[str, int] = STEPS) -> Path:
    words = ("--optimizer", optimizer, "--steps", str(steps[optimizer]), "--sh-interval", "3", *words)
    assert main(["train", str(capture), *words, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", STEPS)
def test_a_run_has_the_same_bits_at_any_number_of_threads(large, tmp_path, optimizer):
    one = run(large, tmp_path / "1", optimizer, "--threads", "1")
    scores = json.loads((one / "eval.json").read_text())
    assert scores["psnr"] > scores["before"]["psnr"]
    for threads in ("2", "3", "8"):
        other = run(large, tmp_path / threads, optimizer, "--threads", threads)
        assert (one / "scene.ply").read_bytes() == (other / "scene.ply").read_bytes(), threads
        again = json.loads((other / "eval.json").read_text())
        assert (again["views"], again["before"]) == (scores["views"], scores["before"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", STEPS)
def test_a_run_is_the_same_on_every_set_but_for_rounding(large, tmp_path, optimizer):
    scores = {}
    for isa in native.instruction_sets():
        out = run(large, tmp_path / isa, optimizer, "--instructions", isa, steps=BEFORE_ROUNDING_DECIDES)
        config = json.loads((out / "config.json").read_text())
        assert config["instructions"] == isa
        scores[isa] = json.loads((out / "eval.json").read_text())
    first = scores[native.instruction_sets()[0]]
    for isa, found in scores.items():
        # Adam's first steps are the gradient's sign, which rounding decides where a gradient is next to nothing.
        bound = {"learned": 0.1, "lm": 1e-3}.get(optimizer, 0.02)
        assert found["psnr"] == pytest.approx(first["psnr"], abs=bound), isa
        assert found["before"]["psnr"] == pytest.approx(first["before"]["psnr"], abs=1e-4), isa
    if {"avx512", "avx2"} <= scores.keys():
        assert scores["avx512"]["before"] == scores["avx2"]["before"], "scores of one scene"


class Watched(trainer_module.Trainer):
    """A run that tells which set its optimizer and its renderer take."""

    taken: set[tuple[str, str]]

    def _make_optimizer(self, name, generator):
        optimizer = super()._make_optimizer(name, generator)
        Watched.taken.add((optimizer.instructions, self.renderer.isa))
        return optimizer


def trained(capture_folder: Path, out: Path, monkeypatch, *listeners, **settings) -> TrainResult:
    Watched.taken = set()
    monkeypatch.setattr(loop_module, "Trainer", Watched)
    return train(TrainConfig.of(str(capture_folder), out=out, **({"steps": 2} | settings)), listeners)


def test_the_set_reaches_renderer_and_optimizer_and_config_json(capture_folder, tmp_path, monkeypatch):
    result = trained(capture_folder, tmp_path / "run", monkeypatch, instructions="portable")
    assert Watched.taken == {("portable", "portable")}
    assert json.loads((result.folder / "config.json").read_text())["instructions"] == "portable"
    fastest = native.instruction_sets()[0]
    result = trained(capture_folder, tmp_path / "other", monkeypatch)
    assert Watched.taken == {(fastest, fastest)}
    assert json.loads((result.folder / "config.json").read_text())["instructions"] == fastest


def test_a_run_goes_on_with_its_set_or_with_another_that_is_asked_for(capture_folder, tmp_path, monkeypatch):
    out, fastest = tmp_path / "run", native.instruction_sets()[0]
    trained(capture_folder, out, monkeypatch, instructions="portable")
    trained(capture_folder, out, monkeypatch, resume=True, steps=3)
    assert Watched.taken == {("portable", "portable")}
    trained(capture_folder, out, monkeypatch, resume=True, steps=4, instructions=fastest)
    assert Watched.taken == {(fastest, fastest)}


def test_a_run_whose_set_is_not_here_goes_on_with_another_and_says_so(capture_folder, tmp_path, monkeypatch):
    out, listener = tmp_path / "run", Listener()
    trained(capture_folder, out, monkeypatch, instructions="portable")
    config = json.loads((out / "config.json").read_text())
    missing = "avx512"
    (out / "config.json").write_text(json.dumps(config | {"instructions": missing}))
    here = tuple(isa for isa in native.instruction_sets() if isa != missing)
    monkeypatch.setattr(native, "instruction_sets", lambda: here)
    fastest = native.instruction_sets()[0]
    said = f"the run was with {missing} instructions, which are not here; it goes on with {fastest}, up to rounding"
    trained(capture_folder, out, monkeypatch, listener, resume=True, steps=3)
    assert said in [event.message for event in listener.of(Warned)]
    assert Watched.taken == {(fastest, fastest)}
    (out / "config.json").write_text(json.dumps(config | {"instructions": missing}))
    opened = open_run(out)
    assert said in opened.warnings
    assert opened.config.processes.instructions == fastest
    with pytest.raises(InputError, match="--instructions avx512 cannot be used: this machine has"):
        trained(capture_folder, out, monkeypatch, resume=True, steps=4, instructions=missing)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--instructions", "neon"], "--instructions must be auto, avx512, avx2, portable, got 'neon'"),
        (["--instructions", "avx2"], "--instructions avx2 cannot be used: this machine has portable; leave"),
    ],
)
def test_a_set_that_cannot_be_taken_is_one_sentence(capture_folder, tmp_path, monkeypatch, words, said, capsys):
    monkeypatch.setattr(native, "instruction_sets", lambda: ("portable",))
    out = tmp_path / "run"
    assert main(["train", str(capture_folder), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not out.exists()


def test_on_a_gpu_the_set_is_left_open_and_one_that_was_given_is_said_to_be_unread():
    config = TrainConfig.of("capture", device="cuda:0")
    assert with_own_instructions(config) == (config, ())
    found, warnings = with_own_instructions(TrainConfig.of("capture", device="cuda:0", instructions="avx2"))
    assert found == config
    assert warnings == ("--instructions avx2 is not read by a run on cuda:0, which takes no native passes",)


def test_doctor_lists_the_sets(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"--instructions takes one of: {', '.join(native.instruction_sets())}" in shown


def test_the_learned_step_and_an_averaged_one_take_the_set(capture_folder, tmp_path, monkeypatch):
    taken, step, workers = [], native.learned_step, native.workers
    settings = {"init": "random", "random_points": 50, "instructions": "portable"}
    monkeypatch.setattr(native, "learned_step", lambda made, *args: taken.append(made.isa) or step(made, *args))
    trained(capture_folder, tmp_path / "learned", monkeypatch, optimizer="learned", **settings)
    assert taken == ["portable", "portable"]
    taken.clear()
    monkeypatch.setattr(native, "workers", lambda threads=0, isa="auto": taken.append(isa) or workers(threads, isa))
    trained(capture_folder, tmp_path / "tr2", monkeypatch, optimizer="tr2", average=2.0, **settings)
    assert set(taken) == {"portable"}
