"""What a checkpoint of a scene's training holds, checked before anything is made of it."""

from __future__ import annotations

from typing import get_type_hints

import torch
from torch import Tensor

from splatopt.core.checkpoint import Checkpoint, DamagedCheckpointError, below, damage_in
from splatopt.core.checks import InputError
from splatopt.runs.checkpoint_content import OPTIMIZER, check_state_numbers, check_tensors
from splatopt.runs.folder import MetricSums
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.pose_refinement import POSES
from splatopt.scene.saved import saved_cloud
from splatopt.train.plan_memory import PLAN, read_memory

CLOUD = "cloud."
"""What the names of a scene's tensors begin with."""

DENSITY = "density."
"""What the names of a density strategy's tensors begin with."""

EXPOSURE = "exposure."
"""What the name of the photographs' colour maps begins with."""


def scene_of(checkpoint: Checkpoint) -> GaussianCloud:
    """Return the scene of a checkpoint, on its tensors; raises DamagedCheckpointError where it is none."""
    return saved_cloud(below(checkpoint.tensors, CLOUD), checkpoint.where)


def maps_of(checkpoint: Checkpoint) -> Tensor | None:
    """Return the colour maps of the views, (V, 3, 4), that a checkpoint holds; None where it holds none.

    Raises:
        DamagedCheckpointError: They are no maps that can be inverted; names the checkpoint.
    """
    maps = checkpoint.tensors.get(f"{EXPOSURE}maps")
    if maps is None:
        return None
    with damage_in(checkpoint.where):
        if maps.dtype != torch.float64 or maps.dim() != 3 or maps.shape[1:] != (3, 4):
            raise InputError(f"{EXPOSURE}maps must be (views, 3, 4) in float64, got {tuple(maps.shape)} {maps.dtype}")
        if not torch.isfinite(maps).all() or (torch.linalg.det(maps[:, :, :3]) == 0).any():
            raise InputError(f"{EXPOSURE}maps must hold finite maps that can be inverted")
    return maps.clone()


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
        checkpoint.fields.number("seconds", minimum=0)
    scene_of(checkpoint)


def check_training(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint holds all that a training run goes on from, the optimizer's own state aside.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    check_scene(checkpoint)
    check_tensors(checkpoint, (CLOUD, OPTIMIZER, DENSITY, EXPOSURE, POSES), ("sampler", "generator"))
    maps_of(checkpoint)
    order = checkpoint.tensors["sampler"]
    if order.dtype != torch.int64 or order.dim() != 1 or len(order.unique()) != len(order) or bool((order < 0).any()):
        raise DamagedCheckpointError(f"{checkpoint.where}: sampler must hold numbers of views, each once")
    numbers = checkpoint.fields
    with damage_in(numbers.where):
        if "stage" in numbers.values:
            numbers.count("stage")
        if PLAN in numbers.values:
            read_memory(numbers.values[PLAN], f"{numbers.where}: {PLAN}")
        if "used" in numbers.values:
            numbers.number("used", minimum=0)
        sums = numbers.object("sums")
        kinds = get_type_hints(MetricSums)
        if not {"loss", "psnr", "count"} <= set(sums.values) <= set(kinds):
            raise numbers.refusal("sums", f"the sums of {', '.join(kinds)}")
        for name in sums.values:
            (sums.count if kinds[name] is int else sums.any_number)(name)
        if "resets" in numbers.values:
            resets = numbers.object("resets")
            resets.count("total")
            resets.count("steps")
        check_state_numbers(numbers.object("optimizer"))
