"""The settings of ``splatopt.fit(…)`` by their types, so that editors complete and check them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from splatopt.fit.options import TaskKind


class FitSettings(TypedDict, total=False):
    """Every setting of ``FitConfig`` but the target; ``splatopt fit --help`` says what each does.

    A test compares the lines with the groups in ``options.py`` and says which to add or take out.
    """

    task: TaskKind | str
    max_side: int | None
    points: int
    samples: int
    test_every: int
    sigma: float | None
    omega: float | None
    scale: float | None
    frequencies: int | None
    field: str
    width: int
    depth: int
    optimizer_options: object
    seed: int
    optimizer: str
    epochs: int | None
    steps: int | None
    batch: int | None
    eval_at: tuple[int, ...]
    eval_every: int | None
    score_views: int
    resolution: int
    out: Path | str | None
    resume: bool
    checkpoint_seconds: float
    log_every: int
    threads: int
    max_memory: float
    plugins: Sequence[Path | str]
