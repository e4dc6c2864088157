"""Preconditioners for (JᵀJ + W) x = b with a diagonal damping W: M⁻¹ with M the diagonal, or each row's block.

Both are exactly 0 in entries where diag(JᵀJ) is 0 (a Gaussian that no view draws, a colour at its clamp), so that
conjugate gradients leave these where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.objective import GaussNewtonBlocks, Tensors
from splatopt.curvature.blocks import apart, side_by_side, unpack_blocks
from splatopt.curvature.flat import FlatLayout


class Preconditioner(ABC):
    """M⁻¹ on vectors of a :class:`~splatopt.curvature.flat.FlatLayout`."""

    @property
    @abstractmethod
    def diagonal(self) -> Float[Tensor, " n"]:
        """diag(JᵀJ), without damping."""

    @abstractmethod
    def factorise(self, damping: Float[Tensor, " n"]) -> None:
        """Take W ≥ 0, once, before :meth:`solve`; where ``diagonal`` is 0, W is not read."""

    @abstractmethod
    def solve(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return M⁻¹ ``vector``."""


class DiagonalPreconditioner(Preconditioner):
    """Jacobi's: M = diag(JᵀJ) + W."""

    def __init__(self, layout: FlatLayout, diagonal: Tensors) -> None:
        """Copy diag(JᵀJ), given by name."""
        self._diagonal = layout.flatten(diagonal)

    @property
    def diagonal(self) -> Float[Tensor, " n"]:
        """diag(JᵀJ), without damping."""
        return self._diagonal

    def factorise(self, damping: Float[Tensor, " n"]) -> None:
        """Invert M."""
        self._inverse = _inverse(self._diagonal + damping, known=self._diagonal > 0)

    def solve(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return M⁻¹ ``vector``."""
        return self._inverse * vector


class BlockPreconditioner(Preconditioner):
    """M holds each row's block of JᵀJ + W, and diag(JᵀJ) + W for the parameters that are in no block.

    Blocks are scaled to a unit diagonal and inverted by Cholesky factors. A block without a factor, which rounding
    can make of one that is nearly singular and hardly damped, counts as its diagonal.
    """

    def __init__(self, layout: FlatLayout, blocks: GaussNewtonBlocks) -> None:
        """Copy the blocks of JᵀJ, and the diagonal of the rest."""
        self._layout = layout
        self._shapes = {name: layout.shapes[name] for name in blocks.names}
        self._blocks = unpack_blocks(blocks.blocks)
        squares = self._blocks.diagonal(dim1=1, dim2=2)
        self._diagonal = layout.flatten({**blocks.diagonal, **apart(squares, self._shapes)})

    @property
    def diagonal(self) -> Float[Tensor, " n"]:
        """diag(JᵀJ), without damping."""
        return self._diagonal

    def factorise(self, damping: Float[Tensor, " n"]) -> None:
        """Invert the blocks of M, in the memory of those of JᵀJ."""
        inverse = _inverse(self._diagonal + damping, known=self._diagonal > 0)
        self._single = self._layout.unflatten(inverse)
        scale = side_by_side(self._single, tuple(self._shapes)).sqrt_()
        blocks = self._blocks.mul_(scale[:, :, None]).mul_(scale[:, None, :])
        blocks.diagonal(dim1=1, dim2=2).fill_(1)
        factors, failed = torch.linalg.cholesky_ex(blocks)
        factors[failed > 0] = torch.eye(scale.shape[1], dtype=scale.dtype, device=scale.device)
        self._inverse = torch.cholesky_inverse(factors).mul_(scale[:, :, None]).mul_(scale[:, None, :])

    def solve(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return M⁻¹ ``vector``."""
        parts = self._layout.unflatten(vector)
        rows = side_by_side(parts, tuple(self._shapes))
        solved = apart(torch.bmm(self._inverse, rows[:, :, None]).squeeze(2), self._shapes)
        return self._layout.flatten(
            {name: solved[name] if name in solved else self._single[name] * part for name, part in parts.items()}
        )


def _inverse(values: Tensor, known: Tensor) -> Tensor:
    """Return 1 / values where ``known`` and finite, elsewhere 0."""
    inverse = values.reciprocal()
    return torch.where(known & torch.isfinite(inverse), inverse, 0)
