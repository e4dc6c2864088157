"""The loop: what it leaves, that it goes on bit-exactly, and that nothing is lost when something breaks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.optimizer import OPTIMIZERS, register
from splatopt.data import load_capture
from splatopt.optim import Adam, AdamOptions
from splatopt.raster.types import Rendering
from splatopt.runs.events import Ended, Saved, Warned
from splatopt.runs.resumable import InterruptedRunError
from splatopt.scene.ply import load_ply
from splatopt.train import trainer as trainer_module
from splatopt.train.config import TrainConfig
from splatopt.train.events import Evaluated, Started, Stepped
from splatopt.train.loop import train
from splatopt.train.result import TrainResult
from train.toys import Listener, ToyRenderer, lasting, lines, make_toy_capture


def assert_same(first: TrainResult, second: TrainResult) -> None:
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name
    a, _ = latest_checkpoint(first.folder / "checkpoints")
    b, _ = latest_checkpoint(second.folder / "checkpoints")
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name]), name
    assert a.scalars["optimizer"] == b.scalars["optimizer"]
    assert lasting(first.folder) == lasting(second.folder)


# ---------------------------------------------------------------------- a run from end to end


def test_a_run_leaves_its_folder(settings):
    listener = Listener()
    result = train(settings(eval_every=20), [listener], renderer=ToyRenderer())
    folder = result.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "eval.json",
        "metrics.jsonl",
        "scene.ply",
    ]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000035", "step-000040"]
    written = lines(folder)
    assert [line["step"] for line in written] == [*range(3, 20, 3), 20, *range(21, 40, 3), 40]
    for line in written:
        assert {"step", "seconds", "loss", "psnr", "gaussians", "memory_mb"} <= line.keys()
        assert ("test_psnr" in line) == (line["step"] == 20)
        assert line["gaussians"] == 40
        assert line["memory_mb"] > 10
    assert [line["seconds"] for line in written] == sorted(line["seconds"] for line in written)
    assert written[-1]["loss"] < written[0]["loss"]
    scene = load_ply(folder / "scene.ply")
    assert torch.equal(scene.means, result.cloud.means)
    config = json.loads((folder / "config.json").read_text())
    assert config["version"]
    assert config["seed"] == 0
    assert config["optimizer_options"]["means_rate"] == 1.6e-4
    assert len(listener.of(Started)) == len(listener.of(Ended)) == 1
    assert [event.step for event in listener.of(Stepped)] == list(range(1, 41))
    assert [event.step for event in listener.of(Evaluated)] == [0, 20, 40]
    assert [event.step for event in listener.of(Saved)] == [0, 7, 14, 21, 28, 35, 40]


def test_the_evaluation_is_recorded_before_and_after(settings):
    result = train(settings(), renderer=ToyRenderer())
    record = json.loads((result.folder / "eval.json").read_text())
    assert record["split"] == "every-8th-test"
    assert record["subset"] == "test"
    assert record["steps"] == 40
    assert record["seconds"] == result.seconds
    assert record["gaussians"] == 40
    assert "clamped to [0, 1]" in record["protocol"]
    assert len(record["views"]) == 2
    assert record["psnr"] == pytest.approx(sum(view["psnr"] for view in record["views"]) / 2)
    assert record["psnr"] == result.after.psnr > result.before.psnr == record["before"]["psnr"]
    assert record["ssim"] == result.after.ssim


def test_lines_hold_means_since_the_last(settings):
    listener = Listener()
    result = train(settings(steps=7), [listener], renderer=ToyRenderer())
    losses = [event.loss for event in listener.of(Stepped)]
    assert [line["loss"] for line in lines(result.folder)] == pytest.approx(
        [sum(losses[0:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    )


def test_the_degree_rises_by_the_interval(settings):
    renderer = ToyRenderer()
    result = train(settings(), renderer=renderer)
    assert renderer.degrees == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    assert result.cloud.sh_rest.abs().amax(dim=(0, 2)).count_nonzero() == 15


def test_a_scene_file_as_start_keeps_all_its_bands(settings):
    first = train(settings(steps=3), renderer=ToyRenderer())
    renderer = ToyRenderer()
    second = train(settings("second", steps=2, init=str(first.folder / "scene.ply")), renderer=renderer)
    assert renderer.degrees == [3, 3]
    assert second.before.psnr == pytest.approx(first.after.psnr, abs=1e-4)


def test_a_random_start_depends_on_the_seed_alone(settings):
    runs = [
        train(settings(f"{i}", steps=1, init="random", random_points=11, seed=seed), renderer=ToyRenderer())
        for i, seed in enumerate((5, 5, 6))
    ]
    assert len(runs[0].cloud) == 11
    assert torch.equal(runs[0].cloud.means, runs[1].cloud.means)
    assert not torch.equal(runs[0].cloud.means, runs[2].cloud.means)


def test_several_views_a_step(settings):
    renderer = ToyRenderer()
    train(settings(steps=2, view_batch=4), renderer=renderer)
    assert renderer.calls == 8
    assert len(set(renderer.views)) == 8


def test_seconds_leave_evaluation_out(settings, monkeypatch):
    import time

    evaluate = trainer_module.evaluate

    def slow(*arguments):
        time.sleep(0.3)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer_module, "evaluate", slow)
    result = train(settings(steps=4, eval_every=2), renderer=ToyRenderer())
    assert result.seconds < 0.3


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("view_batch", [1, 3])
def test_resuming_is_bit_exact(settings, view_batch):
    straight = train(settings("straight", view_batch=view_batch), renderer=ToyRenderer())
    for stop_at in (20, 21, 24):
        parts = f"parts-{stop_at}"
        with pytest.raises(InterruptedRunError, match=f"stopped at step {stop_at} of 40.*--resume"):
            train(settings(parts, view_batch=view_batch), [Listener(stop_at)], renderer=ToyRenderer())
        listener = Listener()
        resumed = train(settings(parts, view_batch=view_batch, resume=True), [listener], renderer=ToyRenderer())
        assert listener.of(Started)[0].step == stop_at
        assert resumed.before == straight.before
        assert resumed.seconds > 0
        assert_same(straight, resumed)


def test_a_run_can_leave_the_average_of_its_iterates_and_resume(settings):
    plain = train(settings("plain"), renderer=ToyRenderer())
    straight = train(settings("straight", average=4.0), renderer=ToyRenderer())
    with pytest.raises(InterruptedRunError):
        train(settings("parts", average=4.0), [Listener(17)], renderer=ToyRenderer())
    assert_same(straight, train(settings("parts", average=4.0, resume=True), renderer=ToyRenderer()))
    kept, last = (latest_checkpoint(one.folder / "checkpoints")[0].tensors for one in (straight, plain))
    # The steps themselves are the same: the last iterate is that of a run without an average.
    assert torch.equal(kept["optimizer.average.means"], last["cloud.means"])
    assert not torch.equal(straight.cloud.means, plain.cloud.means)


def test_a_kill_loses_only_what_followed_the_checkpoint(settings):
    """A kill leaves the folder as it is: lines of lost steps, perhaps half a line."""
    straight = train(settings("straight"), renderer=ToyRenderer())

    class KilledError(Exception):
        pass

    def kill(event) -> None:
        if isinstance(event, Stepped) and event.step == 26:
            raise KilledError

    config = settings("killed")
    with pytest.raises(KilledError):
        train(config, [kill], renderer=ToyRenderer())
    with (config.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 27, "lo')
    assert lines_until_broken(config.folder)[-1] == 24
    listener = Listener()
    resumed = train(settings("killed", resume=True), [listener], renderer=ToyRenderer())
    assert listener.of(Started)[0].step == 21
    assert_same(straight, resumed)


def lines_until_broken(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(settings, number):
    config = settings()
    handler = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="step-000017 is kept"):
        train(config, [Listener(17, by=number)], renderer=ToyRenderer())
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 17
    assert signal.getsignal(number) is handler


def test_a_second_interrupt_acts_at_once_and_keeps_the_checkpoint_before(settings):
    def press_twice(call, parts):
        if call == 17:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    config = settings()
    with pytest.raises(InterruptedRunError, match="step-000014 is kept"):
        train(config, renderer=ToyRenderer(press_twice))
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 14


def test_a_finished_run_resumes_to_more_steps(settings):
    train(settings(steps=10), renderer=ToyRenderer())
    listener = Listener()
    result = train(settings(steps=15, resume=True), [listener], renderer=ToyRenderer())
    assert [event.step for event in listener.of(Stepped)] == [11, 12, 13, 14, 15]
    assert result.steps == 15
    assert json.loads((result.folder / "config.json").read_text())["steps"] == 15


def test_a_damaged_checkpoint_is_passed_over(settings):
    straight = train(settings("straight"), renderer=ToyRenderer())
    config = settings("parts")
    with pytest.raises(InterruptedRunError):
        train(config, [Listener(20)], renderer=ToyRenderer())
    newest = max((config.folder / "checkpoints").glob("step-*")) / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    listener = Listener()
    resumed = train(settings("parts", resume=True), [listener], renderer=ToyRenderer())
    assert listener.of(Started)[0].step == 14
    assert newest.parent.name in listener.of(Warned)[0].message
    assert_same(straight, resumed)


def test_resuming_with_the_capture_of_another_scene_is_refused(settings, tmp_path):
    config = settings(steps=1)
    train(config, renderer=ToyRenderer())
    other = make_toy_capture(tmp_path / "other", views=3)
    asked = TrainConfig.of(str(other), out=config.folder, resume=True, steps=2)
    with pytest.raises(InputError, match="has 3 views of 24x16, the run was trained on 10 views of 24x16"):
        train(asked, renderer=ToyRenderer())


# ---------------------------------------------------------------------- folders


def test_a_run_is_never_overwritten(settings):
    config = settings(steps=2)
    train(config, renderer=ToyRenderer())
    before = (config.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train(config, renderer=ToyRenderer())
    assert (config.folder / "metrics.jsonl").read_bytes() == before


def test_nothing_is_written_when_the_start_cannot_be_used(settings, tmp_path):
    config = settings(init=str(tmp_path / "absent.ply"))
    with pytest.raises(InputError, match=r"absent\.ply"):
        train(config, renderer=ToyRenderer())
    assert not config.folder.exists()


def test_the_optimizer_is_told_how_many_threads_it_may_take(settings):
    told = []

    class Counting(Adam):
        def step(self, batch, progress):
            told.append(self.threads)
            return super().step(batch, progress)

    register("counting", Counting, AdamOptions)
    try:
        train(settings(optimizer="counting", threads=3), renderer=ToyRenderer())
    finally:
        OPTIMIZERS.forget("counting")
    assert set(told) == {3}


def test_a_render_that_equals_its_photograph_has_a_number(settings):
    class Perfect(ToyRenderer):
        def render(self, gaussians, camera, options):
            picture = images[camera.name].float() / 255
            return Rendering(picture, picture[..., 0], picture[..., 0])

    capture = load_capture(Path(settings().data.capture))
    images = {camera.name: capture.images[view] for view, camera in enumerate(capture.cameras)}
    result = train(settings(), renderer=Perfect())
    assert result.after.psnr == 100.0
    assert json.loads((result.folder / "eval.json").read_text())["psnr"] == 100.0
