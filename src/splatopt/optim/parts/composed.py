"""The loop that all composed optimizers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from splatopt.core.objective import Batch, Evaluation, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.optim.fused_steps import find_fused_step
from splatopt.optim.parts.acceptance import Acceptance, Always, Trial
from splatopt.optim.parts.bounds import StepBound
from splatopt.optim.parts.direction import Direction, Point
from splatopt.optim.parts.projections import Projection


@dataclass(frozen=True)
class Parts:
    """What an optimizer is composed from.

    Attributes:
        direction: Where a step goes.
        bound: How far.
        acceptance: Whether it is taken; always when None.
        projections: What parameters are brought back to.
    """

    direction: Direction
    bound: StepBound
    acceptance: Acceptance | None = None
    projections: tuple[Projection, ...] = ()


class ComposedOptimizer(Optimizer):
    """A direction within a step bound, accepted, and projected; final classes say in :meth:`compose` which.

    A step evaluates and measures, moves every parameter along its direction within its bound, or tries that on copies
    where direction or acceptance want to see the step first, and projects. A combination of parts that fused passes
    know is moved by them, see ``splatopt.optim.fused_steps``; all others by the same formulas in torch.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT})

    def __init__(self, objective: Objective, options: Any, generator: torch.Generator | None = None) -> None:
        """Compose the parts, which declare the state; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        parts = self.compose()
        self.direction, self.bound, self.projections = parts.direction, parts.bound, parts.projections
        self.acceptance = parts.acceptance or Always(objective)
        self._fused_step = find_fused_step(parts.direction, parts.bound, parts.projections)

    @abstractmethod
    def compose(self) -> Parts:
        """Return the parts, made of ``self.options``; called once."""

    def position_rate(self, progress: Progress) -> float | None:
        """Return the bound's."""
        return self.bound.position_rate(progress)

    @torch.no_grad()
    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Take one step on ``batch`` and return the evaluation at the point it started from."""
        direction, acceptance = self.direction, self.acceptance
        self.bound.begin(progress)
        direction.release()  # of a step that an error ended
        trial = None
        with direction.at_one_point():
            evaluation = direction.evaluate(batch, progress)
            if not direction.usable:
                return evaluation
            direction.steps.value += 1
            is_held_out = direction.measured and acceptance.judges(direction.steps.value)
            if is_held_out or direction.wants_trial:
                trial = self._try(batch, evaluation, updates=not is_held_out)
        if trial is None:
            self._move(self.objective.parameters, evaluation)
        else:
            acceptance.take(trial)
        for projection in self.projections:
            projection.hold(self.objective.parameters)
        direction.release()
        return _with_facts(evaluation, acceptance.metrics)

    def _try(self, batch: Batch, evaluation: Evaluation, updates: bool) -> Trial:
        step = self.direction.trial(lambda parameters: self._move(parameters, evaluation, updates))
        self.direction.learn(batch, step)
        return Trial(batch, evaluation, step, updates)

    def _move(self, parameters: Tensors, evaluation: Evaluation, updates: bool = True) -> None:
        """Move all of ``parameters`` once."""
        direction, bound = self.direction, self.bound
        at = Point(parameters, evaluation.gradient, evaluation.seen, updates)
        if self._fused_step is not None and self._fused_step(direction, bound, at):
            return
        bound.measure(parameters)
        with ExitStack() as stack:
            for projection in self.projections:
                stack.enter_context(projection.around(parameters))
            for name, change in direction.changes(at):
                bound.apply(name, parameters[name], change)
        bound.release()


def _with_facts(evaluation: Evaluation, metrics: Mapping[str, float]) -> Evaluation:
    return replace(evaluation, metrics={**evaluation.metrics, **metrics}) if metrics else evaluation
