"""The loop: what it leaves, that it goes on bit-exactly, and that nothing is lost when something breaks."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from splatopt.core import optimizer as optimizer_module
from splatopt.core.checks import InputError
from splatopt.core.optimizer import register
from splatopt.data import load_capture
from splatopt.optim import Adam, AdamOptions
from splatopt.raster.types import Rendering
from splatopt.scene.ply import load_ply
from splatopt.train import checkpoint as checkpoint_module
from splatopt.train import loop as loop_module
from splatopt.train.checkpoint import latest_checkpoint
from splatopt.train.config import TrainConfig
from splatopt.train.events import Ended, Evaluated, Saved, Started, Stepped, Warned
from splatopt.train.loop import CheckpointError, InterruptedRunError, NonFiniteError, TrainResult, train
from train.toys import ToyRenderer, make_toy_capture


@pytest.fixture(scope="module")
def capture_folder(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


@pytest.fixture
def settings(capture_folder, tmp_path):
    """Settings of a short run; several can be made from them."""

    def make(name: str = "run", **changes) -> TrainConfig:
        base = {"steps": 40, "out": tmp_path / name, "sh_interval": 10, "log_every": 3, "checkpoint_every": 7}
        return TrainConfig(capture=str(capture_folder), **(base | changes))

    return make


class Listener:
    """Keeps all events; stops the run after a step when told to."""

    def __init__(self, stop_at: int | None = None, by: int | None = None) -> None:
        self.events = []
        self.stop_at, self.by = stop_at, by

    def __call__(self, event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.stop_at:
            if self.by is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.by)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lasting(folder: Path) -> list[dict]:
    """Lines without what differs between two runs of one seed: the time and the memory."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "memory_mb")} for line in lines(folder)]


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
    second = train(settings("second", steps=2, start=str(first.folder / "scene.ply")), renderer=renderer)
    assert renderer.degrees == [3, 3]
    assert second.before.psnr == pytest.approx(first.after.psnr, abs=1e-4)


