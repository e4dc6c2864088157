"""Nothing is lost when numbers break down or the disk is full."""

from __future__ import annotations

import errno

import pytest
import torch

from splatopt.core import checkpoint as checkpoint_module
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.runs.events import Warned
from splatopt.runs.resumable import NonFiniteError
from splatopt.train.events import Stepped
from splatopt.train.loop import train
from splatopt.train.result import CheckpointError
from train.toys import Listener, ToyRenderer, lines

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
    assert "went back to the checkpoint of step 14, with a new order of views" in warning.message
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
        train(config, renderer=ToyRenderer(spoiling(17, 25, tensor="means", rows=2)))
    message = str(caught.value)
    # Call 18 is step 15 again, so call 25 is step 22.
    assert "the gradient of means is not finite in 2 of 40 rows at step 22" in message
    assert "step 17" in message
    assert "checkpoints" in message
    found, _ = latest_checkpoint(config.folder / "checkpoints")
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
            event.cloud.sh_rest[2:5, 14, 1] = float("inf")  # a band that is not rendered yet

    poison.done = False
    listener = Listener()
    result = train(settings(), [poison, listener], renderer=ToyRenderer())
    assert "the parameter sh_rest is not finite in 3 of 40 rows after step 14" in listener.of(Warned)[0].message
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
    assert (config.folder / "scene.ply").is_file()
    assert (config.folder / "eval.json").is_file()


def test_a_disk_that_recovers_is_forgiven(settings, disk):
    def recover(event) -> None:
        if isinstance(event, Stepped):
            disk.full = event.step < 20

    disk.full = True
    result = train(settings(), [recover], renderer=ToyRenderer())
    assert latest_checkpoint(result.folder / "checkpoints")[0].step == 40
