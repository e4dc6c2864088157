"""The settings of ``splatopt.train(…)`` by their types, so that editors complete and check them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from splatopt.data.seen_pixels import MaskUse
from splatopt.raster.types import Footprint
from splatopt.scene.exposure import Exposure
from splatopt.train.sampler import ViewChoice


class TrainSettings(TypedDict, total=False):
    """Every setting of ``TrainConfig`` but the capture; ``splatopt train --help`` says what each does.

    A test compares the lines with the groups in ``options.py`` and says which to add or take out.
    """

    input_views: int
    images: str | None
    mask: MaskUse | str
    downscale: int
    max_side: int | None
    skip_missing: bool
    cache_mebibytes: int
    test_every: int
    init: str
    random_points: int
    sh_degree: int
    sh_interval: int | None
    loss: str
    loss_options: object
    ssim_weight: float
    background: tuple[float, float, float] | None
    exposure: Exposure | str
    footprint: Footprint | str
    refine_poses: bool
    optimizer_options: object
    seed: int
    minutes: float | None
    until_plateau: bool
    recipe: str
    plan: Path | str | None
    optimizer: str
    stages: str | None
    steps: int | None
    levels: str
    horizon: int | None
    average: float
    max_seconds: float
    view_batch: int | None
    view_choice: ViewChoice | str
    density: str
    density_options: object
    max_gaussians: int | None
    max_megabytes: float | None
    eval_at: tuple[int, ...]
    eval_every: int | None
    eval_at_seconds: tuple[float, ...]
    out: Path | str | None
    resume: bool
    checkpoint_seconds: float
    log_every: int
    checkpoint_every: int
    threads: int
    max_memory: float
    plugins: Sequence[Path | str]
    renderer: str
    device: str
    instructions: str
    process_timeout: float
