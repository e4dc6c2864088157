"""One objective for several processes: each looks at its share of a batch's views, and all get the whole answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splatopt.core.objective import (
    DiagonalEstimator,
    Evaluation,
    GaussNewtonBlocks,
    Objective,
    Oracle,
    Residuals,
    Tensors,
)
from splatopt.core.processes import Processes
from splatopt.core.wrapped import WrappedObjective, scaled, zeros_like


class SharedViews(WrappedObjective):
    """The mean over a batch's V parts, of which process k of P evaluates the parts k, k + P and so on.

    With the mean m_k over its own V_k parts, every oracle that is a mean over parts is Σ_k (V_k / V)·m_k, summed
    over the processes: loss, gradient, Jᵀu, JᵀJ v, its diagonal and blocks, ∇²L v. Residuals and J v are handed
    to all by the process that has them. The answers are the same bits in every process, so optimizers that start
    alike stay alike; to the answers of one process they are equal up to the order of the sums. A process without
    any part adds zeros. Where the inner objective answers with its own buffers, the sums are formed in them.

    The inner objective's ``split(batch, P)`` must hand out parts in that order, as Objective.split says.
    """

    def __init__(self, inner: Objective, processes: Processes) -> None:
        """Share ``inner``'s batches among ``processes``, all of which must ask the same questions in one order."""
        super().__init__(inner)
        self.processes = processes
        self._described: dict[str, Any] | None = None

    def gradient(self, batch: Any) -> Evaluation:
        """Return loss, gradient and facts of the whole batch; seen is what any process saw."""
        mine, share = self._mine(batch)
        own = self.inner.gradient(mine) if share else None
        names, has_seen = self._describe(own)
        numbers = [share * own.loss, *(share * own.facts[name] for name in names)] if own else [0.0] * (1 + len(names))
        loss, *facts = self.processes.sum_numbers(numbers)
        gradient = self._summed(own.gradient if own else None, share)
        seen = None
        if has_seen:
            rows = next(iter(gradient.values()))
            seen = own.seen if own else torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
            assert seen is not None  # all processes ask the same objective
            self.processes.any([seen])
        return Evaluation(loss, gradient, seen, dict(zip(names, facts, strict=True)))

    def value(self, batch: Any) -> float:
        """Return the loss of the whole batch."""
        mine, share = self._mine(batch)
        return self.processes.sum_numbers([share * self.inner.value(mine) if share else 0.0])[0]

    def residuals(self, batch: Any) -> Residuals:
        """Return the residuals of all parts."""
        return self._handed_round(batch, self.inner.residuals)

    def jvp(self, batch: Any, tangent: Tensors) -> Residuals:
        """Return J v of all parts."""
        return self._handed_round(batch, lambda mine: self.inner.jvp(mine, tangent))

    def vjp(self, batch: Any, cotangent: Residuals) -> Tensors:
        """Return Jᵀ u."""
        mine, share = self._mine(batch)
        own = cotangent[self.processes.rank :: self.processes.count]
        # The residuals of V_k parts alone are divided by √V_k, those of the batch by √V.
        return self._summed(self.inner.vjp(mine, own) if share else None, math.sqrt(share))

    def gauss_newton_product(self, batch: Any, tangent: Tensors) -> Tensors:
        """Return JᵀJ v."""
        return self._mean(batch, lambda mine: self.inner.gauss_newton_product(mine, tangent))

    def gauss_newton_form(self, batch: Any, tangent: Tensors) -> float:
        """Return ‖J v‖²."""
        mine, share = self._mine(batch)
        return self.processes.sum_numbers([share * self.inner.gauss_newton_form(mine, tangent) if share else 0.0])[0]

    def gauss_newton_diagonal(
        self, batch: Any, estimator: DiagonalEstimator, generator: torch.Generator | None = None
    ) -> Tensors:
        """Return diag(JᵀJ); every process draws the probes of all parts and pushes those of its own."""
        self.require(estimator.needs, type(estimator).__name__)
        own = {name: part.contiguous() for name, part in estimator.estimate(_OwnParts(self), batch, generator).items()}
        self.processes.sum(own.values())
        return own

    def exact_gauss_newton_diagonal(self, batch: Any) -> Tensors:
        """Return diag(JᵀJ) by the inner objective's own pass."""
        return self._mean(batch, self.inner.exact_gauss_newton_diagonal)

    def gauss_newton_blocks(self, batch: Any) -> GaussNewtonBlocks:
        """Return each row's own block of JᵀJ."""
        mine, share = self._mine(batch)
        parameters = self.parameters
        if share:
            found = self.inner.gauss_newton_blocks(mine)
            blocks, diagonal = found.blocks.contiguous().mul_(share), scaled(found.diagonal, share)
        else:
            inside = [parameters[name] for name in self.block_names]
            size = sum(math.prod(value.shape[1:]) for value in inside)
            blocks = inside[0].new_zeros(inside[0].shape[0], size * (size + 1) // 2)
            diagonal = zeros_like({name: value for name, value in parameters.items() if name not in self.block_names})
        self.processes.sum([blocks, *diagonal.values()])
        return GaussNewtonBlocks(self.block_names, blocks, diagonal)

    def exact_hvp(self, batch: Any, tangent: Tensors) -> Tensors:
        """Return ∇²L v."""
        return self._mean(batch, lambda mine: self.inner.exact_hvp(mine, tangent))

    # ------------------------------------------------------------------ shares

    def _mine(self, batch: Any) -> tuple[Any, float]:
        """Return this process's share of ``batch`` and V_k / V; 0 where it has none."""
        pieces = self.split(batch, self.processes.count)
        if self.processes.rank >= len(pieces):
            return None, 0.0
        mine = pieces[self.processes.rank]
        return mine, len(self.parts(mine)) / len(self.parts(batch))

    def _mean(self, batch: Any, ask: Callable[[Any], Tensors]) -> Tensors:
        """Return the mean over all parts of what ``ask`` gives as a mean over its own."""
        mine, share = self._mine(batch)
        return self._summed(ask(mine) if share else None, share)

    def _summed(self, own: Tensors | None, share: float) -> dict[str, Tensor]:
        """Return the sum over the processes of ``share`` · ``own``."""
        found = zeros_like(self.parameters) if own is None else scaled(own, share)
        self.processes.sum(found.values())
        return found

    def _handed_round(self, batch: Any, ask: Callable[[Any], Residuals]) -> Residuals:
        """Return the residuals of all parts, each from the process that has it."""
        mine, share = self._mine(batch)
        rank, count = self.processes.rank, self.processes.count
        pieces = list(self.empty_residuals(batch))
        if share:
            pieces[rank::count] = [piece.contiguous().mul_(math.sqrt(share)) for piece in ask(mine)]
        self.processes.spread([(piece, position % count) for position, piece in enumerate(pieces)])
        return tuple(pieces)

    def _describe(self, own: Evaluation | None) -> tuple[list[str], bool]:
        """Return the names of the facts and whether rows are seen, which a process without parts learns once."""
        if self._described is None:
            said = self.processes.of_first(
                lambda: json.dumps({"facts": list(own.facts), "seen": own.seen is not None}) if own else "{}"
            )
            self._described = json.loads(said)
        return self._described["facts"], self._described["seen"]


@dataclass(frozen=True)
class _Part:
    """One part of a batch, and whether this process evaluates it."""

    batch: Any
    is_mine: bool


class _OwnParts(WrappedObjective):
    """What an estimator is asked to look at: all parts, of which those of other processes answer with zero.

    Each estimator is the mean of what its parts give, each part's estimate vanishing with J; so the sum over the
    processes is the estimate, and since all draw the probes of all parts, their generators stay alike.
    """

    def __init__(self, shared: SharedViews) -> None:
        super().__init__(shared.inner)
        self._shared = shared

    def parts(self, batch: Any) -> Sequence[Any]:
        rank, count = self._shared.processes.rank, self._shared.processes.count
        return [_Part(part, i % count == rank) for i, part in enumerate(self.inner.parts(batch))]

    def gradient(self, batch: Any) -> Evaluation:
        return self._refuse(Oracle.GRADIENT)

    def empty_residuals(self, batch: _Part) -> Residuals:
        return self.inner.empty_residuals(batch.batch)

    def jvp(self, batch: _Part, tangent: Tensors) -> Residuals:
        return self.inner.jvp(batch.batch, tangent) if batch.is_mine else ()

    def vjp(self, batch: _Part, cotangent: Residuals) -> Tensors:
        return self.inner.vjp(batch.batch, cotangent) if batch.is_mine else zeros_like(self.parameters)

    def exact_gauss_newton_diagonal(self, batch: Any) -> Tensors:
        mine, share = self._shared._mine(batch)
        return scaled(self.inner.exact_gauss_newton_diagonal(mine), share) if share else zeros_like(self.parameters)
