"""Before a run begins: how much memory it will need, by counting, and whether there is so much.

Counted is what training adds to what Python and PyTorch hold already: per Gaussian the parameters, the gradient, the
optimizer's state and what its other questions fill; per pair of Gaussian and tile the renderer's lists; per pixel
its planes, residuals and the scoring; and the photographs that are kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core import devices
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.devices import gibibytes
from splatopt.core.objective import Batch, Evaluation, Objective, Oracle, Residuals, Tensors
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer
from splatopt.core.schema import BLOCK_TENSORS, PACKED_BLOCK
from splatopt.data import Capture
from splatopt.data.image_store import shrunk_size
from splatopt.data.prefetch import DEVICE_BYTES
from splatopt.density.penalised import Penalised
from splatopt.density.strategy import DensityLimits
from splatopt.optim.bridge import TorchOptimizer
from splatopt.optim.dry_run import SECONDS, STEPS, CountedMemory, count_memory
from splatopt.raster.constants import MIN_ALPHA
from splatopt.raster.reference_projection import project_reference
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.runs.memory import GIBIBYTE, SCORING, MemoryEstimate
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.levels import parse_levels
from splatopt.train.process_context import ProcessContext
from splatopt.train.setup import make_optimizer, make_strategy

FACTOR = 1.5
"""The measured peak lies within this factor of the estimate, on the CPU with the native renderer."""

_FLOAT = 4
ROW_STATISTICS = 15 * _FLOAT
"""Bytes a Gaussian of the objective's RowStatistics: six sums and a cross term of nine."""

POSE_ROW, POSE_PIXEL = 700, 450
"""Bytes a Gaussian and a pixel where poses are refined: six tangents, and six columns of residuals in float64."""

_TILE = 16
_SAMPLE_ROWS, _SAMPLE_VIEWS, _TWIN_ROWS = 2048, 6, 16
_TRIAL_ROWS = (256, 16_384)
"""Rows that an optimizer is tried on whose needs nobody knows, at least and at most. With fewer, 59 numbers for each of
a few copies are as many as a matrix over rows has; where there are more, what an optimizer does to a dimension that is
too long for it, it does to this one."""


def check_memory(
    config: TrainConfig, capture: Capture, cloud: GaussianCloud, renderer: Renderer, context: ProcessContext
) -> MemoryEstimate:
    """Return what the run will need.

    Args:
        config: What is done.
        capture: What is trained on.
        cloud: Where training begins, on the host.
        renderer: What renders.
        context: Where; its device is asked what is free.

    Raises:
        InputError: It needs more than ``--max-memory``, or than what is free; says how much.
    """
    needed = estimate_memory(config, capture, cloud, renderer, on_host=context.device.type == "cpu")
    allowed = round(config.processes.max_memory * GIBIBYTE) or context.free_memory()
    if needed.total <= allowed:
        return needed
    have = (
        f"--max-memory allows {config.processes.max_memory:g}"
        if config.processes.max_memory
        else f"{gibibytes(allowed)} are free"
    )
    bound = " (--max-gaussians)" if config.density.is_at_work else ""
    raise InputError(
        f"{needed.sentence}, and {have}; take smaller photographs (--downscale), fewer Gaussians{bound}, a smaller "
        "--cache-mebibytes, an optimizer that keeps less, or allow more with --max-memory"
    )


def estimate_memory(
    config: TrainConfig, capture: Capture, cloud: GaussianCloud, renderer: Renderer, *, on_host: bool
) -> MemoryEstimate:
    """Count what training takes.

    Args:
        config: What is done; of several stages the hungriest counts, and where a density strategy is at work as many
            Gaussians as it may make.
        capture: What is trained on.
        cloud: Where training begins.
        renderer: What renders.
        on_host: Whether the photographs are rendered where they are kept.
    """
    cameras = [capture.cameras[view] for view in capture.split.train]
    most = config.density.max_gaussians if config.density.is_at_work else None
    count = max(len(cloud), most or 0)
    numbers = sum(value[0].numel() for value in cloud.tensors.values() if len(value))
    pixels = max(camera.width * camera.height for camera in cameras)
    pairs = math.ceil(count_tile_pairs(cloud, cameras, config) * count / max(1, len(cloud)))
    hungers = [measure_optimizer(name, config, cloud, renderer, on_host=on_host) for name in config.schedule.optimizers]
    optimizer_memory = max(hungers, key=lambda one: one.row_bytes)
    kept = image_bytes(config, cameras)
    residuals = 2 * 3 * _FLOAT * pixels if any(one.residuals for one in hungers) else 0
    # An edit holds the old Gaussians and the new ones at once.
    strategy = numbers * _FLOAT + strategy_row_bytes(config, cloud, renderer) if most else 0
    return MemoryEstimate(
        {
            "parameters": count * numbers * _FLOAT,
            "gradient": count * (numbers * _FLOAT + 1),
            f"optimizer {optimizer_memory.name}": count * optimizer_memory.row_bytes,
            "density strategy": count * strategy,
            "renderer": renderer.memory_needed(count, pixels, pairs, optimizer_memory.asked),
            "residuals": residuals,
            "poses": (POSE_ROW * count + POSE_PIXEL * pixels) * config.scene.refine_poses,
            "photographs": kept if on_host else min(DEVICE_BYTES, kept),
            "scoring": SCORING * pixels,
        },
        row_bytes=2 * numbers * _FLOAT + 1 + optimizer_memory.row_bytes + strategy,
    )


