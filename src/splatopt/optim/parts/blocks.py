"""Blocks of JᵀJ: how they are kept, and steps that minimise their models within balls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.state import OptimizerState, PerParameter, StatePart, load_one
from splatopt.curvature.blocks import block_diagonal, from_lanes, to_lanes, unpack_blocks


class KnownCurvature(PerParameter):
    """A state whose absence is no fault before the first step: older versions wrote none there."""

    def load(self, state: OptimizerState) -> None:
        """Go on from copies, or from zeros where a state has no curvature yet."""
        if _has_curvature(state):
            super().load(state)
        else:
            for value in self.values.values():
                value.zero_()


class KeptBlocks(StatePart):
    """Each row's running mean of its block of JᵀJ; zero at first, in fresh rows, and where a state has none yet."""

    def __init__(self, parameters: Tensors, names: tuple[str, ...], in_lanes: bool) -> None:
        """Begin with zeros.

        Args:
            parameters: The objective's.
            names: Whose entries make up a block.
            in_lanes: Whether they lie in lanes, (M, B·(B+1)/2, 16), as the fused passes of a GPU take them, else row
                by row, (N, B·(B+1)/2).
        """
        self._names, self._in_lanes = names, in_lanes
        self._widths = [math.prod(parameters[name].shape[1:]) for name in names]
        self._rows = parameters[names[0]].shape[0]
        size = sum(self._widths)
        self.values = self._laid_out(parameters[names[0]].new_zeros(self._rows, size * (size + 1) // 2))

    def _laid_out(self, blocks: Tensor) -> Tensor:
        return to_lanes(blocks) if self._in_lanes else blocks

    @property
    def diagonal(self) -> Tensor:
        """The diagonals of blocks that are kept row by row, (N, B)."""
        return block_diagonal(self.values)

    def _by_row(self) -> Tensor:
        return from_lanes(self.values, self._rows) if self._in_lanes else self.values

    def tensors(self) -> dict[str, Tensor]:
        """Return them row by row."""
        return {"blocks": self._by_row()}

    def load(self, state: OptimizerState) -> None:
        """Go on from a copy, or from zeros where a state has no curvature yet."""
        like = self._by_row()
        self.values = self._laid_out(
            load_one(like, state.tensors, "blocks") if _has_curvature(state) else torch.zeros_like(like)
        )

    def edit_rows(self, edit: SceneEdit, parameters: Tensors) -> None:
        """Gather; an entry takes the product of the factors of the two parameters that it is of."""
        blocks = edit.gather_state(self._by_row())
        if edit.factors:
            ones = torch.ones(len(edit), dtype=blocks.dtype, device=blocks.device)
            by_name = [edit.factors[name].to(ones) if name in edit.factors else ones for name in self._names]
            columns = torch.repeat_interleave(
                torch.stack(by_name, dim=1), torch.tensor(self._widths, device=blocks.device), dim=1
            )
            row, column = torch.tril_indices(columns.shape[1], columns.shape[1], device=blocks.device)
            blocks.mul_(columns[:, row] * columns[:, column])
        self._rows = len(edit)
        self.values = self._laid_out(blocks)


def _has_curvature(state: OptimizerState) -> bool:
    """Whether a state must hold curvature: older versions wrote none before their first step."""
    return state.scalars.get("steps", 0) > 0 or "blocks" in state.tensors


def solve_in_balls(
    blocks: Tensor,
    gradient: Tensor,
    radii: Tensor,
    scale: float,
    damping: float,
    multipliers: Tensor,
    factorisations: int,
) -> Tensor:
    """Return the steps (N, B) that minimise gᵀd + ½ dᵀ(scale·B)d + ½ damping·Σ(d_k/η_k)² within Σ (d_k/η_k)² ≤ 1.

    Moré and Sorensen's iteration (1983): d/η = -(ηBη·scale + μI)⁻¹ηg with μ ≥ damping, and one Newton step on
    1/‖d/η‖ - 1 = 0 for each factorisation; what still leaves the ball is scaled back. ηBη is regularised by 1e-6 of
    its trace, which a block without full rank needs.

    Args:
        blocks: B, lower triangles by row, (N, B·(B+1)/2), none of them zero.
        gradient: g, (N, B).
        radii: η > 0, (N, B).
        scale: Factor on B.
        damping: Lower bound of multiplier.
        multipliers: μ of each row to begin with, (N,); becomes the next one.
        factorisations: Factorisations, each with one Newton step on μ.
    """
    scaled = scale * radii[:, :, None] * unpack_blocks(blocks) * radii[:, None, :]
    right = -(radii * gradient)
    floor = (scaled.diagonal(dim1=1, dim2=2).sum(dim=1) * 1e-6).clamp_min(1e-30)
    eye = torch.eye(gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    multipliers.clamp_min_(damping)
    for _ in range(factorisations):
        factor = torch.linalg.cholesky(scaled + (multipliers + floor)[:, None, None] * eye)
        step = torch.cholesky_solve(right[:, :, None], factor)
        slope = torch.linalg.solve_triangular(factor, step, upper=False)
        squared = step.square().sum(dim=(1, 2))
        length = squared.sqrt()
        change = squared / slope.square().sum(dim=(1, 2)).clamp_min(1e-30) * (length - 1)
        multipliers.add_(change).clamp_min_(damping)
    return step.squeeze(2) * radii / length.clamp_min(1)[:, None]
