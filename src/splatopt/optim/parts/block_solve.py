"""Each row's own block of JᵀJ, solved within its ball."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from splatopt.core.objective import Batch, Evaluation, GaussNewtonBlocks, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.core.state import Measurements, Number, PerParameter, PerRow
from splatopt.curvature.blocks import apart, block_diagonal, block_form, higher_bands_curvature, side_by_side
from splatopt.optim.fused import AnyFusedPasses
from splatopt.optim.parts.blocks import KeptBlocks, KnownCurvature, solve_in_balls
from splatopt.optim.parts.bounds import HellingerBall
from splatopt.optim.parts.direction import Change, Direction, Point, Solved

_OVERLAP_EVERY = 2
"""Refreshes from one measurement of the overlap to the next."""

_OVERLAP_MEMORY = 0.64
"""What the mean overlap keeps when it is measured once more."""


class BlockSolve(Direction):
    """The minimum of each row's model ĝᵀd + ½ dᵀ(s B̂)d within its ball; what is in no block by its own curvature alone.

    That is the colour's bound for ``sh_rest``, see :func:`~splatopt.curvature.blocks.higher_bands_curvature`, and
    diag(JᵀJ) for anything else. Gradient and blocks are running means, corrected for their start; a row's blocks count
    from when it became fresh. What the batch did not see, and what has no curvature yet, stays where it is. The scale
    s = overlap · κ follows the overlap factor κ, measured along a trial at every second look at the curvature.
    """

    asks_twice: ClassVar[bool] = True

    def __init__(
        self,
        host: Optimizer,
        ball: HellingerBall,
        *,
        decay: float,
        memory: float,
        refresh: int,
        overlap: float,
        damping: float,
        factorisations: int,
    ) -> None:
        """Start with no curvature and no momentum.

        Args:
            host: The optimizer.
            ball: The radii.
            decay: Of the mean of gradients.
            memory: Decay of the mean of blocks.
            refresh: Steps from one look at the curvature to the next.
            overlap: Factor on κ.
            damping: Lower bound of multiplier over the predicted reduction of the step before.
            factorisations: Cholesky factorisations a step.
        """
        super().__init__(host)
        self._ball = ball
        self.decay, self._memory, self._refresh = decay, memory, refresh
        self._overlap, self._damping, self.factorisations = overlap, damping, factorisations
        parameters = self.objective.parameters
        self._names = self.objective.block_names
        self._is_bounded = "sh_dc" in self._names and "sh_rest" in parameters
        bounded = ("sh_rest",) if self._is_bounded else ()
        measured = [name for name in parameters if name not in (*self._names, *bounded)]
        self._kappa = host.remember(Number("kappa", 0.0))
        self._predicted = host.remember(Number("predicted", 0.0))
        self.momentum = host.remember(PerParameter("momentum", parameters, degree=1))
        self._age = host.remember(Measurements("age", parameters, saved_as="age"))
        self.multipliers = host.remember(PerRow("multipliers", parameters, saved_as="multipliers"))
        self.diagonal = host.remember(KnownCurvature("diagonal", parameters, degree=2, resettable=False, only=measured))
        fused = self.passes()  # the layout is the same for any number of threads
        self.blocks = host.remember(KeptBlocks(parameters, self._names, fused is not None and fused.in_lanes))
        self._fresh: GaussNewtonBlocks | None = None

    def passes(self) -> AnyFusedPasses | None:
        """Return the passes that take the blocks as they are kept; None where the step is taken in torch."""
        takes = self._names == BLOCK_TENSORS and self._is_bounded and not self.diagonal.values
        return self.fused_passes(self.objective.parameters, self.momentum.values) if takes else None

    # ------------------------------------------------------------------ what is measured

    def evaluate(self, batch: Batch, progress: Progress) -> Evaluation:
        """Return loss and gradient; where it is due, take the blocks on this batch into their means."""
        evaluation = super().evaluate(batch, progress)
        if self.steps.value % self._refresh == 0:
            self._fresh = self.objective.gauss_newton_blocks(batch)
            self._fold(self._fresh)
        return evaluation

    @property
    def measured(self) -> bool:
        """Whether blocks were measured in this step."""
        return self._fresh is not None

    @property
    def wants_trial(self) -> bool:
        """Whether κ is due."""
        return self.measured and (self.steps.value - 1) // self._refresh % _OVERLAP_EVERY == 0

    def learn(self, batch: Batch, step: Tensors) -> None:
        """κ ← running mean of ‖J d‖² / Σ dᵀB d, both on this batch at the point where the step d begins."""
        assert self._fresh is not None  # a trial follows a measurement
        together = self.objective.gauss_newton_form(batch, step)
        alone = self._own_form(self._fresh, step)
        if alone > 0 and math.isfinite(together):
            measured = max(1.0, together / alone)
            kept = _OVERLAP_MEMORY if self._kappa.value else 0.0
            self._kappa.value = kept * self._kappa.value + (1 - kept) * measured

    def release(self) -> None:
        """Forget this step's blocks."""
        self._fresh = None

    def _fold(self, fresh: GaussNewtonBlocks) -> None:
        """B ← B + w·(fresh - B), w = (1-θ₂)/(1-θ₂ᵃ), a the age: the running mean, corrected for its start."""
        self._age.values += 1
        weights = ((1 - self._memory) / (1 - self._memory ** self._age.values.double())).to(self._age.values.dtype)
        fused = self.passes()
        if fused is not None:
            fused.passes.fold_blocks(self.blocks.values, fresh.blocks, weights)
        else:
            self.blocks.values.lerp_(fresh.blocks, weights[:, None])
        for name, mean in self.diagonal.values.items():
            new = fresh.diagonal[name]
            torch.where(mean > 0, mean.lerp(new, weights.view(-1, *[1] * (mean.dim() - 1))), new, out=mean)

    def _own_form(self, fresh: GaussNewtonBlocks, step: Tensors) -> float:
        """Σ dᵀB d over the rows, and Σ D d² over what is in no block."""
        fused = self.passes()
        if fused is not None:
            return fused.passes.block_form(fresh.blocks, fused.cloud(step))
        return block_form(replace(fresh, diagonal=self._own_curvature(fresh.blocks, fresh.diagonal)), step)

    def _own_curvature(self, blocks: Tensor, measured: Tensors) -> Tensors:
        """D of what is in no block; blocks row by row."""
        if not self._is_bounded:
            return measured
        parameters = self.objective.parameters
        color = apart(block_diagonal(blocks), {name: parameters[name].shape for name in self._names})["sh_dc"]
        return {**measured, "sh_rest": higher_bands_curvature(color, parameters["sh_rest"].shape[1] + 1)}

    @property
    def overlap_factor(self) -> float:
        """κ, the measured overlap; 8 before it has been measured."""
        return self._kappa.value or 8.0

    @property
    def scale(self) -> float:
        """s, what the blocks are multiplied by."""
        return self._overlap * self.overlap_factor

    # ------------------------------------------------------------------ predicted reduction

    def update_momentum(self, gradient: Tensors) -> None:
        """Take the gradient into the momentum, m ← m + (1-θ₁)(g - m)."""
        for name, mean in self.momentum.values.items():
            mean.lerp_(gradient[name], 1 - self.decay)

    def correction(self, updates: bool) -> float:
        """Return what the momentum is multiplied by for its start, 1/(1-θ₁ᵗ).

        Args:
            updates: Whether this step's gradient is in it.
        """
        return 1 / (1 - self.decay ** (self.steps.value if updates else self.steps.value - 1))

    def predicted(self, step: Tensors, names: Iterable[str]) -> float:
        """Return -ĝᵀd over the parameters ``names``, ĝ without this step's gradient."""
        slope = sum(float((self.momentum[name] * step[name]).sum(dtype=torch.float64)) for name in names)
        return -slope * self.correction(updates=False)

    @property
    def damping(self) -> float:
        """The least multiplier, from the predicted reduction of the step before."""
        return self._damping * self._predicted.value

    def note(self, predicted: float) -> None:
        """Keep a step's predicted reduction; of one with a row that broke down it is no number."""
        if math.isfinite(predicted):
            self._predicted.value = predicted

    # ------------------------------------------------------------------ where to

    def changes(self, at: Point) -> Iterator[tuple[str, Change]]:
        """Yield the steps of the rows that were seen and whose curvature is known."""
        if at.updates:
            self.update_momentum(at.gradient)
        rows = (torch.ones_like(self._age.values) if at.seen is None else at.seen).nonzero().squeeze(1)
        radii = self._ball.radii({name: value[rows] for name, value in at.parameters.items()})
        correction = self.correction(at.updates)
        damping = self._damping_over(rows, radii, correction)
        known = (self.blocks.diagonal[rows] > 0).any(dim=1)
        rows, radii = rows[known], {name: eta[known] for name, eta in radii.items()}
        yield from self._block_changes(at.parameters, rows, radii, correction, damping)
        yield from self._diagonal_changes(rows, radii, correction)

    def _mean_gradient(self, rows: Tensor, correction: float) -> Tensor:
        """The momentum of the blocks' parameters, corrected for its start, (rows, B)."""
        return side_by_side({name: self.momentum[name][rows] * correction for name in self._names}, self._names)

    def _damping_over(self, rows: Tensor, radii: Tensors, correction: float) -> float:
        """λ mean |h| over ``rows``, all that were seen, at the step before; at the first one it is its own."""
        predictions = (self._mean_gradient(rows, correction) * side_by_side(radii, self._names)).norm(dim=1)
        predicted = float(predictions.mean()) if len(rows) else 0.0
        damping = self._damping * predicted if self.steps.value == 1 else self.damping
        self.note(predicted)
        return damping

    def _block_changes(
        self, parameters: Tensors, rows: Tensor, radii: Tensors, correction: float, damping: float
    ) -> Iterator[tuple[str, Change]]:
        gradient, eta = self._mean_gradient(rows, correction), side_by_side(radii, self._names)
        multipliers = self.multipliers.values[rows]
        steps = solve_in_balls(
            self.blocks.values[rows], gradient, eta, self.scale, damping, multipliers, self.factorisations
        )
        self.multipliers.values[rows] = multipliers
        begin = 0
        for name in self._names:
            parameter = parameters[name]
            width = parameter[:1, None].flatten(1).shape[1]
            yield name, Solved(rows, steps[:, begin : begin + width].reshape(-1, *parameter.shape[1:]))
            begin += width

    def _diagonal_changes(self, rows: Tensor, radii: Tensors, correction: float) -> Iterator[tuple[str, Change]]:
        for name, curvature in self._own_curvature(self.blocks.values, self.diagonal.values).items():
            gradient, scaled = self.momentum[name][rows] * correction, self.scale * curvature[rows]
            step = torch.maximum(torch.minimum(gradient / scaled, radii[name]), -radii[name])
            yield name, Solved(rows, torch.where(scaled > 0, -step, 0))
