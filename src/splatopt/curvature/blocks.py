"""Symmetric blocks, packed: the lower triangle by row, entry (i, j ≤ i) at i·(i+1)/2 + j."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.objective import GaussNewtonBlocks, Tensors


def unpack_blocks(packed: Float[Tensor, "n p"]) -> Float[Tensor, "n b b"]:
    """Return the symmetric matrices whose lower triangles are given, p = b·(b+1)/2.

    Raises:
        ValueError: p is no triangular number.
    """
    size = (math.isqrt(8 * packed.shape[1] + 1) - 1) // 2
    if size * (size + 1) // 2 != packed.shape[1]:
        raise ValueError(f"a packed block must hold b·(b+1)/2 numbers for some b, got {packed.shape[1]}")
    row, column = torch.tril_indices(size, size, device=packed.device)
    blocks = packed.new_empty(packed.shape[0], size, size)
    blocks[:, row, column] = packed
    blocks[:, column, row] = packed
    return blocks


def pack_blocks(blocks: Float[Tensor, "n b b"]) -> Float[Tensor, "n p"]:
    """Return the lower triangles by row; what is above the diagonal is not read."""
    row, column = torch.tril_indices(blocks.shape[1], blocks.shape[1], device=blocks.device)
    return blocks[:, row, column]


LANES = 16
"""Rows that lie side by side in the layout of the passes on a GPU."""


def to_lanes(packed: Float[Tensor, "n p"]) -> Float[Tensor, "m p 16"]:
    """Return packed blocks sixteen rows a lane: row i's entry k at [i // 16, k, i % 16]; the last rows are padded."""
    rows, entries = packed.shape
    padded = packed.new_zeros(-(-rows // LANES) * LANES, entries)
    padded[:rows] = packed
    return padded.view(-1, LANES, entries).transpose(1, 2).contiguous()


def from_lanes(lanes: Float[Tensor, "m p 16"], rows: int) -> Float[Tensor, "n p"]:
    """Return the packed blocks of the first ``rows`` rows that :func:`to_lanes` laid out."""
    return lanes.transpose(1, 2).reshape(-1, lanes.shape[1])[:rows].contiguous()


def side_by_side(tensors: Tensors, names: tuple[str, ...]) -> Tensor:
    """Return the rows of the named tensors side by side, (N, B)."""
    return torch.cat([tensors[name][:, None].flatten(1) for name in names], dim=1)


def apart(rows: Float[Tensor, "n b"], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the tensors whose rows stand side by side in ``rows``, by name in their shapes (N, …)."""
    parts = rows.split([math.prod(shape[1:]) for shape in shapes.values()], dim=1)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def block_diagonal(packed: Float[Tensor, "n p"]) -> Float[Tensor, "n b"]:
    """Return the diagonals of packed blocks."""
    size = math.isqrt(2 * packed.shape[1])
    return packed[:, torch.arange(1, size + 1, device=packed.device).cumsum(0) - 1]


def higher_bands_curvature(color: Float[Tensor, "n 3"], coefficients: int) -> Float[Tensor, "n 1 3"]:
    """Return K times the colours' own curvature, which bounds JᵀJ of the K - 1 coefficients of their higher bands.

    A direction v sees a colour as Y(v)ᵀc, so that JᵀJ of its K coefficients is a·Y Yᵀ, at most a·|Y|²·I. |Y|² is
    K·Y₀² in every direction (Unsöld's theorem, 1927), and a·Y₀² is the curvature of ``sh_dc``. The bound is known as
    soon as a row has been seen, also of a band that takes part later. The diagonal of a·Y Yᵀ is no bound: seen from
    one direction, steps by it change the colour up to K times as far as each of them was meant to.

    Args:
        color: diag(JᵀJ) of ``sh_dc``.
        coefficients: K, the zeroth included.
    """
    return (coefficients * color)[:, None, :]


def block_form(blocks: GaussNewtonBlocks, step: Tensors) -> float:
    """Return Σ dᵀB d over the rows, and Σ D d² over what has a diagonal alone, summed in float64; D may broadcast."""
    d = side_by_side(step, blocks.names).double()
    row, column = torch.tril_indices(d.shape[1], d.shape[1], device=d.device)
    twice = torch.where(row == column, 1.0, 2.0).double()
    form = (blocks.blocks.double() * d[:, row] * d[:, column] * twice).sum()
    for name, diagonal in blocks.diagonal.items():
        form += (diagonal * step[name].square()).sum(dtype=torch.float64)
    return float(form)
