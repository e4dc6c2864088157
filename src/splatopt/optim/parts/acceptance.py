"""Acceptances: whether a step is taken, and what follows from what it was worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from splatopt.core.objective import Batch, Evaluation, Objective


@dataclass(frozen=True)
class Trial:
    """A step that has not been taken.

    Attributes:
        batch: What its evaluation was on.
        evaluation: Loss and gradient where it begins.
        step: The change of every parameter.
        updates: Whether the step knows of the batch's gradient.
    """

    batch: Batch
    evaluation: Evaluation
    step: dict[str, Tensor]
    updates: bool


class Acceptance(ABC):
    """Takes a step, or a part of it, or none."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the last step's evaluation says beside, for a run's metrics."""
        return {}

    def judges(self, step: int) -> bool:
        """Whether step ``step``, the first being 1, is to be tried before its batch's gradient is heard."""
        return False

    @abstractmethod
    def take(self, trial: Trial) -> None:
        """Move the objective's parameters by what is accepted of a trial."""


class Always(Acceptance):
    """Every step is taken whole."""

    def __init__(self, objective: Objective) -> None:
        """Keep whose parameters are moved."""
        self._objective = objective

    def take(self, trial: Trial) -> None:
        """θ ← θ + d."""
        for name, change in trial.step.items():
            self._objective.parameters[name].add_(change)
