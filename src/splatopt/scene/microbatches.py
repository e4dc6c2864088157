"""One objective for too little memory: a batch that does not fit is evaluated in microbatches, to the same mean."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from splatopt.core.combining import arguments_of, combined, weight
from splatopt.core.objective import Batch, Combine, Objective
from splatopt.core.wrapped import WrappedObjective

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
class _Microbatch:
    """Some parts of a batch.

    Attributes:
        batch: The parts.
        share: How many of the whole's they are, V_k / V.
        positions: Which of the whole's they are.
    """

    batch: Batch
    share: float
    positions: slice


class Microbatched(WrappedObjective):
    """The inner objective, asked for at most ``max_parts`` parts (views) at a time.

    ``max_parts`` begins without a bound. Where memory runs out over a batch, half as many parts are tried at a time,
    down to one, and kept to from then on. The answers for the microbatches are combined as each question's row
    declares (:mod:`splatopt.core.combining`): the step is the one that it would have been, up to the order of the
    sums. As long as memory suffices, every answer is the inner objective's own.
    """

    def __init__(self, inner: Objective, tell: Callable[[int], None]) -> None:
        """Guard ``inner``.

        Args:
            inner: Whose batches may be too large; asking it must leave the parameters as they are.
            tell: Called with the new bound whenever it falls.
        """
        super().__init__(inner)
        self.max_parts: int | None = None
        self._tell = tell

    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return the inner one's answer, or what its answers for the microbatches make up."""
        row = self.questions[name]
        if row.composed:
            return self.compose(name, batch, *arguments)

        def ask(one: _Microbatch) -> object:
            return getattr(self.inner, name)(one.batch, *arguments_of(row, arguments, one.positions))

        def run(microbatches: Sequence[_Microbatch]) -> object:
            if len(microbatches) == 1:
                return ask(microbatches[0])
            if row.combine is not Combine.STACK:
                return combined(row, ((one.share, ask(one)) for one in microbatches))
            found = list(self.empty_residuals(batch))
            for one in microbatches:
                found[one.positions] = [part * weight(row, one.share) for part in _tensors(ask(one))]
            return tuple(found)

        return self._attempt(batch, run)

    def _attempt(self, batch: Batch, run: Callable[[Sequence[_Microbatch]], object]) -> object:
        """Return what ``run`` makes of the batch's microbatches; smaller ones where memory runs out over these.

        Raises:
            ExhaustedError: It runs out over one part, also after what PyTorch keeps was given back.
        """
        whole, alone = len(self.parts(batch)), False
        while True:
            count = 1 if self.max_parts is None else math.ceil(whole / self.max_parts)
            batches = [batch] if count == 1 else self.split(batch, count)
            try:
                return run(
                    [
                        _Microbatch(some, len(self.parts(some)) / whole, slice(first, None, count))
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
                self.max_parts = (size + 1) // 2
                self._tell(self.max_parts)


def _tensors(answer: object) -> Sequence[torch.Tensor]:
    assert isinstance(answer, Sequence)
    return answer
