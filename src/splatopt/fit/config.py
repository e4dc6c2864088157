"""What a fit of a neural field is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from splatopt.core.checks import InputError
from splatopt.core.optimizer import option_prefix
from splatopt.core.plugins import as_plugins
from splatopt.core.typed import field_names, make, typed_fields
from splatopt.fields.networks import Architecture
from splatopt.fields.registry import check_constants, find_field
from splatopt.optim.field_optimizers import field_options, find_field_optimizer
from splatopt.runs.plugins import PluginFiles, plugins_from_json, plugins_to_json
from splatopt.runs.resuming import check_options, flag, resumed_settings
from splatopt.runs.unread import UnreadOptions, options_to_json, read_options


class TaskKind(Enum):
    """What a field is fitted to."""

    AUTO = "auto"
    IMAGE = "image"
    OCCUPANCY = "occupancy"
    NERF = "nerf"


@dataclass(frozen=True)
class TaskDefaults:
    """What is taken where nothing was given.

    Attributes:
        epochs: Passes over all examples.
        batch: Examples a step.
        sigma: Width of the Gaussian activation.
    """

    epochs: int
    batch: int
    sigma: float


TASK_DEFAULTS = {
    TaskKind.IMAGE: TaskDefaults(epochs=200, batch=512, sigma=0.05),
    TaskKind.OCCUPANCY: TaskDefaults(epochs=200, batch=50_000, sigma=0.09),
    TaskKind.NERF: TaskDefaults(epochs=1, batch=512, sigma=0.1),
}
"""Batches, σ of images and occupancy as Chng et al. 2025; σ of NeRF as GARF (Chng et al. 2022)."""

CONSTANTS = ("sigma", "omega", "scale", "frequencies")
MOST_CONSTANT = 1e9
"""Squares of larger constants of an activation, and of the inverse of smaller ones, leave single precision."""

FREE_ON_RESUME = (
    "target",
    "out",
    "resume",
    "epochs",
    "steps",
    "threads",
    "max_memory",
    "resolution",
    "score_views",
    "eval_every",
    "eval_at",
    "checkpoint_seconds",
    "log_every",
)
"""Settings that may change when a run is resumed: they leave the steps already taken as they were."""


@dataclass(frozen=True)
class FitConfig:
    """Fit a neural field to an image, to the inside of a mesh, or to a capture (NeRF)."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """An image file, a mesh file, or the folder of a capture."""

    task: TaskKind = TaskKind.AUTO
    """image, occupancy or nerf; auto goes by what the target is."""

    field: str = "gaussian"
    """Name of the field: gaussian, sine, wavelet, sinc, relu or relu-pe."""

    optimizer: str = "adam"
    """Name of the optimizer: sgd, adam, esgd, esgd-max, adahessian-e, adahessian-j, shampoo, kfac, lbfgs, or
    zoo:NAME; its options follow under its name, as in --esgd.rate or --zoo.rate."""

    optimizer_options: tyro.conf.Suppress[Any] = None
    """The optimizer's own dataclass; its defaults when None."""

    epochs: int | None = None
    """Passes over all pixels, points or rays; 200, for nerf 1, when None. Unit: epochs."""

    steps: int | None = None
    """Stop after so many steps in place of epochs. Unit: steps."""

    batch: int | None = None
    """Pixels, points or rays a step; 512, for occupancy 50,000, when None; lbfgs takes all. Unit: examples."""

    seed: int = 0
    """Seed of the run's only source of randomness."""

    out: Path | None = None
    """Folder of the run; runs/<target>-<field>-<optimizer> when None."""

    resume: bool = False
    """Go on from the last good checkpoint in the run's folder."""

    width: int = 256
    """Features of each layer. Unit: features. Source: Chng et al. 2025."""

    depth: int = 3
    """Hidden layers between the input layer and the head. Unit: layers. Source: Chng et al. 2025."""

    sigma: float | None = None
    """σ of gaussian; 0.05 for images, 0.09 for occupancy, 0.1 for nerf when None. Source: Chng et al. 2025."""

    omega: float | None = None
    """ω of sine (30), wavelet (10) and sinc (20) when None. Source: SIREN, WIRE; sinc's measured, docs/fields.md."""

    scale: float | None = None
    """Inverse width of wavelet's envelope; 10 when None. Source: WIRE."""

    frequencies: int | None = None
    """Octaves of relu-pe's encoding; 8 when None. Unit: octaves. Source: Chng et al. 2025."""

    max_side: int | None = None
    """Shrink the image, or the capture's photographs, until the longer side has at most so many pixels.
    Unit: pixels."""

    points: int = 200_000
    """Points of occupancy's training set, as many again held out up to 100,000. Unit: points."""

    resolution: int = 128
    """Samples along each edge of the box, for the mesh and the picture of an occupancy. Unit: samples."""

    samples: int = 64
    """Samples along each ray of nerf. Unit: samples. Source: NeRF."""

    score_views: int = 4
    """Held-out views that nerf is scored on, spread over all; 0 for every one. Unit: views."""

    test_every: int = 8
    """Every so many-th view of a capture is a test view, where it names none itself. Unit: views."""

    threads: int = 0
    """Threads of PyTorch; 0 leaves its own choice. Results depend on it in the last bits."""

    max_memory: float = 0.0
    """Memory that fitting may take; a fit that is estimated to need more is refused before it begins. 0 for what is
    free. Unit: GiB."""

    eval_every: int | None = None
    """Score every so many steps; every tenth epoch, for nerf every fifth of the run, when None, 0 for only before
    and after. Unit: steps."""

    eval_at: tuple[int, ...] = ()
    """Score after these steps as well. Unit: steps."""

    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least every so many seconds of training; 0 for only at the end. Unit: seconds."""

    log_every: int = 10
    """Write a line of metrics, the means since the last line, every so many steps. Unit: steps."""

    plugins: PluginFiles = ()
    """A Python file that registers an optimizer or a reader of captures; give it once for each file."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        object.__setattr__(self, "plugins", as_plugins(self.plugins))
        least = {
            "epochs": 1,
            "steps": 1,
            "batch": 1,
            "seed": 0,
            "max_side": 1,
            "points": 3,
            "resolution": 8,
            "samples": 2,
            "score_views": 0,
            "test_every": 2,
            "threads": 0,
            "max_memory": 0,
            "eval_every": 0,
            "checkpoint_seconds": 0,
            "log_every": 1,
        }
        most = {"seed": 2**63 - 1, "threads": 1024, "resolution": 1024, "points": 50_000_000, "samples": 4096}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise InputError(f"{flag(name)} must be at least {low}, got {value}")
            if value is not None and value > most.get(name, value):
                raise InputError(f"{flag(name)} must be at most {most[name]}, got {value}")
        for step in self.eval_at:
            if step < 0:
                raise InputError(f"--eval-at must be at least 0, got {step}")
        Architecture(1, 1, self.width, self.depth)
        find_field(self.field)
        check_constants(self.field, {name: 0 for name in CONSTANTS if getattr(self, name) is not None})
        for name in CONSTANTS:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{flag(name)} must be a positive number, got {value}")
            if value is not None and not 1 / MOST_CONSTANT <= value <= MOST_CONSTANT:
                raise InputError(f"{flag(name)} must lie within 1e-9 and 1e9, got {value}")
        if isinstance(self.optimizer_options, UnreadOptions):
            return
        field_options(self.optimizer, self.field, self.optimizer_options)
        if find_field_optimizer(self.optimizer).full_batch and self.batch is not None:
            raise InputError(
                f"{self.optimizer} compares gradients of successive steps, which differ by noise where each step sees "
                f"another minibatch; leave --batch out, so that every step sees everything, or take another optimizer"
            )

    @property
    def folder(self) -> Path:
        """The run's folder; raises ValueError where it was left to be chosen and :meth:`resolved` was not called."""
        if self.out is None:
            raise ValueError("the run's folder is not chosen yet; call resolved()")
        return Path(self.out)

    def constants(self) -> dict[str, float]:
        """Return the constants of the field's activation that were given or resolved."""
        taken = find_field(self.field).constants
        return {name: getattr(self, name) for name in taken if getattr(self, name) is not None}

    def resolved(self) -> FitConfig:
        """Return the configuration with everything spelt out that was left to be chosen, sizes of batches aside."""
        kind = self.task if self.task is not TaskKind.AUTO else guess_task(Path(self.target))
        defaults = TASK_DEFAULTS[kind]
        name = f"{Path(self.target).resolve().stem}-{self.field}-{self.optimizer.replace(':', '-')}"
        return replace(
            self,
            task=kind,
            optimizer_options=self.optimizer_options
            if isinstance(self.optimizer_options, UnreadOptions)
            else field_options(self.optimizer, self.field, self.optimizer_options),
            epochs=self.epochs if self.epochs is not None or self.steps is not None else defaults.epochs,
            sigma=defaults.sigma if self.field == "gaussian" and self.sigma is None else self.sigma,
            out=self.out if self.out is not None else Path("runs") / name,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values; ``resume`` is a request, not a setting, and left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "resume"}
        values["target"] = str(Path(self.target).absolute())
        values["task"] = self.task.value
        values["out"] = None if self.out is None else str(self.out)
        if self.optimizer_options is not None:
            values["optimizer_options"] = options_to_json(self.optimizer_options)
        values["plugins"] = plugins_to_json(self.plugins)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> FitConfig:
        """Return the configuration that :meth:`to_json` gave.

        Args:
            values: What was read.
            where: The file it was read from, for messages.

        Raises:
            InputError: A setting is unknown or has the wrong form.
        """
        known = field_names(cls) - {"resume"}
        given = {name: value for name, value in values.items() if name not in ("optimizer_options", "plugins")}
        settings = typed_fields(given, cls, known, "setting", where)
        settings["plugins"] = plugins_from_json(values.get("plugins"), where)
        if values.get("optimizer_options") is not None:
            optimizer = settings.get("optimizer", "adam")
            settings["optimizer_options"] = read_options(
                values["optimizer_options"],
                lambda: find_field_optimizer(optimizer).entry.options,
                f"{where}: optimizer_options",
            )
        return make(cls, settings, where)

    def resuming(self, saved: FitConfig) -> FitConfig:
        """Return the configuration to resume ``saved`` with: what was given must agree with it, or be free to change.

        Raises:
            InputError: A setting that shaped the steps already taken was given another value.
        """
        own = ("target", "out", "resume")
        chosen = resumed_settings(self, saved, own, FREE_ON_RESUME, apart=("optimizer_options", "plugins"))
        chosen["plugins"] = (*saved.plugins, *self.plugins)
        given, kept = self.optimizer_options, saved.optimizer_options
        if given is not None and type(given) is type(kept):
            check_options(saved, option_prefix(saved.optimizer), given, kept)
        elif given is not None and given != type(given)():
            raise InputError(f"options of {self.optimizer!r} are given, and the run in {saved.out} does not use it")
        chosen["optimizer_options"] = kept
        if self.epochs is not None and self.steps is None:
            chosen["steps"] = None
        return FitConfig(**chosen)


def guess_task(target: Path) -> TaskKind:
    """Return what ``target`` can be fitted as: a folder is a capture, a file a mesh or an image by its ending."""
    from splatopt.data.mesh import is_mesh_name

    if target.is_dir():
        return TaskKind.NERF
    return TaskKind.OCCUPANCY if is_mesh_name(target) else TaskKind.IMAGE
