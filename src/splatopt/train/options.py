"""The groups of settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro

from splatopt.core.bounds import bounds
from splatopt.core.checks import InputError
from splatopt.core.devices import check_device_name
from splatopt.core.native import check_instructions_name
from splatopt.core.optimizer import find_optimizer, optimizer_names
from splatopt.data.seen_pixels import MaskUse
from splatopt.raster.constants import SSIM_WEIGHT
from splatopt.raster.losses import L1Ssim, Loss
from splatopt.raster.render import check_renderer_name
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.runs import config as runs
from splatopt.runs.resumable import is_due
from splatopt.runs.resuming import AS_ASKED, FREE_ON_RESUME
from splatopt.runs.unread import UnreadOptions
from splatopt.scene.exposure import Exposure
from splatopt.scene.initialization import Initialization, parse_initialization
from splatopt.train.chosen_loss import USUAL_LOSS, checked_loss_options, chosen_loss
from splatopt.train.density_options import AUTO
from splatopt.train.levels import parse_levels
from splatopt.train.recipe import DEFAULT_RECIPE, find_recipe
from splatopt.train.sampler import ViewChoice
from splatopt.train.stages import Stage, parse_stages

USUAL_OPTIMIZER = "adam"
"""Of a run that does not plan itself."""

USUAL_SH_INTERVAL = 1000
_USUAL_STEPS = 2000

_USUAL_TIMES_SCORED = 10
_USUAL_STEPS_PER_VIEW_SCORED = 5
"""At least; rendering and scoring a view costs less than half a step, so that it all stays below a tenth."""

_MAX_VIEWS = 100_000
"""Of one step."""

_MAX_POINTS = 10**10
"""Of a random initialization; far more than any memory holds."""

_MAX_SECONDS = 1e8
"""Some three years."""

_MIN_MINUTES, _MAX_MINUTES = 0.05, 100_000.0
"""Three seconds, and some ten weeks."""


@dataclass(frozen=True)
class DataOptions(runs.SettingGroup):
    """What is trained on."""

    capture: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTURE")] = field(metadata=AS_ASKED)
    """Folder of the capture, or the transforms.json in it: COLMAP, nerfstudio, instant-ngp, Blender, LLFF, Polycam or
    Record3D."""

    input_views: int = field(default=0, metadata=bounds(0))
    """Train on so many views alone, chosen far from each other, and hold out the rest; 0 for the capture's
    split. Unit: views."""

    images: str | None = None
    """Train on the photographs of this folder beside images, such as images_4, with the cameras rescaled to their size;
    those that the capture itself names when None. Source: 3DGS."""

    mask: MaskUse = MaskUse.AUTO
    """What becomes of masked pixels: auto gives those of mask files no weight in loss, scores and growth, and lays
    see-through photographs over the background; ignore gives both no weight; background lays both over the
    background, so that nothing is learned to be there."""

    downscale: int = field(default=1, metadata=bounds(1))
    """Train on photographs this many times smaller, whatever size that is. Unit: factor."""

    max_side: int | None = field(default=None, metadata=bounds(0))
    """Shrink photographs until their longer side has at most so many pixels; 0 keeps all pixels. When None, 1600
    without --downscale, and all with it. Unit: pixels. Source: 3DGS."""

    skip_missing: bool = False
    """Leave out photographs that are missing or damaged, instead of stopping."""

    cache_mebibytes: int = field(default=512, metadata=bounds(0) | FREE_ON_RESUME)
    """Memory for decoded photographs. Unit: MiB."""

    test_every: int = field(default=8, metadata=bounds(2))
    """Every so many-th view by name is a test view, where the capture itself names none.
    Unit: views. Source: Mip-NeRF 360, 3DGS."""


@dataclass(frozen=True)
class SceneOptions(runs.SettingGroup):
    """What the scene is, where it begins and what it is compared by."""

    init: Annotated[str, tyro.conf.arg(aliases=["--start"])] = "sfm"
    """Where the cloud comes from: sfm (the capture's points), random (rays of the training views, where photographs
    agree), or the path of a scene file (.ply, .spz, .splat and more)."""

    random_points: int = field(default=20_000, metadata=bounds(1, _MAX_POINTS))
    """Gaussians of a random initialization; a tenth lies far behind the rest, unless photographs have alpha masks.
    Unit: Gaussians."""

    sh_degree: int = 3
    """Highest spherical-harmonics degree of the colour, 0 to 3. Source: 3DGS."""

    sh_interval: int | None = field(default=None, metadata=bounds(0))
    """The degree rises by one every so many steps; 0 uses all from the start, and so does a run that begins from a
    scene file. When None 1000, of learned without a density strategy 0, and a run that plans itself takes shares of
    its steps. Unit: steps. Source: 3DGS, docs/results/learned.md."""

    loss: str = USUAL_LOSS
    """Name of the loss: l1-ssim, squared, charbonnier, or that of a plug-in; its options follow under its name, as in
    --charbonnier.epsilon, those of l1-ssim being --ssim-weight alone."""

    loss_options: tyro.conf.Suppress[Any] = None
    """The loss itself, an instance of its class, or its options by name; its defaults when None."""

    ssim_weight: float = field(default=SSIM_WEIGHT, metadata=bounds(0, 1))
    """λ of the loss l1-ssim, (1-λ)·L1 + λ·(1-SSIM). Unit: fraction. Source: 3DGS."""

    background: tuple[float, float, float] | None = None
    """Colour behind the scene, and behind see-through photographs; when None, black for photographs as in
    3DGS, and white where any is see-through. Unit: RGB in [0, 1]."""

    exposure: Exposure = Exposure.NONE
    """What photographs may differ by in colour: none, or affine for a map M c + b of each, which is solved as the
    scene is trained, for captures with automatic exposure or white balance."""

    footprint: Footprint = Footprint.CLASSIC
    """Classic splats, or antialiased ones whose opacity makes up for the low-pass."""

    refine_poses: bool = False
    """Refine the poses of the training views while the scene is trained, each held near where the capture has it; the
    held-out views keep theirs. For poses that are a little off: a pixel or a few. Source: docs/scene.md."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        super().__post_init__()
        parse_initialization(self.init, self.random_points)
        options = checked_loss_options(self.loss, self.loss_options, L1Ssim(self.ssim_weight))
        object.__setattr__(self, "loss_options", options)
        RenderOptions(self.background or (0.0, 0.0, 0.0), self.footprint, self.sh_degree)

    def make_loss(self) -> Loss:
        """Return the run's loss."""
        return chosen_loss(self.loss, self.loss_options, L1Ssim(self.ssim_weight))

    @cached_property
    def initialization(self) -> Initialization:
        """Where the cloud comes from."""
        return parse_initialization(self.init, self.random_points)

    def sh_degree_at(self, step: int) -> int:
        """Return the spherical-harmonics degree of the step after ``step`` steps.

        It rises by one every ``sh_interval`` steps, as in 3DGS, so that the constant colour settles first;
        a scene that comes with its bands keeps them all.
        """
        interval = USUAL_SH_INTERVAL if self.sh_interval is None else self.sh_interval
        if interval == 0 or self.initialization.has_bands:
            return self.sh_degree
        return min(self.sh_degree, step // interval)


@dataclass(frozen=True)
class ScheduleOptions(runs.ScheduleOptions):
    """Which steps are taken, and how many."""

    minutes: float | None = field(default=None, metadata=bounds(_MIN_MINUTES, _MAX_MINUTES) | FREE_ON_RESUME)
    """Plan the run so that it ends after so many minutes, from the command's start to its last file: sizes of the
    photographs, growth, optimizer and steps follow from the speed that the run measures. 5, or until nothing improves,
    when no option says how a run ends or what optimizes. Unit: minutes."""

    until_plateau: bool = field(default=False, metadata=FREE_ON_RESUME)
    """With --minutes, end sooner where the loss of the training views no longer falls."""

    recipe: str = DEFAULT_RECIPE
    """How a run that plans itself spends its time, by name. Source: docs/train.md."""

    plan: Path | None = None
    """Repeat a run that planned itself: its plan.json, or its folder. The same scene to the bit, by steps and not by
    the clock, of the same capture."""

    optimizer: str = AUTO
    """Name of the optimizer; its options follow under its name, as in --adam.means-rate. zoo:NAME takes one of the
    pytorch-optimizer package, with --zoo.rate-factor. auto is what the recipe says where the run plans itself, and
    else adam."""

    stages: str | None = field(default=None, metadata=FREE_ON_RESUME)
    """Optimizers with their steps, one after the other on the same scene, as in adam:1500,lm:10; in place of
    --optimizer and --steps. Each starts anew, its schedules span its own steps, and its options follow under its
    name."""

    steps: int | None = field(default=None, metadata=bounds(1) | FREE_ON_RESUME)
    """Optimizer steps. When None the sum of --stages, 2000 with --optimizer alone, and else what the run plans.
    Unit: steps."""

    levels: str = ""
    """Coarse to fine, as in 4:300,2:900: photographs are shrunk by 4 until step 300, by 2 until step 900, and whole
    from then on; scores are of whole ones. A run that plans itself chooses them. Unit: steps. Source: DashGaussian,
    docs/train.md."""

    horizon: int | None = field(default=None, metadata=bounds(1))
    """Steps that schedules are planned for, where the run goes on longer or ends sooner; ``steps`` when None.
    Unit: steps."""

    average: float = field(default=0.0, metadata=bounds(0))
    """Leave the running average of the optimizer's iterates, weighted like the step to this power, in place of the
    last one: 20 for about the last twentieth of the steps so far, 0 for no average. Unit: none. Source: Shamir and
    Zhang 2013."""

    max_seconds: float = field(default=0.0, metadata=bounds(0) | FREE_ON_RESUME)
    """Stop after so many seconds of training, though --steps are not done and rates have not come to their end; scoring
    is not counted, and 0 is for never. A run that is planned for a time: --minutes. Unit: seconds."""

    view_batch: int | None = field(default=None, metadata=bounds(1, _MAX_VIEWS))
    """Views rendered per step; the loss is their mean. When None 1, and 8 for learned in known steps and without
    growth.
    Unit: views. Source: docs/results/learned.md."""

    view_choice: ViewChoice = ViewChoice.SHUFFLED
    """How the views of a step are chosen: shuffled, or farthest for one shuffled view and those farthest from it
    and from each other."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        super().__post_init__()
        find_recipe(self.recipe)
        parse_levels(self.levels)
        if self.stages is not None:
            self._check_stages(self.stages)
            object.__setattr__(self, "optimizer", self.all_stages[0].optimizer)
        self._check_options()
        if self.average and "learned" in self.optimizers:
            raise InputError("the optimizer learned leaves an average of its iterates already; leave --average out")

    def _check_stages(self, stages: str) -> None:
        """Refuse stages, steps and optimizers that contradict each other."""
        named = self.all_stages
        if self.steps not in (None, named[-1].end):
            raise InputError(
                f"--steps {self.steps} contradicts --stages {stages}, whose steps sum to {named[-1].end}; "
                "leave --steps out"
            )
        if self.optimizer not in (AUTO, USUAL_OPTIMIZER, named[0].optimizer):
            raise InputError(f"--optimizer {self.optimizer} contradicts --stages {stages}; leave --optimizer out")
        if self.horizon is not None:
            raise InputError(
                f"--horizon {self.horizon} contradicts --stages {stages}, each of which has a horizon of its "
                "own; leave --horizon out"
            )

    def _check_options(self) -> None:
        """Refuse options of optimizers that are not used, and of another type than theirs."""
        given = self.options_by_name
        for name in [name for name in self.optimizers if name not in given]:
            find_optimizer(name)
        for name, options in given.items():
            if isinstance(options, UnreadOptions):
                continue
            expected = find_optimizer(name).options
            if name not in self.optimizers and self.optimizer != AUTO:
                raise InputError(f"options of optimizer {name!r} are given, which the run does not use")
            if not isinstance(options, expected):
                raise InputError(
                    f"the options of optimizer {name!r} must be a {expected.__name__}, got a {type(options).__name__}"
                )

    @property
    def is_planned(self) -> bool:
        """Whether the run decides by itself how many steps there are, or repeats one that did."""
        left_open = self.optimizer == AUTO and self.steps is None and self.stages is None
        return (
            self.minutes is not None
            or self.plan is not None
            or (left_open and self.horizon is None and not self.max_seconds)
        )

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The run's stages; one where none were given."""
        if self.stages is not None:
            return parse_stages(self.stages)
        if self.optimizer != AUTO:
            return (Stage(self.optimizer, 0, self.steps or _USUAL_STEPS),)
        if not self.is_planned:
            return (Stage(USUAL_OPTIMIZER, 0, self.steps or _USUAL_STEPS),)
        return tuple(Stage(name, place, 1) for place, (name, _) in enumerate(find_recipe(self.recipe).stages))

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.all_stages[-1].end

    @property
    def views_a_step(self) -> int:
        """Views rendered per step."""
        return self.view_batch or 1

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the stages' optimizers in order, each once."""
        return tuple(dict.fromkeys(stage.optimizer for stage in self.all_stages))

    @property
    def options_by_name(self) -> dict[str, Any]:
        """The options that were given, by the optimizer's name."""
        if self.optimizer_options is None:
            return {}
        names = self.optimizers
        if isinstance(self.optimizer_options, Mapping) and (self.stages is not None or len(names) > 1):
            return dict(self.optimizer_options)
        if self.optimizer == AUTO and self.stages is None and not isinstance(self.optimizer_options, UnreadOptions):
            # A resumed run's is found out later: it is the one that these are options of.
            kind = type(self.optimizer_options)
            names = (*[name for name in optimizer_names() if find_optimizer(name).options is kind], *names)
        return {names[0]: self.optimizer_options}


@dataclass(frozen=True)
class ScoringOptions(runs.ScoringOptions):
    """When the test views are scored."""

    eval_every: int | None = field(default=None, metadata=bounds(0) | FREE_ON_RESUME)
    """Score the test views every so many steps; when None, and no other moments are asked for, about ten times
    over the run, seldomer in short ones, so that no more than one test view is scored for every five steps; 0 for only
    before and after. Unit: steps."""

    eval_at_seconds: tuple[float, ...] = field(default=(), metadata=bounds(0) | FREE_ON_RESUME)
    """Score the test views after the first step that ends past each of these times. Unit: seconds of training."""

    def is_due(self, step: int, planned: int, views: int) -> bool:
        """Whether the test views are scored after a step.

        Args:
            step: Steps done.
            planned: Steps of the whole run.
            views: How many are scored.
        """
        if self.eval_every is not None or self.eval_at or self.eval_at_seconds:
            return is_due(step, self.eval_every or 0) or step in self.eval_at
        times = min(_USUAL_TIMES_SCORED, planned // (_USUAL_STEPS_PER_VIEW_SCORED * views))
        return times * step // planned > times * (step - 1) // planned

    def is_due_by_time(self, since: float, seconds: float) -> bool:
        """Whether the test views are scored after a step in which ``since`` to ``seconds`` of training went by."""
        return any(since < moment <= seconds for moment in self.eval_at_seconds)


@dataclass(frozen=True)
class SavingOptions(runs.SavingOptions):
    """What is written while the run goes on, and where."""

    checkpoint_every: int = field(default=500, metadata=bounds(0) | FREE_ON_RESUME)
    """Write a checkpoint every so many steps; 0 for never by steps. Unit: steps."""


@dataclass(frozen=True)
class ProcessOptions(runs.ProcessOptions):
    """What computes, with how many threads and how much memory; no result depends on their number."""

    renderer: str = field(default="auto", metadata=FREE_ON_RESUME)
    """What renders: auto, native or reference on the CPU; triton, gsplat or reference on CUDA."""

    device: str = field(default="auto", metadata=FREE_ON_RESUME)
    """Where the run computes: auto (CUDA where there is a GPU and triton, else the CPU), cpu, cuda or cuda:N. Of
    several processes each takes the GPU of its own number."""

    instructions: str = field(default="auto", metadata=FREE_ON_RESUME)
    """Instruction set of renderer and optimizer on the CPU: avx512, avx2 or portable; auto for the fastest that this
    machine has. The last bits of the result depend on it."""

    process_timeout: float = field(default=600.0, metadata=bounds(1, _MAX_SECONDS) | FREE_ON_RESUME)
    """Of several processes (torchrun), how long one waits for the others before it counts them as lost; longer than
    the first one takes to score the test views. Unit: seconds."""

    def __post_init__(self) -> None:
        """Refuse what no run can do."""
        super().__post_init__()
        check_renderer_name(self.renderer)
        check_device_name(self.device)
        check_instructions_name(self.instructions)
