"""What a training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from splatopt.core.checks import InputError, nearest_names
from splatopt.core.optimizer import find_optimizer, option_prefix
from splatopt.raster.constants import SSIM_WEIGHT
from splatopt.raster.types import Footprint, RenderOptions

FREE_ON_RESUME = (
    "capture",
    "out",
    "resume",
    "steps",
    "renderer",
    "threads",
    "cache_mebibytes",
    "eval_every",
    "checkpoint_every",
    "checkpoint_seconds",
    "log_every",
)
"""Settings that may change when a run is resumed: they leave the steps already taken as they were."""


_MOST_THREADS = 1024
"""More are refused by the native module."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a Gaussian scene from a capture: posed photographs, and points to start from."""

    capture: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTURE")]
    """Folder of the capture: COLMAP, Blender, nerfstudio or instant-ngp."""

    optimizer: str = "adam"
    """Name of the optimizer; its options follow under its name, as in --adam.means-rate. zoo:NAME takes one of the
    pytorch-optimizer package, with --zoo.rate-factor."""

    optimizer_options: tyro.conf.Suppress[Any] = None
    """The optimizer's own dataclass; its defaults when None."""

    steps: int = 2000
    """Optimizer steps. Unit: steps."""

    seed: int = 0
    """Seed of the run's only source of randomness."""

    out: Path | None = None
    """Folder of the run; runs/<capture>-<optimizer> when None."""

    resume: bool = False
    """Go on from the last good checkpoint in the run's folder."""

    view_batch: int = 1
    """Views rendered per step; the loss is their mean. Unit: views."""

    start: str = "sfm"
    """Where the cloud comes from: sfm (the capture's points), random, or the path of a .ply scene."""

    random_points: int = 20_000
    """Gaussians of a random start. Unit: Gaussians."""

    sh_degree: int = 3
    """Highest spherical-harmonics degree of the colour, 0 to 3. Source: 3DGS."""

    sh_interval: int = 1000
    """The degree rises by one every so many steps; 0 uses all from the start. A .ply start uses all
    as well. Unit: steps. Source: 3DGS."""

    ssim_weight: float = SSIM_WEIGHT
    """λ of the loss (1-λ)·L1 + λ·(1-SSIM). Unit: fraction. Source: 3DGS."""

    background: tuple[float, float, float] | None = None
    """Colour behind the scene, and behind see-through photographs; when None, black for photographs as in
    3DGS, and white where any is see-through. Unit: RGB in [0, 1]."""

    footprint: Footprint = Footprint.CLASSIC
    """Classic splats, or antialiased ones whose opacity makes up for the low-pass."""

    downscale: int = 1
    """Train on photographs this many times smaller. Unit: factor."""

    max_side: int | None = None
    """Shrink photographs until their longer side has at most so many pixels. Unit: pixels."""

    skip_missing: bool = False
    """Leave out photographs that are missing or damaged, instead of stopping."""

    cache_mebibytes: int = 512
    """Memory for decoded photographs. Unit: MiB."""

    test_every: int = 8
    """Every so many-th view by name is a test view, where the capture itself names none.
    Unit: views. Source: Mip-NeRF 360, 3DGS."""

    renderer: str = "auto"
    """What renders: auto, native or reference."""

    threads: int = 0
    """Threads of renderer and optimizer; 0 for all cores. The result does not depend on it."""

    eval_every: int = 0
    """Score the test views every so many steps; 0 for only before and after. Unit: steps."""

    checkpoint_every: int = 500
    """Write a checkpoint every so many steps; 0 for never by steps. Unit: steps."""

    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least every so many seconds of training; 0 for never by time. Unit: seconds."""

    log_every: int = 10
    """Write a line of metrics, the means since the last line, every so many steps. Unit: steps."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        at_least = {
            "steps": 1,
            "seed": 0,
            "view_batch": 1,
            "random_points": 1,
            "sh_interval": 0,
            "downscale": 1,
            "cache_mebibytes": 0,
            "test_every": 2,
            "threads": 0,
            "eval_every": 0,
            "checkpoint_every": 0,
            "checkpoint_seconds": 0,
            "log_every": 1,
        }
        for name, least in at_least.items():
            if not least <= getattr(self, name) < float("inf"):
                raise InputError(f"{_flag(name)} must be at least {least}, got {getattr(self, name)}")
        at_most = {"seed": 2**63 - 1, "threads": _MOST_THREADS}
        for name, most in at_most.items():
            if getattr(self, name) > most:
                raise InputError(f"{_flag(name)} must be at most {most}, got {getattr(self, name)}")
        if self.max_side is not None and self.max_side < 1:
            raise InputError(f"--max-side must be at least 1, got {self.max_side}")
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"--ssim-weight must lie in [0, 1], got {self.ssim_weight}")
        if self.start not in ("sfm", "random") and not self.start.endswith(".ply"):
            raise InputError(f"--start must be sfm, random or the path of a .ply file, got {self.start!r}")
        RenderOptions(self.background or (0.0, 0.0, 0.0), self.footprint, self.sh_degree)
        entry = find_optimizer(self.optimizer)
        if self.optimizer_options is not None and not isinstance(self.optimizer_options, entry.options):
            raise InputError(
                f"the options of optimizer {self.optimizer!r} must be a {entry.options.__name__}, "
                f"got a {type(self.optimizer_options).__name__}"
            )

    @property
    def folder(self) -> Path:
        """The run's folder; raises ValueError where it was left to be chosen and :meth:`resolved` was not called."""
        if self.out is None:
            raise ValueError("the run's folder is not chosen yet; call resolved()")
        return Path(self.out)

    def resolved(self, name: str, background: tuple[float, float, float]) -> TrainConfig:
        """Return the configuration with everything spelt out that was left to be chosen.

        Args:
            name: The capture's name, for the folder.
            background: The capture's own, where none was given.
        """
        options = self.optimizer_options
        return replace(
            self,
            optimizer_options=find_optimizer(self.optimizer).options() if options is None else options,
            background=background if self.background is None else self.background,
            out=self.out if self.out is not None else Path("runs") / f"{name}-{self.optimizer.replace(':', '-')}",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values; ``resume`` is a request, not a setting, and left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "resume"}
        values["capture"] = str(Path(self.capture).absolute())
        if self.optimizer_options is not None:
            values["optimizer_options"] = asdict(self.optimizer_options)
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """Return the configuration that :meth:`to_json` gave.

        Args:
            values: What was read.
            where: The file it was read from, for messages.

        Raises:
            InputError: A setting is unknown or has the wrong form.
        """
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise InputError(f"{where}: there is no setting {name!r}; {nearest_names(name, known)}")
        settings = dict(values)
        try:
            if settings.get("optimizer_options") is not None:
                options = find_optimizer(settings["optimizer"]).options
                settings["optimizer_options"] = options(**_tuples(settings["optimizer_options"]))
            if settings.get("out") is not None:
                settings["out"] = Path(settings["out"])
            if "footprint" in settings:
                settings["footprint"] = Footprint(settings["footprint"])
            return cls(**_tuples(settings))
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{where}: this is not the configuration of a run ({error}); start a new run") from error

    def resuming(self, saved: TrainConfig) -> TrainConfig:
        """Return the configuration to resume ``saved`` with.

        What was left at its default takes the saved value. What was given must agree with it, except
        for the settings of FREE_ON_RESUME, which may change.

        Raises:
            InputError: A setting that shaped the steps already taken was given another value.
        """
        chosen = {}
        for item in fields(self):
            given, kept = getattr(self, item.name), getattr(saved, item.name)
            default = _default(item.name, self)
            if item.name in ("capture", "out", "resume") or (given not in (default, kept) and _is_free(item.name)):
                chosen[item.name] = given
            elif given in (default, kept):
                chosen[item.name] = kept
            else:
                what, kept, given = _first_difference(item.name, kept, given, saved.optimizer)
                raise InputError(
                    f"the run in {saved.out} was started with {what} {kept}, and cannot go on with {given}; "
                    f"leave the option out, or start a new run with another --out"
                )
        return TrainConfig(**chosen)


def _is_free(name: str) -> bool:
    return name in FREE_ON_RESUME


def _default(name: str, config: TrainConfig) -> Any:
    """Default of a field; for the optimizer's options, the defaults of the optimizer that was named."""
    if name == "optimizer_options":
        given = config.optimizer_options
        return None if given is None else type(given)()
    default = next(item.default for item in fields(TrainConfig) if item.name == name)
    return None if default is MISSING else default


def _first_difference(name: str, kept: Any, given: Any, optimizer: str) -> tuple[str, Any, Any]:
    """The flag that differs, and both its values; of an optimizer's options, the first that does."""
    if name == "optimizer_options" and type(kept) is type(given):
        for item in fields(kept):
            before, now = getattr(kept, item.name), getattr(given, item.name)
            if before != now:
                return f"--{option_prefix(optimizer)}.{item.name.replace('_', '-')}", before, now
    return _flag(name), kept, given


def _flag(name: str) -> str:
    """How a field is spelt on the command line."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    return value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with JSON's lists as the tuples they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