def test_a_random_start_depends_on_the_seed_alone(settings):
    runs = [
        train(settings(f"{i}", steps=1, start="random", random_points=11, seed=seed), renderer=ToyRenderer())
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

    evaluate = loop_module.evaluate

    def slow(*arguments):
        time.sleep(0.3)
        return evaluate(*arguments)

    monkeypatch.setattr(loop_module, "evaluate", slow)
    result = train(settings(steps=4, eval_every=2), renderer=ToyRenderer())
    assert result.seconds < 0.3


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("stop_at", [20, 21, 24])
@pytest.mark.parametrize("view_batch", [1, 3])
def test_resuming_is_bit_exact(settings, stop_at, view_batch):
    straight = train(settings("straight", view_batch=view_batch), renderer=ToyRenderer())
    with pytest.raises(InterruptedRunError, match=f"stopped at step {stop_at} of 40.*--resume"):
        train(settings("parts", view_batch=view_batch), [Listener(stop_at)], renderer=ToyRenderer())
    listener = Listener()
    resumed = train(settings("parts", view_batch=view_batch, resume=True), [listener], renderer=ToyRenderer())
    assert listener.of(Started)[0].step == stop_at
    assert resumed.before == straight.before
    assert resumed.seconds > 0
    assert_same(straight, resumed)


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
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 27, "lo')
    assert lines_until_broken(config.out)[-1] == 24
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
    assert latest_checkpoint(config.out / "checkpoints")[0].step == 17
    assert signal.getsignal(number) is handler


def test_a_second_interrupt_acts_at_once_and_keeps_the_checkpoint_before(settings):
    def press_twice(call, parts):
        if call == 17:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    config = settings()
    with pytest.raises(InterruptedRunError, match="step-000014 is kept"):
        train(config, renderer=ToyRenderer(press_twice))
    assert latest_checkpoint(config.out / "checkpoints")[0].step == 14


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
    newest = config.out / "checkpoints" / "step-000020" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    listener = Listener()
    resumed = train(settings("parts", resume=True), [listener], renderer=ToyRenderer())
    assert listener.of(Started)[0].step == 14
    assert "step-000020" in listener.of(Warned)[0].message
    assert_same(straight, resumed)


def test_resuming_with_the_capture_of_another_scene_is_refused(settings, tmp_path):
    config = settings(steps=1)
    train(config, renderer=ToyRenderer())
    other = make_toy_capture(tmp_path / "other", views=3)
    asked = TrainConfig(capture=str(other), out=config.out, resume=True, steps=2)
    with pytest.raises(InputError, match="more training views"):
        train(asked, renderer=ToyRenderer())


# ---------------------------------------------------------------------- numbers that break down


def spoiling(*calls: int, tensor: str = "quats", rows: int = 3):
    def spoil(call, parts):
        if call in calls:
            parts[tensor][:rows] = float("nan")

    return spoil


def test_a_broken_gradient_rolls_back_once(settings):
    listener = Listener()
    renderer = ToyRenderer(spoiling(17))
    result = train(settings(), [listener], renderer=renderer)
    (warning,) = listener.of(Warned)
    assert "the gradient of quats is not finite in 3 of 40 rows at step 17 (view " in warning.message
    assert renderer.views[16] in warning.message
    assert "went back to the checkpoint of step 14" in warning.message
    assert renderer.calls == 17 + 26
    assert [line["step"] for line in lines(result.folder)] == [*range(3, 40, 3), 40]
    result.cloud.check_finite("result")


def test_after_rolling_back_the_views_come_in_another_order(settings):
    renderer = ToyRenderer(spoiling(17))
    train(settings(), renderer=renderer)
    assert renderer.views[14:17] != renderer.views[17:20]


def test_a_second_broken_gradient_stops_with_the_facts(settings):
    config = settings()
    with pytest.raises(NonFiniteError) as caught:
        train(config, renderer=ToyRenderer(spoiling(17, 25, tensor="means", rows=1)))
    message = str(caught.value)
    # Call 18 is step 15 again, so call 25 is step 22.
    assert "the gradient of means is not finite in 1 of 40 rows at step 22" in message
    assert "step 17" in message
    assert "checkpoints" in message
    found, _ = latest_checkpoint(config.out / "checkpoints")
    assert found.step == 21
    for name, value in found.tensors.items():
        if value.is_floating_point():
            assert torch.isfinite(value).all(), name


def test_a_broken_loss_is_named(settings):
    class Lossless(ToyRenderer):
        def accumulate_gradient(self, *arguments, **named):
            from dataclasses import replace

            result = super().accumulate_gradient(*arguments, **named)
            return replace(result, loss=float("inf")) if self.calls == 5 else result

    listener = Listener()
    train(settings(steps=8), [listener], renderer=Lossless())
    assert "the loss is inf at step 5" in listener.of(Warned)[0].message


def test_a_broken_parameter_is_never_saved(settings):
    def poison(event) -> None:
        if isinstance(event, Stepped) and event.step == 13 and not poison.done:
            poison.done = True
            event.cloud.sh_rest[2, 14, 1] = float("inf")  # a band that is not rendered yet

    poison.done = False
    listener = Listener()
    result = train(settings(), [poison, listener], renderer=ToyRenderer())
    assert "the parameter sh_rest is not finite in 1 of 40 rows after step 14" in listener.of(Warned)[0].message
    result.cloud.check_finite("result")


# ---------------------------------------------------------------------- a full disk


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes checkpoints only while ``disk.full`` is false."""

    class Disk:
        full = False

    write = checkpoint_module.write_durably

    def write_if_there_is_room(path, data):
        if Disk.full and path.name == "tensors.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint_module, "write_durably", write_if_there_is_room)
    return Disk


def test_a_full_disk_warns_and_keeps_the_old_checkpoint(settings, disk):
    def fill(event) -> None:
        if isinstance(event, Stepped):
            disk.full = event.step >= 10

    listener = Listener()
    result = train(settings(), [fill, listener], renderer=ToyRenderer())
    messages = [event.message for event in listener.of(Warned)]
    assert len(messages) == 5
    assert messages[0] == (
        "the checkpoint of step 14 could not be written (No space left on device); "
        "training goes on, and step-000007 is kept"
    )
    assert result.steps == 40
    assert latest_checkpoint(result.folder / "checkpoints")[0].step == 7


def test_a_disk_that_never_had_room_is_an_error_at_the_end(settings, disk):
    disk.full = True
    config = settings(steps=8)
    with pytest.raises(CheckpointError, match=r"no checkpoint could be written.*No space left on device"):
        train(config, renderer=ToyRenderer())
    assert (config.out / "scene.ply").is_file()
    assert (config.out / "eval.json").is_file()


def test_a_disk_that_recovers_is_forgiven(settings, disk):
    def recover(event) -> None:
        if isinstance(event, Stepped):
            disk.full = event.step < 20

    disk.full = True
    result = train(settings(), [recover], renderer=ToyRenderer())
    assert latest_checkpoint(result.folder / "checkpoints")[0].step == 40


# ---------------------------------------------------------------------- folders


def test_a_run_is_never_overwritten(settings):
    config = settings(steps=2)
    train(config, renderer=ToyRenderer())
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train(config, renderer=ToyRenderer())
    assert (config.out / "metrics.jsonl").read_bytes() == before


def test_nothing_is_written_when_the_start_cannot_be_used(settings, tmp_path):
    config = settings(start=str(tmp_path / "absent.ply"))
    with pytest.raises(InputError, match=r"absent\.ply"):
        train(config, renderer=ToyRenderer())
    assert not config.out.exists()


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
        del optimizer_module._REGISTRY["counting"]
    assert set(told) == {3}


def test_a_render_that_equals_its_photograph_has_a_number(settings):
    class Perfect(ToyRenderer):
        def render(self, gaussians, camera, options):
            picture = images[camera.name].float() / 255
            return Rendering(picture, picture[..., 0], picture[..., 0])

    capture = load_capture(Path(settings().capture))
    images = {camera.name: capture.images[view] for view, camera in enumerate(capture.cameras)}
    result = train(settings(), renderer=Perfect())
    assert result.after.psnr == 100.0
    assert json.loads((result.folder / "eval.json").read_text())["psnr"] == 100.0
