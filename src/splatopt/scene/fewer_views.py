"""One objective for too little memory: a batch that does not fit is evaluated in pieces, to the same mean."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Residuals, Tensors
from splatopt.core.wrapped import WrappedObjective

Answer = TypeVar("Answer")

_EXHAUSTED = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class ExhaustedError(MemoryError):
    """Not even one part (view) fits into memory."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on the host or on a device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What PyTorch raises on the CPU, and CUDA, its libraries and Triton for themselves, has no type of its own.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)


@dataclass(frozen=True)
class _Piece:
    """Some parts of a batch.

    Attributes:
        batch: The parts.
        share: How many of the whole's they are, V_k / V.
        positions: Which of the whole's they are.
    """

    batch: Any
    share: float
    positions: slice


class FewerViews(WrappedObjective):
    """The inner objective, asked for at most ``most`` parts (views) at a time.

    ``most`` begins without a bound. Where memory runs out over a batch, half as many parts are tried at a time, down
    to one, and kept to from then on. With the mean m_k over each of the pieces, of V_k parts, the answer for the
    batch of V parts is Σ_k (V_k / V)·m_k: the step is the one that it would have been, up to the order of the sums.
    As long as memory suffices, every answer is the inner objective's own.
    """

    def __init__(self, inner: Objective, tell: Callable[[int], None]) -> None:
        """Guard ``inner``.

        Args:
            inner: Whose batches may be too large; asking it must leave the parameters as they are.
            tell: Called with the new bound whenever it falls.
        """
        super().__init__(inner)
        self.most: int | None = None
        self._tell = tell

    def gradient(self, batch: Any) -> Evaluation:
        """Return loss, gradient and facts; seen is what any piece saw."""

        def run(pieces: Sequence[_Piece]) -> Evaluation:
            first = self.inner.gradient(pieces[0].batch)
            if len(pieces) == 1:
                return first
            loss, seen = pieces[0].share * first.loss, None if first.seen is None else first.seen.clone()
            facts = {name: pieces[0].share * value for name, value in first.facts.items()}
            gradient = {name: part * pieces[0].share for name, part in first.gradient.items()}
            for piece in pieces[1:]:
                found = self.inner.gradient(piece.batch)
                loss += piece.share * found.loss
                facts = {name: value + piece.share * found.facts[name] for name, value in facts.items()}
                for name, part in found.gradient.items():
                    gradient[name].add_(part, alpha=piece.share)
                if seen is not None and found.seen is not None:
                    seen |= found.seen
            return Evaluation(loss, gradient, seen, facts)

        return self._attempt(batch, run)

    def value(self, batch: Any) -> float:
        """Return the loss."""
        return self._number(batch, self.inner.value)

    def residuals(self, batch: Any) -> Residuals:
        """Return the residuals."""
        return self._residuals(batch, self.inner.residuals)

    def jvp(self, batch: Any, tangent: Tensors) -> Residuals:
        """Return J v."""
        return self._residuals(batch, lambda views: self.inner.jvp(views, tangent))

    def vjp(self, batch: Any, cotangent: Residuals) -> Tensors:
        """Return Jᵀ u."""
        # The residuals of V_k parts alone are divided by √V_k, those of the batch by √V.
        return self._sum(batch, lambda piece: self.inner.vjp(piece.batch, cotangent[piece.positions]), math.sqrt)

    def gauss_newton_product(self, batch: Any, tangent: Tensors) -> Tensors:
        """Return JᵀJ v."""
        return self._sum(batch, lambda piece: self.inner.gauss_newton_product(piece.batch, tangent))

    def gauss_newton_form(self, batch: Any, tangent: Tensors) -> float:
        """Return ‖J v‖²."""
        return self._number(batch, lambda views: self.inner.gauss_newton_form(views, tangent))

    def exact_gauss_newton_diagonal(self, batch: Any) -> Tensors:
        """Return diag(JᵀJ) by the inner objective's own pass."""
        return self._sum(batch, lambda piece: self.inner.exact_gauss_newton_diagonal(piece.batch))

    def gauss_newton_blocks(self, batch: Any) -> GaussNewtonBlocks:
        """Return each row's own block of JᵀJ."""

        def ask(piece: _Piece) -> Tensors:
            found = self.inner.gauss_newton_blocks(piece.batch)
            return {"": found.blocks, **found.diagonal}

        tensors = dict(self._sum(batch, ask))
        return GaussNewtonBlocks(self.block_names, tensors.pop(""), tensors)

    def exact_hvp(self, batch: Any, tangent: Tensors) -> Tensors:
        """Return ∇²L v."""
        return self._sum(batch, lambda piece: self.inner.exact_hvp(piece.batch, tangent))

    # ------------------------------------------------------------------ pieces

    def _sum(
        self, batch: Any, ask: Callable[[_Piece], Tensors], weigh: Callable[[float], float] = lambda share: share
    ) -> Tensors:
        """Return the sum over the pieces of what ``ask`` gives, each weighed by its share."""

        def run(pieces: Sequence[_Piece]) -> Tensors:
            first = ask(pieces[0])
            if len(pieces) == 1:
                return first
            total = {name: part * weigh(pieces[0].share) for name, part in first.items()}
            for piece in pieces[1:]:
                for name, part in ask(piece).items():
                    total[name].add_(part, alpha=weigh(piece.share))
            return total

        return self._attempt(batch, run)

    def _number(self, batch: Any, ask: Callable[[Any], float]) -> float:
        return self._attempt(batch, lambda pieces: sum(piece.share * ask(piece.batch) for piece in pieces))

    def _residuals(self, batch: Any, ask: Callable[[Any], Residuals]) -> Residuals:
        def run(pieces: Sequence[_Piece]) -> Residuals:
            if len(pieces) == 1:
                return ask(pieces[0].batch)
            found = list(self.empty_residuals(batch))
            for piece in pieces:
                found[piece.positions] = [part * math.sqrt(piece.share) for part in ask(piece.batch)]
            return tuple(found)

        return self._attempt(batch, run)

    def _attempt(self, batch: Any, run: Callable[[Sequence[_Piece]], Answer]) -> Answer:
        """Return what ``run`` makes of the batch's pieces; smaller ones where memory runs out over these.

        Raises:
            ExhaustedError: It runs out over one part, also after what PyTorch keeps was given back.
        """
        whole, alone = len(self.parts(batch)), False
        while True:
            count = 1 if self.most is None else math.ceil(whole / self.most)
            batches = [batch] if count == 1 else self.split(batch, count)
            try:
                return run(
                    [
                        _Piece(some, len(self.parts(some)) / whole, slice(first, None, count))
                        for first, some in enumerate(batches)
                    ]
                )
            except (RuntimeError, MemoryError) as error:
                if not is_exhaustion(error):
                    raise
                problem = str(error)
            # Out of the handler, where the failed attempt's tensors are gone.
            size = math.ceil(whole / len(batches))
            if size == 1 and alone:
                raise ExhaustedError(problem)
            alone = size == 1
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size > 1:
                self.most = (size + 1) // 2
                self._tell(self.most)
