"""What a checkpoint of a fit holds, checked before anything is made of it."""

from __future__ import annotations

import sys

from splatopt.core.checkpoint import Checkpoint, below, check_like, damage_in
from splatopt.core.typed import Fields
from splatopt.fields.task import Task
from splatopt.runs.checkpoint_content import OPTIMIZER, check_finite, check_state_numbers, check_tensors

FIELD = "field."
"""What the names of a field's tensors begin with."""


def check_fit(checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint holds all that a fit goes on from; whether it fits the field is seen later.

    Raises:
        DamagedCheckpointError: It does not; names the checkpoint.
    """
    check_tensors(checkpoint, (FIELD, OPTIMIZER), ("generator",))
    check_finite(checkpoint, FIELD)
    numbers = checkpoint.fields
    with damage_in(numbers.where):
        numbers.number("seconds", minimum=0)
        sampler = numbers.object("sampler")
        size, batch = sampler.count("size"), sampler.count("batch")
        sampler.count("seed")
        sampler.count("position", maximum=size + batch)
        loss = numbers.entries("loss")
        if len(loss) != 2:
            raise numbers.refusal("loss", "a sum and a count")
        mean = Fields({"sum": loss[0], "count": loss[1]}, f"{numbers.where}: loss")
        mean.number("sum", minimum=0, maximum=sys.float_info.max)
        mean.count("count")
        check_state_numbers(numbers.object("optimizer"))


def load_field(task: Task, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's parameters into the task's field; raises InputError where they do not fit."""
    kept = below(checkpoint.tensors, FIELD)
    check_like(kept, task.parameters, f"{checkpoint.where}: the field that config.json describes")
    for name, value in task.parameters.items():
        value.copy_(kept[name])
