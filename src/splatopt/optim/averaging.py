"""The running average of a run's iterates, kept in place of the last one.

θ̄ₜ = θ̄ₜ₋₁ + (k+1)/(k+t) · (θₜ - θ̄ₜ₋₁)

weights the iterate of step t like tᵏ: about the last 1/(k+1) of a run counts, whatever its length, and the first
steps are forgotten. Steps may then stay long, since what they scatter is averaged away. t is counted for each row, in
steps since it is there. Rows that a step did not see are averaged as well: those that are seldom seen would otherwise
stay behind their last move for long.

Source: Shamir and Zhang 2013, "Stochastic Gradient Descent for Non-smooth Optimization" (polynomial-decay averaging).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from splatopt.core.objective import Batch, Evaluation, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState, StatePart, load_like

_NAME = "average"


class RunningAverage(StatePart):
    """Two versions of the parameters, the last iterate and the average; one is here, the other in the objective."""

    def __init__(self, parameters: Tensors, power: float) -> None:
        """Begin with the average at ``parameters``.

        Args:
            parameters: All with the same rows.
            power: k; 0 for the plain mean.
        """
        self.power = power
        self.values = {name: value.detach().clone() for name, value in parameters.items()}
        first = next(iter(parameters.values()))
        self.ages = torch.zeros(len(first), dtype=torch.float32, device=first.device)
        self._one_age: int | None = 0

    @contextmanager
    def stepping(self, parameters: Tensors) -> Iterator[None]:
        """Have the last iterate in ``parameters`` for a while, and the average before and after it."""
        self.exchange(parameters)
        try:
            yield
        finally:
            self.exchange(parameters)

    def exchange(self, parameters: Tensors) -> None:
        """Let the two versions change places; no number is copied."""
        for name, parameter in parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def take_in(self, iterate: Tensors) -> None:
        """Move the average, which is here, towards ``iterate``."""
        self.ages += 1
        if self._one_age is not None:
            # One number for all rows: a third of the time of a column of them.
            self._one_age += 1
            share = average_weight(torch.tensor(float(self._one_age)), self.power).item()
            for name, value in self.values.items():
                value.lerp_(iterate[name], share)
            return
        weight = average_weight(self.ages, self.power)
        for name, value in self.values.items():
            value.lerp_(iterate[name], weight.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1)))

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Follow an edit; rows that are fresh or written begin anew at ``parameters``, which were edited before."""
        anew = edit.fresh.clone()
        for written in edit.values.values():
            anew[written.rows] = True
        for name, parameter in parameters.items():
            values = edit.gather(self.values[name])
            values[anew] = parameter.detach()[anew]
            self.values[name] = values
        self.ages = edit.gather(self.ages)
        self.ages[anew] = 0
        self._one_age = _one_of(self.ages)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is here, as it is saved."""
        return {f"{_NAME}.{name}": value for name, value in {**self.values, "ages": self.ages}.items()}

    def load(self, state: OptimizerState) -> None:
        """Go on from what :meth:`tensors` gave; raises InputError where it does not fit."""
        kept = load_like(self.values | {"ages": self.ages}, state.tensors, _NAME)
        self.ages = kept.pop("ages")
        self._one_age = _one_of(self.ages)
        self.values = kept


class Averaged(Optimizer):
    """Any optimizer whose steps go on from its last iterate, and which leaves the average of its iterates."""

    def __init__(self, inner: Optimizer, power: float) -> None:
        """Average what ``inner`` does.

        Args:
            inner: Takes the steps.
            power: k.
        """
        self.inner = inner
        super().__init__(inner.objective, inner.options, inner.generator)
        self.warnings = inner.warnings
        self._average = self.remember(RunningAverage(inner.objective.parameters, power))

    @property
    def needs(self) -> frozenset[Oracle]:  # type: ignore[override] # of one optimizer, not of a class
        """What the inner one needs."""
        return self.inner.needs

    @property
    def batch_size(self) -> int | None:
        """The inner one's."""
        return self.inner.batch_size

    def check_batch(self, batch: Batch) -> None:
        """Ask the inner one."""
        self.inner.check_batch(batch)

    def memory_needed(self, batch: Batch) -> int:
        """Return what the inner one needs."""
        return self.inner.memory_needed(batch)

    def position_rate(self, progress: Progress) -> float | None:
        """Return the inner one's."""
        return self.inner.position_rate(progress)

    def at_last_iterate(self) -> AbstractContextManager[None]:
        """Have the last iterate change places with the average for a while."""
        return self._average.stepping(self.objective.parameters)

    @torch.no_grad()
    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Take the inner one's step from the last iterate; the evaluation is of that."""
        self.inner.threads, self.inner.instructions = self.threads, self.instructions
        parameters = self.objective.parameters
        with self._average.stepping(parameters):
            evaluation = self.inner.step(batch, progress)
            self._average.take_in(parameters)
        return evaluation

    def state(self) -> OptimizerState:
        """Return the inner one's, and the last iterate."""
        inner, own = self.inner.state(), super().state()
        return OptimizerState({**inner.tensors, **own.tensors}, inner.scalars)

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit."""
        super().load_state(state)
        own = {name: value for name, value in state.tensors.items() if not name.startswith(f"{_NAME}.")}
        self.inner.load_state(OptimizerState(own, state.scalars))

    def follow_level(self, ratio: float) -> None:
        """Have the inner one follow; an average of iterates knows no pixels."""
        self.inner.follow_level(ratio)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Follow an edit; the inner one sees the last iterate."""
        parameters = self.objective.parameters
        super().edit_rows(edit)
        with self._average.stepping(parameters):
            self.inner.edit_rows(edit)


def _one_of(ages: Tensor) -> int | None:
    """Return the age that all rows have, None where they differ."""
    return int(ages[0]) if len(ages) and bool((ages == ages[0]).all()) else None


def average_weight(ages: Tensor, power: float) -> Tensor:
    """Return (k+1)/(k+t): how far the average of a row goes to its iterate at its step t."""
    return (power + 1) / (power + ages.clamp(min=1))
