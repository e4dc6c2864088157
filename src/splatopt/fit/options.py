"""The groups of settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.core.bounds import bounds, flag
from splatopt.core.checks import InputError
from splatopt.fields.networks import Architecture
from splatopt.fields.registry import check_constants, find_field
from splatopt.optim.field_optimizers import find_field_optimizer
from splatopt.runs import config as runs
from splatopt.runs.resuming import AS_ASKED, FREE_ON_RESUME
from splatopt.runs.unread import UnreadOptions


class TaskKind(Enum):
    """What a field is fitted to."""

    AUTO = "auto"
    IMAGE = "image"
    OCCUPANCY = "occupancy"
    NERF = "nerf"


AUTO = "auto"
"""The optimizer that was measured to suit the field."""

MAX_CONSTANT = 1e9
"""Squares of larger constants of an activation, and of the inverse of smaller ones, leave single precision."""


@dataclass(frozen=True)
class DataOptions(runs.SettingGroup):
    """What is fitted."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")] = field(metadata=AS_ASKED)
    """An image file, a mesh file, or the folder (or the transforms.json) of a capture."""

    task: TaskKind = TaskKind.AUTO
    """image, occupancy or nerf; auto goes by what the target is."""

    max_side: int | None = field(default=None, metadata=bounds(1))
    """Shrink the image, or the capture's photographs, until the longer side has at most so many pixels.
    Unit: pixels."""

    points: int = field(default=200_000, metadata=bounds(3, 50_000_000))
    """Points of occupancy's training set, as many again held out up to 100,000. Unit: points."""

    samples: int = field(default=64, metadata=bounds(2, 4096))
    """Samples along each ray of nerf. Unit: samples. Source: NeRF."""

    test_every: int = field(default=8, metadata=bounds(2))
    """Every so many-th view of a capture is a test view, where it names none itself. Unit: views."""


@dataclass(frozen=True)
class ActivationConstants(runs.SettingGroup):
    """Constants of the fields' activations; each field has some of them."""

    sigma: float | None = None
    """σ of gaussian; 0.05 for images, 0.09 for occupancy, 0.1 for nerf when None. Source: Chng et al. 2025."""

    omega: float | None = None
    """ω of sine (30), wavelet (10) and sinc (20) when None. Source: SIREN, WIRE; sinc's measured,
    docs/results/fields.md."""

    scale: float | None = None
    """Inverse width of wavelet's envelope; 10 when None. Source: WIRE."""

    frequencies: int | None = None
    """Octaves of relu-pe's encoding; 8 when None. Unit: octaves. Source: Chng et al. 2025."""

    def __post_init__(self) -> None:
        """Refuse numbers that no activation takes."""
        super().__post_init__()
        for name, value in self.given.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{flag(name)} must be a positive number, got {value}")
            if not 1 / MAX_CONSTANT <= value <= MAX_CONSTANT:
                raise InputError(f"{flag(name)} must lie within 1e-9 and 1e9, got {value}")

    @property
    def given(self) -> dict[str, float]:
        """Constants that are not None, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(ActivationConstants)}
        return {name: value for name, value in values.items() if value is not None}

    def of_field(self, name: str) -> dict[str, float]:
        """Return those constants that were given and that the field ``name`` has."""
        return {key: value for key, value in self.given.items() if key in find_field(name).constants}


@dataclass(frozen=True)
class NetworkOptions(ActivationConstants):
    """The field and its size."""

    field: str = "gaussian"
    """Name of the field: gaussian, sine, wavelet, sinc, relu or relu-pe."""

    width: int = 256
    """Features of each layer. Unit: features. Source: Chng et al. 2025."""

    depth: int = 3
    """Hidden layers between the input layer and the head. Unit: layers. Source: Chng et al. 2025."""

    def __post_init__(self) -> None:
        """Refuse what is no field."""
        self.architecture(1, 1)
        check_constants(self.field, self.given)
        super().__post_init__()

    def architecture(self, inputs: int, outputs: int) -> Architecture:
        """Return the field's size.

        Args:
            inputs: Coordinates.
            outputs: Numbers per point.
        """
        return Architecture(inputs, outputs, self.width, self.depth)

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the field's activation that were given or resolved."""
        return self.of_field(self.field)


@dataclass(frozen=True)
class ScheduleOptions(runs.ScheduleOptions):
    """Which steps are taken, and how many."""

    optimizer: str = AUTO
    """Name of the optimizer: sgd, adam, esgd, esgd-max, adahessian-e, adahessian-j, shampoo, kfac, lbfgs, or
    zoo:NAME; its options follow under its name, as in --esgd.rate or --zoo.rate. auto is esgd for gaussian, sine,
    wavelet and sinc, of a mesh's inside for gaussian and sine alone, and else adam. Source: docs/results/fields.md."""

    epochs: int | None = field(default=None, metadata=bounds(1) | FREE_ON_RESUME)
    """Passes over all pixels, points or rays; 200, for nerf 1, when None. Unit: epochs."""

    steps: int | None = field(default=None, metadata=bounds(1) | FREE_ON_RESUME)
    """Stop after so many steps in place of epochs. Unit: steps."""

    batch: int | None = field(default=None, metadata=bounds(1))
    """Pixels, points or rays a step; 512, for occupancy 50,000, when None; lbfgs takes all. Unit: examples."""

    def __post_init__(self) -> None:
        """Refuse what no fit can do."""
        super().__post_init__()
        unread = isinstance(self.optimizer_options, UnreadOptions) or self.optimizer == AUTO
        if self.batch is not None and not unread and find_field_optimizer(self.optimizer).full_batch:
            raise InputError(
                f"{self.optimizer} compares gradients of successive steps, which differ by noise where each step sees "
                f"another minibatch; leave --batch out, so that every step sees everything, or take another optimizer"
            )


@dataclass(frozen=True)
class ScoringOptions(runs.ScoringOptions):
    """When the field is scored, and on what."""

    eval_every: int | None = field(default=None, metadata=bounds(0) | FREE_ON_RESUME)
    """Score every so many steps; every tenth epoch, for nerf every fifth of the run, when None, 0 for only before
    and after. Unit: steps."""

    score_views: int = field(default=4, metadata=bounds(0) | FREE_ON_RESUME)
    """Held-out views that nerf is scored on, spread over all; 0 for every one. Unit: views."""

    resolution: int = field(default=128, metadata=bounds(8, 1024) | FREE_ON_RESUME)
    """Samples along each edge of the box, for the mesh and the picture of an occupancy. Unit: samples."""


@dataclass(frozen=True)
class ProcessOptions(runs.ProcessOptions):
    """What computes, with how many threads and how much memory."""

    threads: int = field(default=0, metadata=bounds(0, runs.MAX_THREADS) | FREE_ON_RESUME)
    """Threads of PyTorch; 0 leaves its own choice. Results depend on it in the last bits."""


def guess_task(target: Path) -> TaskKind:
    """Return what ``target`` can be fitted as: a folder or a JSON file is a capture, others a mesh or an image."""
    from splatopt.data.mesh import is_mesh_name

    if target.is_dir() or target.suffix.lower() == ".json":
        return TaskKind.NERF
    return TaskKind.OCCUPANCY if is_mesh_name(target) else TaskKind.IMAGE
