"""Named tensors as one vector, as linear solvers want them, and back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.objective import Tensors


class FlatLayout:
    """Where each named tensor lies in one vector: one after the other, in the order of the names."""

    def __init__(self, like: Tensors) -> None:
        """Lay out vectors for tensors in the shapes of ``like``."""
        self.shapes = {name: tensor.shape for name, tensor in like.items()}
        self._sizes = [tensor.numel() for tensor in like.values()]

    def flatten(self, tensors: Tensors) -> Float[Tensor, " n"]:
        """Return a new vector with the tensors' entries."""
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes])

    def unflatten(self, vector: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Return the tensors that ``vector`` holds, as views of it."""
        parts = vector.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