def image_bytes(config: TrainConfig, cameras: Sequence[Camera]) -> int:
    """Return the bytes of decoded photographs that are kept, and of those of the largest level beside them."""
    factors = [1, *(level.factor for level in parse_levels(config.schedule.levels)[-1:])]
    sizes = [[shrunk_size(one.width, one.height, factor) for one in cameras] for factor in factors]
    whole = (3 * sum(width * height for width, height in some) for some in sizes)
    return sum(min(config.data.cache_mebibytes << 20, some) for some in whole)


def strategy_row_bytes(config: TrainConfig, cloud: GaussianCloud, renderer: Renderer) -> int:
    """Return the bytes that the run's density strategy keeps of a Gaussian, by making one for a few.

    It is made for whatever it needs; where the renderer does not give that, it refuses when it is made for the run.
    """
    twin = _SampleObjective(_few(cloud, min(_TWIN_ROWS, len(cloud))), renderer)
    with contextlib.suppress(InputError):
        strategy = make_strategy(config, Penalised(twin), DensityLimits(len(twin.cloud), ()), torch.Generator())
        return math.ceil(_bytes(strategy.state().tensors.values()) / max(1, len(twin.cloud)))
    return 0


def count_tile_pairs(cloud: GaussianCloud, cameras: Sequence[Camera], config: TrainConfig) -> int:
    """Estimate how many pairs of Gaussian and tile of 16x16 pixels the fullest view has, from a sample of both."""
    rows = torch.arange(0, len(cloud), max(1, math.ceil(len(cloud) / _SAMPLE_ROWS)))
    if not len(rows):
        return 0
    sample = cloud.map(lambda tensor: tensor.detach()[rows.to(tensor.device)].cpu().float())
    sample = sample.with_sh_degree(0)
    options = RenderOptions(footprint=config.scene.footprint)
    step = max(1, math.ceil(len(cameras) / _SAMPLE_VIEWS))
    counts = [_tile_pairs(sample, camera, options) for camera in cameras[::step]]
    return math.ceil(max(counts) * len(cloud) / len(rows))


def _tile_pairs(cloud: GaussianCloud, camera: Camera, options: RenderOptions) -> int:
    """Count the tiles under each Gaussian's bounding box where α may reach 1/255, on one view."""
    with torch.no_grad():
        splats = project_reference(cloud, camera, options)
        reach = 2 * (splats.opacities / MIN_ALPHA).clamp_min(1.0).log()
        extent = (reach[:, None] * splats.covariances[:, [0, 2]]).sqrt()
        size = torch.tensor([camera.width, camera.height])
        low = ((splats.means - extent).clamp_min(0) / _TILE).floor()
        high = (torch.minimum(splats.means + extent, size) / _TILE).ceil()
        tiles = (high - low).clamp_min(0).nan_to_num(0, 0, 0).prod(dim=1)
    return int(tiles[splats.opacities >= MIN_ALPHA].sum())


