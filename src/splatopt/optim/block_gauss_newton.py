"""Block Gauss-Newton with a trust region: each Gaussian's own curvature, whole.

A Gaussian's position, size, turn, opacity and colour explain one another's errors, which a diagonal cannot
see: its 14×14 block of JᵀJ can. Every Gaussian takes the step that minimises its own quadratic model within
one ball of Hellinger radii:

    minimise ĝᵀd + ½ dᵀ(s B̂)d  subject to  Σ_k (d_k/η_k)² ≤ 1

The blocks ignore that Gaussians overlap, and all of them move at once. The overlap factor
κ = ‖J d‖² / Σ dᵀB d of the last step d measures by how much that underrates the curvature; s = overlap · κ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_fraction, check_not_endless, check_positive
from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.core.state import Number, OptimizerState, PerParameter, PerRow, StatePart, load_one
from splatopt.curvature.blocks import from_lanes, side_by_side, to_lanes, unpack_blocks
from splatopt.optim.fused import FusedPasses, fused_passes
from splatopt.optim.growth import GrowthBound, check_growth
from splatopt.optim.hellinger import HellingerRadii, TrustRegionOptions, quaternion_lengths_kept
from splatopt.optim.reach import Reach

_OVERLAP_EVERY = 2
"""Refreshes from one measurement of the overlap to the next."""

_OVERLAP_MEMORY = 0.64
"""What the mean overlap keeps when it is measured once more."""


@dataclass(frozen=True)
class BlockGaussNewtonOptions(TrustRegionOptions):
    """Block Gauss-Newton; there are no learning rates, ε is the one knob."""

    epsilon_start: float = 1e-3
    """ε at step 0, the squared Hellinger distance that a whole ball reaches along one axis. Unit: opacity.
    Source: own experiments."""

    epsilon_end: float = 3e-6
    """ε when the run ends; in between it decays exponentially. Unit: opacity. Source: own experiments."""

    most_relative_distance: float = 1.25e-3
    """ε/α counts as at most this: at first, faint Gaussians move no further than opaque ones. Unit: fraction.
    Source: own experiments."""

    momentum: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    memory: float = 0.9
    """Decay of the mean of blocks, per refresh. Unit: fraction. Source: own experiments."""

    refresh: int = 10
    """Steps from one look at the curvature to the next. Unit: steps. Source: 3DGS²-TR."""

    overlap: float = 4.0
    """Factor on the measured overlap κ. Unit: factor. Source: own experiments."""

    damping: float = 0.18
    """No multiplier lies below this share of the mean |ηg| over the rows seen, what their balls promise to first
    order; rows that promise little then stay inside theirs. 0 for none. Unit: factor. Source: own experiments."""

    factorisations: int = 2
    """Cholesky factorisations a step. Unit: factorisations. Source: own experiments."""

    most_growth: float = 16.0
    """No Gaussian becomes larger than this multiple of what it began as; 0 for no bound. Unit: factor.
    Source: docs/optim.md."""

    least_reach: float = 1.0
    """Below 1: where steps make views worse that they did not know, the radii of their types (places, shapes, looks)
    shrink, to this share at least. 1 for radii that ε alone decides. Unit: fraction. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse radii that are not positive, decays that never forget, and no refresh at all."""
        super().__post_init__()
        check_positive("overlap", self.overlap)
        check_growth(self.most_growth)
        if not 0 < self.least_reach <= 1:
            raise InputError(f"least_reach must lie above 0 and be at most 1, got {self.least_reach}")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"damping must be at least 0, got {self.damping}")
        for name in ("momentum", "memory"):
            check_fraction(name, getattr(self, name))
        for name in ("refresh", "factorisations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
            check_not_endless(name, getattr(self, name))


class _Curvature(PerParameter):
    """A state whose absence is no fault before the first step: older versions wrote none there."""

    def load(self, state: OptimizerState) -> None:
        if _has_curvature(state):
            super().load(state)
        else:
            for value in self.values.values():
                value.zero_()


class _Blocks(StatePart):
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

    def _by_row(self) -> Tensor:
        return from_lanes(self.values, self._rows) if self._in_lanes else self.values

    def tensors(self) -> dict[str, Tensor]:
        return {"blocks": self._by_row()}

    def load(self, state: OptimizerState) -> None:
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


class BlockGaussNewton(Optimizer):
    """One trust-region step per row (Gaussian) with its own block of JᵀJ; the rest by its diagonal.

    Gradient and blocks are running means, corrected for their start; a row's blocks count from when it
    became fresh. Rows that the batch did not see stay where they are. A float32 cloud takes one fused pass,
    native on the CPU and Triton's on a GPU; all others the same iteration in torch.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.GAUSS_NEWTON_BLOCKS})

    def __init__(
        self, objective: Objective, options: BlockGaussNewtonOptions, generator: torch.Generator | None = None
    ) -> None:
        """Start with no curvature and no momentum; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._radii = HellingerRadii(options, objective.length_scale)
        parameters = objective.parameters
        self._names = objective.block_names
        rest = [name for name in parameters if name not in self._names]
        self._correction = 1.0
        self._steps = self.remember(Number("steps", 0))
        self._kappa = self.remember(Number("kappa", 0.0))
        self._promise = self.remember(Number("promise", 0.0))
        self._momentum = self.remember(PerParameter("momentum", parameters, degree=1))
        self._age = self.remember(PerRow("age", parameters, saved_as="age"))
        self._multipliers = self.remember(PerRow("multipliers", parameters, saved_as="multipliers"))
        self._diagonal = self.remember(_Curvature("diagonal", parameters, degree=2, resettable=False, only=rest))
        fused = self._passes(1)  # the layout is the same for any number of threads
        self._blocks = self.remember(_Blocks(parameters, self._names, fused is not None and fused.in_lanes))
        self._reach = self.remember(Reach(tuple(parameters), options.least_reach))
        self._growth = self.remember(GrowthBound(parameters, options.most_growth))

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate, look at the curvature where it is due, and move every row that was seen."""
        self._steps.value += 1
        epsilon = self.options.distance(progress)
        if (self._steps.value - 1) % self.options.refresh:
            evaluation = self.objective.gradient(batch)
            self._move(self.objective.parameters, evaluation, epsilon)
        else:
            evaluation = self._refresh(batch, epsilon)
        self._growth.hold(self.objective.parameters)
        return replace(evaluation, facts={**evaluation.facts, **self._reach.facts})

    def _refresh(self, batch: Any, epsilon: float) -> Evaluation:
        """Take a step that looks at the curvature and, every other time, at the overlap.

        Where radii adapt, it looks at the overlap every time, and at what it is worth on a batch unheard of.
        """
        parameters = self.objective.parameters
        unheard = self._reach.adapts and self._steps.value > 1
        measures = unheard or (self._steps.value - 1) // self.options.refresh % _OVERLAP_EVERY == 0
        with self.objective.held():
            evaluation, fresh = self.objective.gradient(batch), self.objective.gauss_newton_blocks(batch)
            self._fold(fresh)
            step = self._tried(evaluation, epsilon, listen=not unheard) if measures else {}
            if measures:
                self._measure_overlap(batch, fresh, step)
        if not measures:
            self._move(parameters, evaluation, epsilon)
        if unheard:
            judged = self._reach.judged
            promised = -sum(float((self._momentum[name] * step[name]).sum(dtype=torch.float64)) for name in judged)
            self._listen(evaluation)
            for name in judged:
                parameters[name].add_(step.pop(name))
            self._reach.judge(evaluation.loss, self.objective.value(batch), promised * self._correction)
        for name, change in step.items():
            parameters[name].add_(change)
        return evaluation

    def _tried(self, evaluation: Evaluation, epsilon: float, listen: bool) -> dict[str, Tensor]:
        """Return the step, without having gone it."""
        parameters = self.objective.parameters
        moved = {name: value.clone() for name, value in parameters.items()}
        self._move(moved, evaluation, epsilon, listen)
        return {name: value.sub_(parameters[name]) for name, value in moved.items()}

    def _listen(self, evaluation: Evaluation) -> None:
        """Take the gradient into the momentum, m ← m + (1-θ₁)(g - m)."""
        for name, mean in self._momentum.values.items():
            mean.lerp_(evaluation.gradient[name], 1 - self.options.momentum)

    @property
    def _fused(self) -> FusedPasses | None:
        """The passes that take the blocks as they are kept; None where the step is taken in torch."""
        return self._passes(self.threads)

    def _passes(self, threads: int) -> FusedPasses | None:
        takes = self._names == BLOCK_TENSORS and set(self._diagonal.values) == {"sh_rest"}
        clouds = (self.objective.parameters, self._momentum.values)
        return fused_passes(threads, *clouds, isa=self.instructions) if takes else None

    def _fold(self, fresh: GaussNewtonBlocks) -> None:
        """B ← B + w·(fresh - B), w = (1-θ₂)/(1-θ₂ᵃ), a the age: the running mean, corrected for its start."""
        self._age.values += 1
        memory = self.options.memory
        weights = ((1 - memory) / (1 - memory ** self._age.values.double())).to(self._age.values.dtype)
        fused = self._fused
        if fused is not None:
            fused.passes.fold_blocks(self._blocks.values, fresh.blocks, weights)
        else:
            self._blocks.values.lerp_(fresh.blocks, weights[:, None])
        for name, mean in self._diagonal.values.items():
            mean.lerp_(fresh.diagonal[name], weights.view(-1, *[1] * (mean.dim() - 1)))

    def _measure_overlap(self, batch: Any, fresh: GaussNewtonBlocks, step: Tensors) -> None:
        """κ ← running mean of ‖J d‖² / Σ dᵀB d, both on this batch at the point where the step d began."""
        together = self.objective.gauss_newton_form(batch, step)
        alone = self._own_form(fresh, step)
        if alone > 0 and math.isfinite(together):
            measured = max(1.0, together / alone)
            kept = _OVERLAP_MEMORY if self._kappa.value else 0.0
            self._kappa.value = kept * self._kappa.value + (1 - kept) * measured

    def _own_form(self, fresh: GaussNewtonBlocks, step: Tensors) -> float:
        """Σ dᵀB d over the rows, and Σ D d² over what has a diagonal alone."""
        fused = self._fused
        if fused is not None:
            return fused.passes.block_form(fresh.blocks, fresh.diagonal["sh_rest"], fused.cloud(step))
        d = side_by_side(step, fresh.names).double()
        row, column = torch.tril_indices(d.shape[1], d.shape[1], device=d.device)
        twice = torch.where(row == column, 1.0, 2.0).double()
        form = (fresh.blocks.double() * d[:, row] * d[:, column] * twice).sum()
        for name, diagonal in fresh.diagonal.items():
            form += (diagonal * step[name].square()).sum(dtype=torch.float64)
        return float(form)

    @property
    def overlap_factor(self) -> float:
        """κ, the measured overlap; 8 before it has been measured."""
        return self._kappa.value or 8.0

    def _move(self, parameters: Tensors, evaluation: Evaluation, epsilon: float, listen: bool = True) -> None:
        """Move all of ``parameters`` that was seen, by the momentum with this gradient, or by the momentum alone."""
        fused, heard = self._fused, self._steps.value if listen else self._steps.value - 1
        self._correction = 1 / (1 - self.options.momentum**heard)  # of the momentum for its start
        if fused is not None:
            self._move_fused(fused, parameters, evaluation, epsilon, listen)
            return
        if listen:
            self._listen(evaluation)
        seen = evaluation.seen
        rows = (torch.ones_like(self._age.values) if seen is None else seen).nonzero().squeeze(1)
        where = {name: value[rows] for name, value in parameters.items()}
        radii = {
            name: eta.expand_as(where[name])
            for name, eta in self._radii.radii(where, epsilon, self._reach.factors).items()
        }
        damping = self._damping(rows, radii)
        known = self._known(rows)
        rows, radii = rows[known], {name: eta[known] for name, eta in radii.items()}
        with quaternion_lengths_kept(parameters):
            self._step_blocks(parameters, rows, radii, damping)
            self._step_diagonal(parameters, rows, radii)

    def _known(self, rows: Tensor) -> Tensor:
        """Whether any curvature of the rows is known."""
        size = (math.isqrt(8 * self._blocks.values.shape[1] + 1) - 1) // 2
        diagonal = torch.arange(1, size + 1, device=rows.device).cumsum(0) - 1
        return (self._blocks.values[rows][:, diagonal] > 0).any(dim=1)

    def _move_fused(
        self, fused: FusedPasses, parameters: Tensors, evaluation: Evaluation, epsilon: float, listen: bool
    ) -> None:
        bounds, seen = self._radii.fused_bounds(fused, epsilon, self._reach.factors), evaluation.seen

        def step(damping: float, measure_only: bool) -> float:
            promised = fused.passes.block_step(
                bounds,
                *(fused.cloud(tensors) for tensors in (parameters, evaluation.gradient, self._momentum.values)),
                self._blocks.values,
                self._diagonal["sh_rest"],
                seen,
                self._multipliers.values,
                decay=self.options.momentum if listen else 1.0,
                correction=1.0 if measure_only else self._correction,
                scale=self._scale,
                damping=damping,
                factorisations=self.options.factorisations,
                measure_only=measure_only,
            )
            return promised / max(1, len(self._age.values) if seen is None else int(seen.count_nonzero()))

        if self._steps.value == 1:
            self._take_promise(step(0.0, measure_only=True))
        self._take_promise(step(self.options.damping * self._promise.value, measure_only=False))

    def _take_promise(self, promise: float) -> None:
        """Keep what a step promised; of one with a row that broke down it is no number."""
        if math.isfinite(promise):
            self._promise.value = promise

    @property
    def _scale(self) -> float:
        """What the blocks are multiplied by."""
        return self.options.overlap * self.overlap_factor

    def _mean_gradient(self, rows: Tensor) -> Tensor:
        """The momentum of the blocks' parameters, corrected for its start, (rows, B)."""
        return side_by_side({name: self._momentum[name][rows] * self._correction for name in self._names}, self._names)

    def _damping(self, rows: Tensor, radii: Tensors) -> float:
        """λ mean |h| over ``rows``, all that were seen, at the step before; at the first one it is its own."""
        promises = (self._mean_gradient(rows) * side_by_side(radii, self._names)).norm(dim=1)
        promise = float(promises.mean()) if len(rows) else 0.0
        damping = self.options.damping * (promise if self._steps.value == 1 else self._promise.value)
        self._take_promise(promise)
        return damping

    def _step_blocks(self, parameters: Tensors, rows: Tensor, radii: Tensors, damping: float) -> None:
        names = self._names
        gradient, eta = self._mean_gradient(rows), side_by_side(radii, names)
        multipliers = self._multipliers.values[rows]
        steps = solve_in_balls(
            self._blocks.values[rows], gradient, eta, self._scale, damping, multipliers, self.options.factorisations
        )
        self._multipliers.values[rows] = multipliers
        begin = 0
        for name in names:
            parameter = parameters[name]
            width = parameter[:1, None].flatten(1).shape[1]
            parameter[rows] += steps[:, begin : begin + width].reshape(-1, *parameter.shape[1:])
            begin += width

    def _step_diagonal(self, parameters: Tensors, rows: Tensor, radii: Tensors) -> None:
        for name, mean in self._diagonal.values.items():
            gradient = self._momentum[name][rows] * self._correction
            # At the smallest number instead of 0, the quotient is beyond any radius for g ≠ 0, and 0 for g = 0.
            curvature = (self._scale * mean[rows]).clamp_min(torch.finfo(mean.dtype).tiny)
            step = gradient / curvature
            parameters[name][rows] -= torch.maximum(torch.minimum(step, radii[name]), -radii[name])


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
        damping: Least multiplier.
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


register(
    "block-gn",
    BlockGaussNewton,
    BlockGaussNewtonOptions,
    help="each Gaussian's own 14x14 block of curvature within one Hellinger ball",
)
