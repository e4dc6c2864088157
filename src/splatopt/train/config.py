"""What a training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import tyro

from splatopt.core.checks import InputError, quoted
from splatopt.core.devices import check_device_name
from splatopt.core.native import check_instructions_name
from splatopt.core.optimizer import find_optimizer, option_prefix
from splatopt.core.plugins import as_plugins
from splatopt.core.typed import field_names, make, typed_fields
from splatopt.raster.constants import SSIM_WEIGHT
from splatopt.raster.losses import Loss
from splatopt.raster.render import check_renderer_name
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.runs.folder import RunFolder
from splatopt.runs.plugins import PluginFiles, plugins_from_json, plugins_to_json
from splatopt.runs.resuming import check_options, flag, resumed_settings, saved_options
from splatopt.runs.unread import UnreadOptions, check_read, options_to_json
from splatopt.train.chosen_loss import USUAL_LOSS, checked_loss_options, chosen_loss, saved_loss_options
from splatopt.train.sampler import ViewChoice
from splatopt.train.stages import Stage, parse_stages

FREE_ON_RESUME = (
    "capture",
    "out",
    "resume",
    "steps",
    "stages",
    "renderer",
    "device",
    "threads",
    "instructions",
    "max_memory",
    "process_timeout",
    "cache_mebibytes",
    "eval_every",
    "eval_at",
    "eval_at_seconds",
    "max_seconds",
    "checkpoint_every",
    "checkpoint_seconds",
    "log_every",
)
"""Settings that may change when a run is resumed: they leave the steps already taken as they were."""


_USUAL_OPTIMIZER = "adam"
_USUAL_STEPS = 2000

_MOST_THREADS = 1024
"""More are refused by the native module."""

_MOST_VIEWS = 100_000
"""Of one step."""

_MOST_POINTS = 10**10
"""Of a random start; far more than any memory holds."""

_MOST_SECONDS = 1e8
"""Some three years."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a Gaussian scene from a capture: posed photographs, and points to start from."""

    capture: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTURE")]
    """Folder of the capture: COLMAP, Blender, nerfstudio or instant-ngp."""

    optimizer: str = _USUAL_OPTIMIZER
    """Name of the optimizer; its options follow under its name, as in --adam.means-rate. zoo:NAME takes one of the
    pytorch-optimizer package, with --zoo.rate-factor."""

    stages: str | None = None
    """Optimizers with their steps, one after the other on the same scene, as in adam:1500,lm:10; in place of
    --optimizer and --steps. Each starts anew, its schedules span its own steps, and its options follow under its
    name."""

    optimizer_options: tyro.conf.Suppress[Any] = None
    """The optimizer's own dataclass, or with stages a mapping from names to theirs; the defaults when None."""

    steps: int | None = None
    """Optimizer steps; 2000 when None, and with --stages their sum. Unit: steps."""

    horizon: int | None = None
    """Steps that schedules are planned for, where the run goes on longer or ends sooner; ``steps`` when None.
    Unit: steps."""

    average: float = 0.0
    """Leave the running average of the optimizer's iterates, weighted like the step to this power, in place of the
    last one: 20 for about the last twentieth of the steps so far, 0 for no average. Unit: none. Source: Shamir and
    Zhang 2013."""

    max_seconds: float = 0.0
    """End after so many seconds of training, evaluation not counted, if that is sooner; 0 for never.
    Unit: seconds."""

    seed: int = 0
    """Seed of the run's only source of randomness."""

    out: Path | None = None
    """Folder of the run; runs/<capture>-<optimizer> when None."""

    resume: bool = False
    """Go on from the last good checkpoint in the run's folder."""

    view_batch: int = 1
    """Views rendered per step; the loss is their mean. Unit: views."""

    view_choice: ViewChoice = ViewChoice.SHUFFLED
    """How the views of a step are chosen: shuffled, or farthest for one shuffled view and those farthest from it
    and from each other."""

    input_views: int = 0
    """Train on so many views alone, chosen far from each other, and hold out the rest; 0 for the capture's
    split. Unit: views."""

    start: str = "sfm"
    """Where the cloud comes from: sfm (the capture's points), random, or the path of a .ply scene."""

    random_points: int = 20_000
    """Gaussians of a random start. Unit: Gaussians."""

    sh_degree: int = 3
    """Highest spherical-harmonics degree of the colour, 0 to 3. Source: 3DGS."""

    sh_interval: int = 1000
    """The degree rises by one every so many steps; 0 uses all from the start. A .ply start uses all
    as well. Unit: steps. Source: 3DGS."""

    loss: str = USUAL_LOSS
    """Name of the loss: l1-ssim, squared, charbonnier, or that of a plug-in; its options follow under its name, as in
    --charbonnier.epsilon, those of l1-ssim being --ssim-weight alone."""

    loss_options: tyro.conf.Suppress[Any] = None
    """The loss itself, an instance of its class, or its options by name; its defaults when None."""

    ssim_weight: float = SSIM_WEIGHT
    """λ of the loss l1-ssim, (1-λ)·L1 + λ·(1-SSIM). Unit: fraction. Source: 3DGS."""

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
    """What renders: auto, native or reference on the CPU; triton, gsplat or reference on CUDA."""

    device: str = "auto"
    """Where the run computes: auto (CUDA where there is a GPU and triton, else the CPU), cpu, cuda or cuda:N. Of
    several processes each takes the GPU of its local rank."""

    max_memory: float = 0.0
    """Memory that training may take, of the host on the CPU and of the device on CUDA; a run that is estimated to
    need more is refused before it begins. 0 for what is free. Unit: GiB."""

    process_timeout: float = 600.0
    """Of several processes (torchrun), how long one waits for the others before it counts them as lost; longer than
    the first one takes to score the test views. Unit: seconds."""

    threads: int = 0
    """Threads of renderer and optimizer; 0 for all cores. The result does not depend on it."""

    instructions: str = "auto"
    """Instruction set of renderer and optimizer on the CPU: avx512, avx2 or portable; auto for the fastest that this
    machine has. The last bits of the result depend on it."""

    eval_every: int = 0
    """Score the test views every so many steps; 0 for only before and after. Unit: steps."""

    eval_at: tuple[int, ...] = ()
    """Score the test views after these steps as well. Unit: steps."""

    eval_at_seconds: tuple[float, ...] = ()
    """Score the test views after the first step that ends past each of these times. Unit: seconds of training."""

    checkpoint_every: int = 500
    """Write a checkpoint every so many steps; 0 for never by steps. Unit: steps."""

    checkpoint_seconds: float = 60.0
    """Write a checkpoint at least every so many seconds of training; 0 for never by time. Unit: seconds."""

    log_every: int = 10
    """Write a line of metrics, the means since the last line, every so many steps. Unit: steps."""

    plugins: PluginFiles = ()
    """A Python file that registers an optimizer, a loss or a reader of captures; give it once for each file."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        object.__setattr__(self, "plugins", as_plugins(self.plugins))
        self._check_plan()
        options = checked_loss_options(self.loss, self.loss_options, self.ssim_weight)
        object.__setattr__(self, "loss_options", options)
        at_least = {
            "seed": 0,
            "view_batch": 1,
            "random_points": 1,
            "sh_interval": 0,
            "downscale": 1,
            "cache_mebibytes": 0,
            "test_every": 2,
            "threads": 0,
            "eval_every": 0,
            "average": 0,
            "max_seconds": 0,
            "input_views": 0,
            "checkpoint_every": 0,
            "checkpoint_seconds": 0,
            "log_every": 1,
            "max_memory": 0,
            "process_timeout": 1,
        }
        for name, least in at_least.items():
            if not least <= getattr(self, name) < float("inf"):
                raise InputError(f"{flag(name)} must be at least {least}, got {getattr(self, name)}")
        at_most = {
            "seed": 2**63 - 1,
            "threads": _MOST_THREADS,
            "view_batch": _MOST_VIEWS,
            "random_points": _MOST_POINTS,
            "process_timeout": _MOST_SECONDS,
        }
        for name, most in at_most.items():
            if getattr(self, name) > most:
                raise InputError(f"{flag(name)} must be at most {most}, got {getattr(self, name)}")
        for name in ("max_side", "horizon"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_at", "eval_at_seconds"):
            for value in getattr(self, name):
                if not 0 <= value < float("inf"):
                    raise InputError(f"{flag(name)} must be at least 0, got {value}")
        if self.average and "learned" in self.optimizers:
            raise InputError("the optimizer learned leaves an average of its iterates already; leave --average out")
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"--ssim-weight must lie in [0, 1], got {self.ssim_weight}")
        if self.start not in ("sfm", "random") and not self.start.endswith(".ply"):
            raise InputError(f"--start must be sfm, random or the path of a .ply file, got {quoted(self.start)}")
        check_renderer_name(self.renderer)
        check_device_name(self.device)
        check_instructions_name(self.instructions)
        RenderOptions(self.background or (0.0, 0.0, 0.0), self.footprint, self.sh_degree)

    def _check_plan(self) -> None:
        """Refuse stages, steps and optimizers that contradict each other, and options of others."""
        if self.steps is not None and self.steps < 1:
            raise InputError(f"--steps must be at least 1, got {self.steps}")
        if self.stages is not None:
            plan = self.plan
            if self.steps not in (None, plan[-1].end):
                raise InputError(
                    f"--steps {self.steps} contradicts --stages {self.stages}, whose steps sum to {plan[-1].end}; "
                    "leave --steps out"
                )
            if self.optimizer not in (_USUAL_OPTIMIZER, plan[0].optimizer):
                raise InputError(
                    f"--optimizer {self.optimizer} contradicts --stages {self.stages}; leave --optimizer out"
                )
            if self.horizon is not None:
                raise InputError(
                    f"--horizon {self.horizon} contradicts --stages {self.stages}, each of which has a horizon of its "
                    "own; leave --horizon out"
                )
            object.__setattr__(self, "optimizer", plan[0].optimizer)
        given = self.options_by_name
        for name in [name for name in self.optimizers if name not in given]:
            find_optimizer(name)
        for name, options in given.items():
            if isinstance(options, UnreadOptions):
                continue
            expected = find_optimizer(name).options
            if name not in self.optimizers:
                raise InputError(f"options of optimizer {name!r} are given, which the run does not use")
            if not isinstance(options, expected):
                raise InputError(
                    f"the options of optimizer {name!r} must be a {expected.__name__}, got a {type(options).__name__}"
                )

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The run's stages; one where none were given."""
        if self.stages is None:
            return (Stage(self.optimizer, 0, self.steps or _USUAL_STEPS),)
        return parse_stages(self.stages)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.plan[-1].end

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the stages' optimizers in order, each once."""
        return tuple(dict.fromkeys(stage.optimizer for stage in self.plan))

    @property
    def options_by_name(self) -> dict[str, Any]:
        """The options that were given, by the optimizer's name."""
        if self.optimizer_options is None:
            return {}
        if self.stages is not None and isinstance(self.optimizer_options, Mapping):
            return dict(self.optimizer_options)
        return {self.optimizer: self.optimizer_options}

    @property
    def folder(self) -> Path:
        """The run's folder; raises ValueError where it was left to be chosen and :meth:`resolved` was not called."""
        if self.out is None:
            raise ValueError("the run's folder is not chosen yet; call resolved()")
        return Path(self.out)

    def make_loss(self) -> Loss:
        """Return the run's loss."""
        return chosen_loss(self.loss, self.loss_options, self.ssim_weight)

    def check_known(self, where: str) -> None:
        """Raise InputError where an optimizer or the loss of a run that was read in ``where`` is not known here."""
        check_read([*self.options_by_name.values(), self.loss_options], where)

    def resolved(self, name: str, background: tuple[float, float, float]) -> TrainConfig:
        """Return the configuration with everything spelt out that was left to be chosen.

        Args:
            name: The capture's name, for the folder.
            background: The capture's own, where none was given.
        """
        given = self.options_by_name
        options = {name: given.get(name) or find_optimizer(name).options() for name in self.optimizers}
        return replace(
            self,
            steps=self.total_steps,
            optimizer_options=options[self.optimizer] if self.stages is None else options,
            background=background if self.background is None else self.background,
            out=self.out
            if self.out is not None
            else Path("runs") / "-".join((name, *self.optimizers)).replace(":", "-"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values; ``resume`` is a request, not a setting, and left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "resume"}
        values["capture"] = str(Path(self.capture).absolute())
        if self.optimizer_options is not None:
            options = {name: options_to_json(given) for name, given in self.options_by_name.items()}
            values["optimizer_options"] = options[self.optimizer] if self.stages is None else options
        if self.loss_options is not None:
            values["loss_options"] = options_to_json(self.loss_options)
        values["plugins"] = plugins_to_json(self.plugins)
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
        known = field_names(cls) - {"resume"}
        apart = ("optimizer_options", "loss_options", "plugins")
        given = {name: value for name, value in values.items() if name not in apart}
        settings = typed_fields(given, cls, known, "setting", where)
        settings["plugins"] = plugins_from_json(values.get("plugins"), where)
        settings["loss_options"] = saved_loss_options(
            settings.get("loss", USUAL_LOSS), values.get("loss_options"), where
        )
        if values.get("optimizer_options") is not None:
            optimizer = settings.get("optimizer", _USUAL_OPTIMIZER)
            staged = settings.get("stages") is not None
            settings["optimizer_options"] = saved_options(values["optimizer_options"], optimizer, staged, where)
        return make(cls, settings, where)

    def resuming(self, saved: TrainConfig) -> TrainConfig:
        """Return the configuration to resume ``saved`` with.

        What was left at its default takes the saved value. What was given must agree with it, except
        for the settings of FREE_ON_RESUME, which may change.

        Raises:
            InputError: A setting that shaped the steps already taken was given another value.
        """
        own = ("capture", "out", "resume")
        chosen = resumed_settings(
            self, saved, own, FREE_ON_RESUME, apart=("optimizer_options", "loss_options", "plugins")
        )
        chosen["plugins"] = (*saved.plugins, *self.plugins)
        chosen["loss_options"] = saved.loss_options
        if self.loss_options is not None and type(self.loss_options) is type(saved.loss_options):
            check_options(saved, saved.loss, self.loss_options, saved.loss_options)
        if self.stages is not None:
            chosen |= {"steps": self.steps, "optimizer": self.optimizer}
        resumed = TrainConfig(**chosen)
        options = self._options_resuming(saved, resumed.optimizers)
        return replace(resumed, optimizer_options=options if resumed.stages is not None else options[resumed.optimizer])

    def _options_resuming(self, saved: TrainConfig, optimizers: tuple[str, ...]) -> dict[str, Any]:
        """Return the options to resume ``saved`` with: its own, and for stages that are new those that were given."""
        given, kept = self.options_by_name, saved.options_by_name
        for name, options in given.items():
            check_options(saved, option_prefix(name), options, kept.get(name, options))
            if name not in optimizers and options != type(options)():
                raise InputError(f"options of {name!r} are given, and the run in {saved.out} does not use it")
        return {name: kept.get(name, given.get(name)) or find_optimizer(name).options() for name in optimizers}


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    return value


def read_config(folder: RunFolder) -> TrainConfig:
    """Return what the run in ``folder`` was told, with ``out`` where the folder lies now.

    Raises:
        InputError: There is no run here.
    """
    return replace(TrainConfig.from_json(folder.read_settings(), str(folder.config)), out=folder.path)
