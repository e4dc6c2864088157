"""Directions: where a step goes, and what curvature it is measured with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from splatopt.core.objective import Batch, Evaluation, Objective, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.state import Number
from splatopt.optim.fused import AnyFusedPasses, fused_passes


@dataclass(frozen=True)
class Quotient:
    """A change -factor · numerator/denominator of a parameter, elementwise; the denominator may be overwritten."""

    numerator: Tensor
    denominator: Tensor
    factor: float


@dataclass(frozen=True)
class Share:
    """A change -values · radius of a parameter, of any size; the values may be overwritten."""

    values: Tensor


@dataclass(frozen=True)
class Solved:
    """A change of some rows that was found within the bound, and is taken as it is."""

    rows: Tensor
    step: Tensor


@dataclass(frozen=True)
class Whole:
    """A change +step of a parameter that nothing bounds."""

    step: Tensor


Change = Quotient | Share | Solved | Whole


class Point(NamedTuple):
    """What a move is made of.

    Attributes:
        parameters: What is moved, in place: the objective's own, or copies.
        gradient: ∂loss/∂θ at the point where the step began.
        seen: Rows that the batch touches, (N,) bool; None for all.
        updates: Whether means of gradients take this gradient in.
    """

    parameters: Tensors
    gradient: Tensors
    seen: Tensor | None
    updates: bool = True


class Direction(ABC):
    """Asks the objective, keeps means of what it hears, and says how every parameter should change."""

    asks_twice: ClassVar[bool] = False
    """Whether it asks several questions at one point, which the objective is then told."""

    def __init__(self, host: Optimizer) -> None:
        """Declare the state.

        Args:
            host: The optimizer that it is part of: it remembers the state and says what is minimised.
        """
        self._host = host
        self.objective: Objective = host.objective
        self.steps = host.remember(Number("steps", 0))

    def at_one_point(self) -> AbstractContextManager[None]:
        """Return what is open while questions are asked."""
        return self.objective.fixed_parameters() if self.asks_twice else nullcontext()

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient, having measured the curvature that is due; ``steps`` steps are done."""
        return self.objective.gradient(batch)

    @property
    def usable(self) -> bool:
        """Whether a step can be made of what was evaluated last."""
        return True

    @property
    def measured(self) -> bool:
        """Whether curvature was measured in this step."""
        return False

    @property
    def wants_trial(self) -> bool:
        """Whether it wants to see the step before that is taken; :meth:`learn` gets it."""
        return False

    def trial(self, move: Callable[[Tensors], None]) -> dict[str, Tensor]:
        """Return the step without taking it; ``move`` would take it from the parameters that it is given."""
        parameters = self.objective.parameters
        moved = {name: value.clone() for name, value in parameters.items()}
        move(moved)
        return {name: value.sub_(parameters[name]) for name, value in moved.items()}

    def learn(self, batch: Batch, step: Tensors) -> None:  # noqa: B027 - most want no trial
        """Measure along a step that has not been taken, at the point where it begins."""

    @abstractmethod
    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Bring the means up to date and yield how parameters change, one after the other."""

    def release(self) -> None:  # noqa: B027 - most keep nothing for the rest of a step
        """Forget what was measured for this step alone."""

    def fused_passes(self, *clouds: Tensors) -> AnyFusedPasses | None:
        """Return the fused passes that take these tensors, or None."""
        return fused_passes(self._host.threads, *clouds, isa=self._host.instructions)