# ---------------------------------------------------------------------- the optimizer's part


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer takes.

    Attributes:
        name: Its name.
        row_bytes: Bytes a Gaussian: its state, the buffers of what it asks beside the gradient, and what a step or
            a checkpoint holds for a while.
        residuals: Whether it asks for products with the Jacobian, which hold the residuals of one view at a time.
        asked: The questions of a step.
    """

    name: str
    row_bytes: int
    residuals: bool
    asked: frozenset[Oracle]


def measure_optimizer(
    name: str, config: TrainConfig, cloud: GaussianCloud, renderer: Renderer, *, on_host: bool
) -> OptimizerMemory:
    """Find out what an optimizer takes by making one for a few rows; one that others wrote takes some steps as well.

    Args:
        name: The optimizer.
        config: Gives its options.
        cloud: Where training begins; a few of its rows are taken.
        renderer: Says which questions may be asked.
        on_host: Whether checkpoints are made where the run computes.

    Raises:
        InputError: It is one that others wrote, and takes more than a run can give.
    """
    foreign = len(cloud) > 0 and issubclass(find_optimizer(name).optimizer, TorchOptimizer)
    rows = min(max(len(cloud), _TRIAL_ROWS[0]), _TRIAL_ROWS[1]) if foreign else min(_TWIN_ROWS, len(cloud))
    twin = _SampleObjective(_few(cloud, rows), renderer)
    held = needed = 0
    if foreign:
        made, peak = _trial_step(name, config, twin, len(cloud))
    else:
        made, peak = _optimizers_of(name, config, twin), 0
    for optimizer in made:
        held = optimizer.state_bytes()
        needed = max(peak - held, optimizer.memory_needed((0,)))
    # A checkpoint is copied and then written out: twice on the host.
    checkpoint = 2 * (_bytes(twin.parameters.values()) + held) if on_host else 0
    for_a_while = max(needed, twin.temporary_bytes, checkpoint)
    row_bytes = math.ceil((held + twin.buffer_bytes + for_a_while) / max(1, rows))
    return OptimizerMemory(name, row_bytes, bool(twin.asked & _WITH_RESIDUALS), twin.asked)


def _few(cloud: GaussianCloud, count: int) -> GaussianCloud:
    """So many rows of a cloud, some more than once where it has fewer."""
    chosen = torch.arange(count) % max(1, len(cloud))
    return GaussianCloud(**{key: value.cpu()[chosen] for key, value in cloud.tensors.items()})


def _optimizers_of(name: str, config: TrainConfig, twin: _SampleObjective) -> list[Optimizer]:
    """The optimizer; none where it refuses, which it does again, in better words, when it is made for the run."""
    with contextlib.suppress(InputError):
        return [make_optimizer(name, config, twin, torch.Generator().manual_seed(0))]
    return []


def _trial_step(name: str, config: TrainConfig, twin: _SampleObjective, count: int) -> tuple[list[Optimizer], int]:
    """The optimizer after a few steps, and the bytes that it took at its peak.

    Args:
        name: The optimizer.
        config: Gives its options.
        twin: What it steps on.
        count: Gaussians of the scene, for a message.
    """
    made: list[Optimizer] = []

    def work() -> None:
        made.extend(_optimizers_of(name, config, twin))
        for step in range(STEPS):
            for optimizer in made:
                optimizer.step((0,), Progress(step, config.schedule.horizon or config.schedule.total_steps))

    matrix = len(twin.cloud) ** 2 * _FLOAT // 2  # of half precision, too
    why = f"works with a matrix that has a row and a column for each of the {count:,} Gaussians"
    memory = CountedMemory(devices.free_memory(torch.device("cpu")), SECONDS, (matrix, why))
    return made, count_memory(name, work, memory, "take another optimizer")


_WITH_RESIDUALS = frozenset({Oracle.JVP, Oracle.VJP})


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _SampleObjective(Objective):
    """A few rows of the scene that an optimizer can be made for; notes which questions it will ask."""

    def __init__(self, cloud: GaussianCloud, renderer: Renderer) -> None:
        self.cloud, self.renderer = cloud, renderer
        self.asked: frozenset[Oracle] = frozenset({Oracle.GRADIENT})
        self._generator = torch.Generator().manual_seed(0)
        self._gradient = {name: torch.empty_like(value) for name, value in cloud.tensors.items()}

    @property
    def buffer_bytes(self) -> int:
        """What the real objective keeps for the questions beside the gradient."""
        whole = _bytes(self.cloud.tensors.values())
        blocks = len(self.cloud) * _FLOAT * PACKED_BLOCK + _bytes([self.cloud.sh_rest])
        others = {Oracle.GRADIENT, Oracle.JVP, Oracle.GAUSS_NEWTON_BLOCKS, Oracle.STATISTICS}
        kept = whole * len(self.asked - others) + ROW_STATISTICS * len(self.cloud) * (Oracle.STATISTICS in self.asked)
        return kept + (blocks if Oracle.GAUSS_NEWTON_BLOCKS in self.asked else 0)

    @property
    def temporary_bytes(self) -> int:
        """Copies in the parameters' shapes while a step is taken: of the largest tensor, or probes and old values."""
        whole = _bytes(self.cloud.tensors.values())
        return 2 * whole if self.asked - {Oracle.GRADIENT, Oracle.STATISTICS} else _bytes([self.cloud.sh_rest])

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.cloud.tensors

    @property
    def oracles(self) -> frozenset[Oracle]:
        return self.renderer.oracles

    @property
    def length_scale(self) -> float:
        return 1.0

    @property
    def backend(self) -> str:
        return self.renderer.name

    @property
    def block_names(self) -> tuple[str, ...]:
        return BLOCK_TENSORS

    def require(self, needed: frozenset[Oracle], who: str) -> None:
        self.asked |= needed
        super().require(needed, who)

    def empty_residuals(self, batch: Batch) -> Residuals:
        return ()

    def gradient(self, batch: Batch) -> Evaluation:
        """Return any numbers: how many an optimizer keeps does not depend on them."""
        for part in self._gradient.values():
            part.normal_(generator=self._generator)
        return Evaluation(1.0, self._gradient, None, {})

    def exact_hvp(self, batch: Batch, tangent: Tensors) -> Tensors:
        return {name: torch.ones_like(value) for name, value in self.parameters.items()}
