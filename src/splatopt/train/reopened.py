"""A finished run at each of its checkpoints, with the optimizer as it was there; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.core.checkpoint import whole_checkpoints
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress
from splatopt.data import Capture
from splatopt.runs.checkpoint_content import load_optimizer
from splatopt.runs.points import RunPoint
from splatopt.train.checkpoint_content import check_training
from splatopt.train.run import Run, run_at
from splatopt.train.setup import make_optimizer, starting_cloud


def scene_points(run: Run, capture: Capture, warnings: list[str]) -> Iterator[RunPoint]:
    """Yield a run at its start, made again where no checkpoint holds it, and at every whole checkpoint.

    Args:
        run: As it was opened.
        capture: What it was trained on, in the training frame.
        warnings: Gets a sentence for what is left out.

    Raises:
        InputError: An optimizer is not known here, or a checkpoint does not fit the run.
    """
    damages: list[str] = []
    found = whole_checkpoints(run.folder.checkpoints, damages, check_training)
    for number, checkpoint in enumerate(found):
        if number == 0 and checkpoint.step > 0 and (start := _start(run, capture, warnings)) is not None:
            yield start
        here = run_at(checkpoint, run.folder, run.config, run.frame)
        point = _point(here, capture, int(checkpoint.scalars.get("stage", 0)))
        load_optimizer(point.optimizer, checkpoint)
        yield point
    warnings += damages


def _start(run: Run, capture: Capture, warnings: list[str]) -> RunPoint | None:
    """A run before its first step; None, with a warning, where what it began from is gone."""
    generator = torch.Generator().manual_seed(run.config.schedule.seed)
    try:
        cloud = starting_cloud(run.config, capture, generator, warnings)
    except InputError as error:
        warnings.append(f"{error}; the run's start is left out")
        return None
    return _point(Run(run.folder, run.config, cloud, run.frame, 0, 0.0, ()), capture, 0)


def _point(run: Run, capture: Capture, position: int) -> RunPoint:
    stages = run.config.schedule.all_stages
    stage = stages[min(position, len(stages) - 1)]
    objective = run.objective(capture)
    generator = torch.Generator().manual_seed(run.config.schedule.seed)
    optimizer = make_optimizer(stage.optimizer, run.config, objective, generator)
    optimizer.threads, optimizer.instructions = run.machine.threads, run.machine.instructions
    progress = Progress(run.steps - stage.begin, run.config.schedule.horizon or stage.steps)
    return RunPoint(run.steps, stage.optimizer, objective, optimizer, progress)
