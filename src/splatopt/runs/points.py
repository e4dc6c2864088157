"""A run at one of its checkpoints, with the optimizer as it was there."""

from __future__ import annotations

from dataclasses import dataclass

from splatopt.core.objective import Objective
from splatopt.core.optimizer import Optimizer, Progress


@dataclass(frozen=True)
class RunPoint:
    """A run after so many steps.

    Attributes:
        step: Steps done.
        name: The optimizer's name.
        objective: What is trained, as it was.
        optimizer: About to take the next step.
        progress: Where that step stands.
    """

    step: int
    name: str
    objective: Objective
    optimizer: Optimizer
    progress: Progress
