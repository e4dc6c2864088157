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
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, OptimizerState, Progress, register
from splatopt.core.rows import RowEdit
from splatopt.curvature.blocks import side_by_side, unpack_blocks
from splatopt.optim.first_order import load_like
from splatopt.optim.hellinger import HellingerRadii, TrustRegionOptions, quaternion_lengths_kept

NATIVE_BLOCK = 14


@dataclass(frozen=True)
class BlockGaussNewtonOptions(TrustRegionOptions):
    """Block Gauss-Newton; there are no learning rates, ε is the one knob."""

    epsilon_start: float = 3e-4
    """Squared Hellinger distance of the ball at step 0. Unit: fraction. Source: own experiments."""

    momentum: float = 0.9
    """Decay of the mean of gradients. Unit: fraction. Source: 3DGS²-TR."""

    memory: float = 0.9
    """Decay of the mean of blocks, per refresh. Unit: fraction. Source: own experiments."""

    refresh: int = 10
    """Steps from one look at the curvature to the next. Unit: steps. Source: 3DGS²-TR."""

    overlap: float = 8.0
    """Factor on the measured overlap κ. Unit: factor. Source: own experiments."""

    factorisations: int = 2
    """Cholesky factorisations a step. Unit: factorisations. Source: own experiments."""

    def __post_init__(self) -> None:
        """Refuse radii that are not positive, decays that never forget, and no refresh at all."""
        super().__post_init__()
        check_positive("overlap", self.overlap)
        for name in ("momentum", "memory"):
            check_fraction(name, getattr(self, name))
        for name in ("refresh", "factorisations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


class BlockGaussNewton(Optimizer):
    """One trust-region step per row (Gaussian) with its own block of JᵀJ; the rest by its diagonal.

    Gradient and blocks are running means, corrected for their start; a row's blocks count from when it
    became fresh. Rows that the batch did not see stay where they are. Contiguous float32 blocks of 14 on
    the CPU are solved natively; all others by the same iteration in torch.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.GAUSS_NEWTON_BLOCKS})

    def __init__(
        self, objective: Objective, options: BlockGaussNewtonOptions, generator: torch.Generator | None = None
    ) -> None:
        """Start with no curvature and no momentum; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        self._radii = HellingerRadii(options)
        self._steps = 0
        self._kappa = 0.0
        self._momentum = {name: torch.zeros_like(value) for name, value in objective.parameters.items()}
        self._names: tuple[str, ...] = ()
        self._blocks: Tensor | None = None
        self._diagonal: dict[str, Tensor] = {}
        rows = next(iter(objective.parameters.values()))
        self._age = rows.new_zeros(rows.shape[0])
        self._multipliers = rows.new_zeros(rows.shape[0])
        self._moved: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Evaluate, look at the curvature where it is due, and move every row that was seen."""
        options = self.options
        evaluation = self.objective.gradient(batch)
        self._steps += 1
        for name, mean in self._momentum.items():
            mean.lerp_(evaluation.gradient[name], 1 - options.momentum)
        if (self._steps - 1) % options.refresh == 0:
            self._refresh(batch)
        seen = evaluation.seen
        rows = torch.arange(len(self._age)) if seen is None else seen.nonzero().squeeze(1)
        where = {name: value[rows] for name, value in self.objective.parameters.items()}
        radii = {
            name: eta.expand_as(where[name])
            for name, eta in self._radii.radii(where, options.distance(progress)).items()
        }
        self._moved = {name: torch.zeros_like(value) for name, value in self.objective.parameters.items()}
        self._step_blocks(rows, radii)
        self._step_diagonal(rows, radii)
        with quaternion_lengths_kept(self.objective.parameters):
            for name, parameter in self.objective.parameters.items():
                parameter.add_(self._moved[name])
        return evaluation

    def _refresh(self, batch: Any) -> None:
        """Fold the batch's curvature into the running means, and measure the overlap along the last step."""
        options = self.options
        fresh = self.objective.gauss_newton_blocks(batch)
        if self._moved:
            self._measure_overlap(batch, fresh)
        if self._blocks is None:
            self._names = fresh.names
            self._blocks = torch.zeros_like(fresh.blocks)
            self._diagonal = {name: torch.zeros_like(value) for name, value in fresh.diagonal.items()}
        self._age += 1
        self._blocks.lerp_(fresh.blocks, 1 - options.memory)
        for name, mean in self._diagonal.items():
            mean.lerp_(fresh.diagonal[name], 1 - options.memory)

    def _measure_overlap(self, batch: Any, fresh: GaussNewtonBlocks) -> None:
        """κ ← running mean of ‖J d‖² / Σ dᵀB d, both on this batch, d the last step."""
        together = sum(float(part.double().square().sum()) for part in self.objective.jvp(batch, self._moved))
        step = side_by_side(self._moved, fresh.names).double()
        size = step.shape[1]
        row, column = torch.tril_indices(size, size)
        twice = torch.where(row == column, 1.0, 2.0).double()
        alone = float((fresh.blocks.double() * step[:, row] * step[:, column] * twice).sum())
        for name, diagonal in fresh.diagonal.items():
            alone += float((diagonal.double() * self._moved[name].double().square()).sum())
        if alone > 0 and math.isfinite(together):
            measured = max(1.0, together / alone)
            self._kappa = measured if self._kappa == 0 else 0.8 * self._kappa + 0.2 * measured

    @property
    def overlap_factor(self) -> float:
        """κ, the measured overlap; 8 before it has been measured."""
        return self._kappa or 8.0

    def _mean_gradient(self, name: str, rows: Tensor) -> Tensor:
        return self._momentum[name][rows] / (1 - self.options.momentum**self._steps)

    def _correction(self, rows: Tensor) -> Tensor:
        """1 / (1 - memory^age) of each row."""
        return 1 / (1 - self.options.memory ** self._age[rows].clamp_min(1))

    def _step_blocks(self, rows: Tensor, radii: Tensors) -> None:
        assert self._blocks is not None  # the first step refreshes
        names = self._names
        gradient = side_by_side({name: self._mean_gradient(name, rows) for name in names}, names)
        eta = side_by_side(radii, names)
        blocks = self._blocks[rows]
        blocks *= self._correction(rows)[:, None]
        scale = self.options.overlap * self.overlap_factor
        multipliers = self._multipliers[rows]
        steps = solve_in_balls(
            blocks, gradient, eta, scale, multipliers, self.options.factorisations, threads=self.threads
        )
        self._multipliers[rows] = multipliers
        # A row without any gradient has nothing to go by.
        steps[gradient.abs().sum(dim=1) == 0] = 0
        begin = 0
        for name in names:
            moved = self._moved[name]
            width = moved[:, None].flatten(1).shape[1]
            moved[rows] = steps[:, begin : begin + width].reshape(-1, *moved.shape[1:])
            begin += width

    def _step_diagonal(self, rows: Tensor, radii: Tensors) -> None:
        scale = self.options.overlap * self.overlap_factor
        correction = self._correction(rows)
        for name, mean in self._diagonal.items():
            if not mean.count_nonzero():  # spherical harmonics above the degree that is rendered
                continue
            gradient = self._mean_gradient(name, rows)
            curvature = mean[rows] * correction.view(-1, *[1] * (mean.dim() - 1)) * scale
            step = torch.where(curvature > 0, -gradient / curvature.clamp_min(1e-30), torch.zeros_like(gradient))
            self._moved[name][rows] = torch.maximum(torch.minimum(step, radii[name]), -radii[name])

    def state(self) -> OptimizerState:
        """Return momentum, blocks, diagonals, ages, multipliers, the last step, and the counters."""
        tensors = {f"momentum.{name}": value for name, value in self._momentum.items()}
        tensors |= {f"diagonal.{name}": value for name, value in self._diagonal.items()}
        tensors |= {f"moved.{name}": value for name, value in self._moved.items()}
        tensors |= {"age": self._age, "multipliers": self._multipliers}
        if self._blocks is not None:
            tensors["blocks"] = self._blocks
        return OptimizerState(tensors=tensors, scalars={"steps": self._steps, "kappa": self._kappa})

    def load_state(self, state: OptimizerState) -> None:
        """Go on from ``state``; raises InputError where it does not fit the parameters."""
        tensors, parameters = state.tensors, self.objective.parameters
        if not {"steps", "kappa"} <= set(state.scalars) or not {"age", "multipliers"} <= set(tensors):
            raise InputError("this is not a state of block-gn; start a new run")
        self._momentum = load_like(parameters, tensors, "momentum")
        self._age, self._multipliers = tensors["age"].clone(), tensors["multipliers"].clone()
        if self._age.shape != (next(iter(parameters.values())).shape[0],):
            raise InputError("the state of block-gn belongs to another number of rows; resume the run that wrote it")
        inside = [name for name in parameters if f"diagonal.{name}" not in tensors]
        self._diagonal = load_like({n: p for n, p in parameters.items() if n not in inside}, tensors, "diagonal")
        self._blocks = tensors["blocks"].clone() if "blocks" in tensors else None
        self._names = tuple(inside) if self._blocks is not None else ()
        moved = any(key.startswith("moved.") for key in tensors)
        self._moved = load_like(parameters, tensors, "moved") if moved else {}
        self._steps, self._kappa = int(state.scalars["steps"]), float(state.scalars["kappa"])

    def edit_rows(self, edit: RowEdit) -> None:
        """Gather all per-row state; fresh rows start without momentum, curvature, age and multiplier."""
        for group in (self._momentum, self._diagonal, self._moved):
            for name, value in group.items():
                group[name] = edit.gather_state(value)
        self._age, self._multipliers = edit.gather_state(self._age), edit.gather_state(self._multipliers)
        if self._blocks is not None:
            self._blocks = edit.gather_state(self._blocks)


def solve_in_balls(
    blocks: Tensor,
    gradient: Tensor,
    radii: Tensor,
    scale: float,
    multipliers: Tensor,
    factorisations: int,
    *,
    threads: int = 0,
) -> Tensor:
    """Return the steps (N, B) that minimise gᵀd + ½ dᵀ(scale·B)d within Σ (d_k/η_k)² ≤ 1.

    ηBη is regularised by 1e-6 of its trace, which a block without full rank needs. A row whose block is zero
    stays: nothing is known about how far it may go.

    Args:
        blocks: B, lower triangles by row, (N, B·(B+1)/2).
        gradient: g, (N, B).
        radii: η > 0, (N, B).
        scale: Factor on B.
        multipliers: μ of each row to begin with, (N,); becomes the next one.
        factorisations: Factorisations, each with one Newton step on μ.
        threads: Threads of the native solver; 0 for one per processor.
    """
    native_fits = gradient.shape[1] == NATIVE_BLOCK and gradient.dtype == torch.float32 and native.available()
    if native_fits and gradient.device.type == "cpu":
        steps = torch.empty_like(gradient)
        native.solve_blocks(blocks, gradient, radii.contiguous(), scale, factorisations, multipliers, steps, threads)
        return steps
    scaled = scale * radii[:, :, None] * unpack_blocks(blocks) * radii[:, None, :]
    right = -(radii * gradient)
    trace = scaled.diagonal(dim1=1, dim2=2).sum(dim=1)
    known = trace > 0
    scaled[~known] = torch.eye(gradient.shape[1], dtype=gradient.dtype)
    right = torch.where(known[:, None], right, 0)
    floor = (trace * 1e-6).clamp_min(1e-30)
    eye = torch.eye(gradient.shape[1], dtype=gradient.dtype)
    for _ in range(factorisations):
        factor = torch.linalg.cholesky(scaled + (multipliers + floor)[:, None, None] * eye)
        step = torch.cholesky_solve(right[:, :, None], factor)
        slope = torch.linalg.solve_triangular(factor, step, upper=False)
        squared = step.square().sum(dim=(1, 2))
        length = squared.sqrt()
        change = squared / slope.square().sum(dim=(1, 2)).clamp_min(1e-30) * (length - 1)
        multipliers.copy_(torch.where(known, multipliers + change, multipliers)).clamp_min_(0)
    return step.squeeze(2) * radii / length.clamp_min(1)[:, None]


register(
    "block-gn",
    BlockGaussNewton,
    BlockGaussNewtonOptions,
    help="each Gaussian's own 14x14 block of curvature within one Hellinger ball",
)
