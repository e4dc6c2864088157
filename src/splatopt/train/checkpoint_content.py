"""What a checkpoint holds, checked before anything is made of it: names, types, shapes, and finite numbers."""

from __future__ import annotations

import torch

from splatopt.core.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    below,
    check_generator,
    check_tensor_names,
    damage_in,
)
from splatopt.core.checks import InputError, quoted
from splatopt.core.optimizer import Optimizer, OptimizerState
from splatopt.core.typed import Fields
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.saved import saved_cloud

CLOUD, FIELD, OPTIMIZER = "cloud.", "field.", "optimizer."
"""What the names of a checkpoint's tensors begin with."""

_LARGEST_COUNT = 2**53


def scene_of(checkpoint: Checkpoint) -> GaussianCloud:
    """Return the scene of a checkpoint, on its tensors; raises DamagedCheckpointError where it is none."""
    return saved_cloud(below(checkpoint.tensors, CLOUD), checkpoint.where)


def check_degree(cloud: GaussianCloud, degree: int, where: str) -> None:
    """Refuse a scene whose colour has other bands than its run was told; one of them was changed.

    Args:
        cloud: The scene.
        degree: Spherical-harmonics degree that the run's configuration names.
        where: The scene's file, for the message.
    """
    if cloud.sh_degree != degree:
        raise InputError(
            f"{where}: the scene holds colours of degree {cloud.sh_degree}, and the run's config.json says {degree}; "
            "one of them was changed since it was written"
        )


def check_scene(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint holds what eval, render, export and report take from it.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    with damage_in(checkpoint.fields.where):
        checkpoint.fields.number("seconds", least=0)
    scene_of(checkpoint)


def check_training(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint holds all that a training run goes on from, the optimizer's own state aside.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    check_scene(checkpoint)
    _check_others(checkpoint, (CLOUD, OPTIMIZER), ("sampler", "generator"))
    order = checkpoint.tensors["sampler"]
    if order.dtype != torch.int64 or order.dim() != 1 or len(order.unique()) != len(order) or bool((order < 0).any()):
        raise DamagedCheckpointError(f"{checkpoint.where}: sampler must hold numbers of views, each once")
    numbers = checkpoint.fields
    with damage_in(numbers.where):
        if "stage" in numbers.values:
            numbers.count("stage")
        sums = numbers.object("sums")
        if set(sums.values) != {"loss", "psnr", "count"}:
            raise numbers.refusal("sums", "loss, psnr and count")
        sums.any_number("loss")
        sums.any_number("psnr")
        sums.count("count")
        _check_state_numbers(numbers.object("optimizer"))


def check_fit(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint holds all that a fit goes on from; whether it fits the field is seen later.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    _check_others(checkpoint, (FIELD, OPTIMIZER), ("generator",))
    _check_finite(checkpoint, FIELD)
    numbers = checkpoint.fields
    with damage_in(numbers.where):
        numbers.number("seconds", least=0)
        sampler = numbers.object("sampler")
        size, batch = sampler.count("size"), sampler.count("batch")
        sampler.count("seed")
        sampler.count("position", most=size + batch)
        loss = numbers.entries("loss")
        if len(loss) != 2:
            raise numbers.refusal("loss", "a sum and a count")
        mean = Fields({"sum": loss[0], "count": loss[1]}, f"{numbers.where}: loss")
        mean.any_number("sum")
        mean.count("count")
        _check_state_numbers(numbers.object("optimizer"))


def _check_others(checkpoint: Checkpoint, groups: tuple[str, ...], single: tuple[str, ...]) -> None:
    """Make sure that every tensor is of one of ``groups`` or one of ``single``, and that these are there."""
    others = [name for name in checkpoint.tensors if not name.startswith(groups)]
    check_tensor_names(others, single, checkpoint.where)
    check_generator(checkpoint.tensors["generator"], f"{checkpoint.where}: generator")


def _check_finite(checkpoint: Checkpoint, prefix: str) -> None:
    for name, value in checkpoint.tensors.items():
        if name.startswith(prefix) and not (value.is_floating_point() and bool(torch.isfinite(value).all())):
            raise DamagedCheckpointError(f"{checkpoint.where}: {quoted(name)} must hold finite numbers")


def _check_state_numbers(state: Fields) -> None:
    for name, value in state.values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise state.refusal(name, "a number")


def load_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Have an optimizer at its start go on from a checkpoint whose form was checked.

    Its numbers must be of the kinds that the optimizer itself gives: what counts is a whole number of at least 0.

    Args:
        optimizer: As it is made.
        checkpoint: Written by one of the same kind.

    Raises:
        DamagedCheckpointError: The state does not fit the optimizer; names the checkpoint.
    """
    state = OptimizerState(below(checkpoint.tensors, OPTIMIZER), checkpoint.scalars["optimizer"])
    fresh, numbers = optimizer.state(), checkpoint.fields.object("optimizer")
    with damage_in(numbers.where):
        for name, number in fresh.scalars.items():
            if name in numbers and isinstance(number, int):
                numbers.count(name, most=_LARGEST_COUNT)
    with damage_in(checkpoint.where):
        for name, value in state.tensors.items():
            like = fresh.tensors.get(name)
            if like is not None and like.is_floating_point() and (value.shape, value.dtype) != (like.shape, like.dtype):
                wanted, came = (f"{tuple(one.shape)} {one.dtype}" for one in (like, value))
                raise InputError(f"{quoted(OPTIMIZER + name)} must be {wanted}, got {came}")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"{quoted(OPTIMIZER + name)} must hold finite numbers")
        optimizer.load_state(state)
