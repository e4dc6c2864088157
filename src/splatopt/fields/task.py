"""What every task of a field has: examples to draw batches from, and a score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splatopt.core.graph import GraphObjective

CHUNK = 16_384
"""Points that are evaluated at once outside training, of layers of 256 at most; 16 MiB for each."""

_USUAL_WIDTH = 256


class Task(GraphObjective):
    """An objective over numbered examples (pixels, points, rays).

    Attributes:
        module: The field.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of examples; an epoch sees each once."""

    def draw(self, indices: Tensor, generator: torch.Generator) -> Any:
        """Return the batch of the examples ``indices``, with whatever else is random about it."""
        return indices

    @property
    def chunk(self) -> int:
        """Examples that are evaluated at once outside training."""
        return chunk_of(self.module)

    @abstractmethod
    def score(self) -> Mapping[str, float]:
        """Return what the field is judged by, such as ``psnr``; the first is the headline."""


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of ``module`` lie."""
    return next(module.parameters()).device


def chunk_of(module: nn.Module, samples: int = 1) -> int:
    """Return how many examples of ``samples`` points are evaluated at once: CHUNK points, fewer of wider layers."""
    width = max((layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)), default=1)
    return max(1, CHUNK // (samples * -(-width // _USUAL_WIDTH)))


def in_chunks(call: Callable[[Tensor], Tensor], points: Tensor, chunk: int) -> Tensor:
    """Return ``call`` at all rows of ``points``, without a graph and some at a time."""
    with torch.no_grad():
        return torch.cat([call(part) for part in _split(points, chunk)])


def _split(points: Tensor, chunk: int) -> Iterator[Tensor]:
    yield from points.split(chunk) if len(points) else (points,)
