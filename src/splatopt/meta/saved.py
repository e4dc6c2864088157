"""What checkpoints of meta-training hold, checked before anything is made of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from splatopt.core.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    below,
    check_generator,
    check_like,
    check_tensor_names,
    damage_in,
)
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.core.typed import Fields
from splatopt.meta.inner import LOSS_DECAYS, InnerState
from splatopt.meta.network import NetworkOptions
from splatopt.meta.tasks import cached_capture
from splatopt.scene.saved import saved_cloud

NETWORK, AVERAGE, ADAMW = "network.", "average.", "adamw."
"""What the names of the network's tensors begin with."""

CURRENT, BUFFER = "current.", "buffer."
"""What the names of a stream's episode states begin with."""

_SYNTHETIC = re.compile(r"synthetic:[0-9]{1,19}")
_CLASSES = 3
_MAX_STATES = 1000
_MAX_STEPS = 10**9
_MAX_VIEWS = 10_000


def check_network(checkpoint: Checkpoint, network: nn.Module) -> None:
    """Make sure that a checkpoint holds a network of this shape, its average, and what AdamW knows of it.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    where, like = checkpoint.where, dict(network.state_dict())
    others = [name for name in checkpoint.tensors if not name.startswith((NETWORK, AVERAGE, ADAMW))]
    check_tensor_names(others, (), where)
    for prefix in (NETWORK, AVERAGE):
        check_like(below(checkpoint.tensors, prefix), like, f"{where}: {prefix}")
    known: dict[str, Tensor] = {}
    for place, parameter in enumerate(network.parameters()):
        known |= {f"{place}.step": torch.tensor(0.0), f"{place}.exp_avg": parameter, f"{place}.exp_avg_sq": parameter}
    kept = below(checkpoint.tensors, ADAMW)
    if kept:  # none before the first step
        check_like(kept, known, f"{where}: {ADAMW}")
    with damage_in(checkpoint.fields.where):
        checkpoint.fields.number("seconds", minimum=0)


def check_stream(checkpoint: Checkpoint, network: NetworkOptions, scenes: Sequence[str]) -> None:
    """Make sure that a checkpoint holds a stream of a run with this network on these scenes.

    Args:
        checkpoint: The stream's.
        network: Its network's shape.
        scenes: Keys of the captures that it trains on; none where scenes are made while training.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
        InputError: One of its scenes cannot be read.
    """
    where = checkpoint.where
    others = [name for name in checkpoint.tensors if not name.startswith((CURRENT, BUFFER))]
    check_tensor_names(others, ("generator",), where)
    check_generator(checkpoint.tensors["generator"], f"{where}: generator")
    stream = checkpoint.fields
    with damage_in(stream.where):
        stream.count("episodes", _MAX_STEPS)
        stream.count("fresh_scenes", _MAX_STEPS)
        records = stream.objects("buffer", _MAX_STATES)
        for record in records:
            record.count("class", _CLASSES - 1)
    found = below(checkpoint.tensors, BUFFER)
    numbers = {str(number) for number in range(len(records))}
    check_tensor_names({name.partition(".")[0] for name in found}, numbers, f"{where}: the buffer")
    for number, record in enumerate(records):
        _check_episode_state(below(found, f"{number}."), record, network, scenes)
    if "current" in stream:
        with damage_in(stream.where):
            record = stream.object("current")
        _check_episode_state(below(checkpoint.tensors, CURRENT), record, network, scenes)


def _check_episode_state(
    tensors: Mapping[str, Tensor], record: Fields, network: NetworkOptions, scenes: Sequence[str]
) -> None:
    where = record.where
    cloud = saved_cloud(below(tensors, "cloud."), where)
    memory = InnerState.begin({name: getattr(cloud, name) for name in GAUSSIAN_TENSORS}, network.latent).tensors()
    near = torch.empty(len(cloud), network.neighbours, dtype=torch.int64)
    others = {name: value for name, value in tensors.items() if not name.startswith("cloud.")}
    check_like(others, memory | {"near": near}, where)
    near = others["near"]
    if near.numel() and not 0 <= int(near.min()) <= int(near.max()) < len(cloud):
        raise DamagedCheckpointError(f"{where}: near names Gaussians that there are not")
    with damage_in(where):
        scene = _check_numbers(record)
        if not (_is_among(scene, scenes) if scenes else _SYNTHETIC.fullmatch(scene)):
            raise record.refusal("scene", "one of --data" if scenes else "synthetic:NUMBER")
    views = len(cached_capture(scene).cameras)
    with damage_in(where):
        for name in ("inputs", "targets"):
            chosen = [Fields({name: one}, where).count(name, views - 1) for one in record.entries(name, views)]
            if not chosen or len(set(chosen)) < len(chosen):
                raise record.refusal(name, "different views, at least one")


def _is_among(scene: str, scenes: Sequence[str]) -> bool:
    """Whether a folder is one of several, by whatever name."""
    return "\0" not in scene and os.path.realpath(scene) in {os.path.realpath(one) for one in scenes}


def _check_numbers(record: Fields) -> str:
    """Check the numbers of an episode state, and return its scene."""
    if not record.count("view_batch", _MAX_VIEWS):
        raise record.refusal("view_batch", "at least 1")
    record.count("horizon", _MAX_STEPS)
    record.count("steps", _MAX_STEPS)
    for place in range(len(LOSS_DECAYS)):
        record.any_number(f"loss_{place}")
    augmentation = record.object("augmentation")
    augmentation.number("extent_factor", minimum=1e-9)
    quaternion = [
        Fields({"quaternion": one}, augmentation.where).number("quaternion", -1.0, 1.0)
        for one in augmentation.entries("quaternion", 4)
    ]
    if len(quaternion) != 4 or sum(one * one for one in quaternion) < 0.5:
        raise augmentation.refusal("quaternion", "a unit quaternion")
    return record.text("scene")
