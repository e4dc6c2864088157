"""One objective for several processes: each looks at its share of a batch's views, and all get the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splatopt.core.combining import arguments_of, blank, outline, put_together, take_apart, weight
from splatopt.core.objective import (
    Batch,
    Combine,
    DiagonalEstimator,
    MissingOracleError,
    Objective,
    Question,
    Residuals,
    Tensors,
)
from splatopt.core.processes import Processes
from splatopt.core.wrapped import WrappedObjective, scaled, zeros_like


class DataParallel(WrappedObjective):
    """The mean over a batch's V parts, of which rank k of a world of P evaluates the parts k, k + P and so on.

    A rank's parts are its microbatch, and the answers for the microbatches are combined as each question's row
    declares (:mod:`splatopt.core.combining`): means are summed over the processes, and residuals and J v are handed to
    all by the process that has them. The answers are the same bits in every process, so optimizers that start alike
    stay alike; to the answers of one process they are equal up to the order of the sums. A process without any part
    adds zeros. Where the inner objective answers with its own buffers, the sums are formed in them.

    The inner objective's ``split(batch, P)`` must hand out parts in that order, as Objective.split says.
    """

    def __init__(self, inner: Objective, processes: Processes) -> None:
        """Share ``inner``'s batches among ``processes``, all of which must ask the same questions in one order."""
        super().__init__(inner)
        self.processes = processes
        self._forms: dict[str, tuple[list[torch.Size], str]] = {}

    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return the answer for the whole batch."""
        row = self.questions[name]
        if row.composed:
            return self.compose(name, batch, *arguments)
        self.require(row.needs, name)  # by all, also by those that have no part to be refused over
        mine, share, all_have = self._mine(batch)
        positions = slice(self.processes.rank, None, self.processes.world_size)

        def ask() -> object:
            return getattr(self.inner, name)(mine, *arguments_of(row, arguments, positions))

        own = ask() if share else None
        if row.combine is Combine.STACK:
            return self._handed_round(batch, own, weight(row, share), positions)
        if not all_have:
            switches = [str(one) for one in arguments if isinstance(one, bool)]  # what an answer leaves out
            own = self._blank_where_none(" ".join((name, *switches)), row, own)
        return self._summed(row, own, weight(row, share))

    def gauss_newton_diagonal(
        self, batch: Batch, estimator: DiagonalEstimator, generator: torch.Generator | None = None
    ) -> Tensors:
        """Return diag(JᵀJ); every process draws the probes of all parts and multiplies those of its own."""
        self.require(estimator.needs, type(estimator).__name__)
        own = {name: part.contiguous() for name, part in estimator.estimate(_OwnParts(self), batch, generator).items()}
        self.processes.sum(own.values())
        return own

    # ------------------------------------------------------------------ shares

    def _mine(self, batch: Batch) -> tuple[Batch, float, bool]:
        """Return this process's microbatch, V_k / V, 0 where it has none, and whether every process has one."""
        microbatches, rank = self.split(batch, self.processes.world_size), self.processes.rank
        all_have = len(microbatches) == self.processes.world_size
        if rank >= len(microbatches):
            return None, 0.0, all_have
        return microbatches[rank], len(self.parts(microbatches[rank])) / len(self.parts(batch)), all_have

    def _summed(self, row: Question, own: object, factor: float) -> object:
        """Return the sum over the processes of ``factor`` · ``own``, formed in its memory where that is contiguous."""
        found = take_apart(row, own)
        if found.numbers:
            numbers = self.processes.sum_numbers([factor * number for number in found.numbers.values()])
            found.numbers = dict(zip(found.numbers, numbers, strict=True))
        if found.tensors:
            found.tensors = {key: tensor.contiguous().mul_(factor) for key, tensor in found.tensors.items()}
            self.processes.sum(found.tensors.values())
        if found.masks:
            self.processes.any(found.masks.values())
        if found.greatest:
            found.greatest = {key: tensor.contiguous() for key, tensor in found.greatest.items()}
            self.processes.max(found.greatest.values())
        return put_together(row, own, found)

    def _handed_round(self, batch: Batch, own: object, factor: float, positions: slice) -> Residuals:
        """Return the residuals of all parts, each from the process that has it."""
        found = list(self.empty_residuals(batch))
        if own is not None:
            assert isinstance(own, tuple | list)
            found[positions] = [part.contiguous().mul_(factor) for part in own]
        self.processes.broadcast([(part, at % self.processes.world_size) for at, part in enumerate(found)])
        return tuple(found)

    def _blank_where_none(self, asked: str, row: Question, own: object) -> object:
        """Return ``own``, or zeros in its form, which the first process tells when it is another than before."""
        parameters = self.parameters
        shapes = [value.shape for value in parameters.values()]
        if asked not in self._forms or self._forms[asked][0] != shapes:
            self._forms[asked] = shapes, self.processes.broadcast_text(lambda: outline(row, own))
        if own is not None:
            return own
        return blank(row, self._forms[asked][1], next(iter(parameters.values())).device)


@dataclass(frozen=True)
class _Part:
    """One part of a batch, and whether this process evaluates it."""

    batch: Batch
    is_mine: bool


class _OwnParts(WrappedObjective):
    """What an estimator is asked to look at: all parts, of which those of other processes answer with zero.

    Each estimator is the mean of what its parts give, each part's estimate vanishing with J; so the sum over the
    processes is the estimate, and since all draw the probes of all parts, their generators stay alike.
    """

    def __init__(self, shared: DataParallel) -> None:
        super().__init__(shared.inner)
        self._shared = shared

    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Refuse: no part's answer to any other question is known to vanish with J."""
        raise MissingOracleError(f"an estimator asks for {name}, which cannot be shared among processes; use one alone")

    def parts(self, batch: Batch) -> Sequence[_Part]:
        rank, world_size = self._shared.processes.rank, self._shared.processes.world_size
        return [_Part(part, i % world_size == rank) for i, part in enumerate(self.inner.parts(batch))]

    def empty_residuals(self, batch: _Part) -> Residuals:
        return self.inner.empty_residuals(batch.batch)

    def jvp(self, batch: _Part, tangent: Tensors) -> Residuals:
        return self.inner.jvp(batch.batch, tangent) if batch.is_mine else ()

    def vjp(self, batch: _Part, cotangent: Residuals) -> Tensors:
        return self.inner.vjp(batch.batch, cotangent) if batch.is_mine else zeros_like(self.parameters)

    def exact_gauss_newton_diagonal(self, batch: Batch) -> Tensors:
        mine, share, _ = self._shared._mine(batch)
        return scaled(self.inner.exact_gauss_newton_diagonal(mine), share) if share else zeros_like(self.parameters)
