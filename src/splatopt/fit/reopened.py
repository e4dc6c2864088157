"""A finished fit at each of its checkpoints, with the optimizer as it was there; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from splatopt.core.checkpoint import Checkpoint, whole_checkpoints
from splatopt.core.optimizer import Progress
from splatopt.fit.checkpoint_content import check_fit, load_field
from splatopt.fit.loop import open_field
from splatopt.fit.setup import open_task
from splatopt.optim.field_optimizers import make_field_optimizer
from splatopt.runs.checkpoint_content import load_optimizer
from splatopt.runs.folder import FIELD_FORMAT, RunFolder
from splatopt.runs.points import RunPoint


def field_points(folder: Path, warnings: list[str]) -> Iterator[RunPoint]:
    """Yield a fit at its start, made again where no checkpoint holds it, and at every whole checkpoint.

    Args:
        folder: The fit's.
        warnings: Gets a sentence for what is left out.

    Raises:
        InputError: There is no fit, its target is gone or another one, or it holds no whole checkpoint.
    """
    config, task, _ = open_field(folder)
    schedule = config.schedule

    def point(checkpoint: Checkpoint, step: int) -> RunPoint:
        generator = torch.Generator().manual_seed(schedule.seed)
        begun = make_field_optimizer(
            schedule.optimizer, task, config.network.field, schedule.optimizer_options, generator
        )
        if step == checkpoint.step:
            load_optimizer(begun, checkpoint)
        per_epoch = -(-task.size // max(1, checkpoint.scalars["sampler"]["batch"]))
        steps = schedule.steps or (schedule.epochs or 1) * per_epoch
        return RunPoint(step, schedule.optimizer, task, begun, Progress(step, steps))

    damages: list[str] = []
    found = whole_checkpoints(RunFolder(folder, FIELD_FORMAT).checkpoints, damages, check_fit)
    for number, checkpoint in enumerate(found):
        if number == 0 and checkpoint.step > 0:
            start = open_task(config, torch.Generator().manual_seed(schedule.seed)).task
            for name, value in task.parameters.items():
                value.copy_(start.parameters[name])
            yield point(checkpoint, 0)
        load_field(task, checkpoint)
        yield point(checkpoint, checkpoint.step)
    warnings += damages
