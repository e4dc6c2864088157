"""Levenberg-Marquardt by matrix-free preconditioned conjugate gradients, after 3DGS-LM (Höllein et al. 2025).

With the gradient g of the loss ½‖r‖², J = ∂r/∂θ and D = diag(JᵀJ), a step solves

    (JᵀJ + λ (D + h/η²)) Δ = -g

by a few iterations of conjugate gradients, which ask for JᵀJ v, one view at a time, and never for J. η are the
Hellinger radii of distance 1, so that h/η² charges a change by the squared Hellinger distance that it moves a
Gaussian; it is what keeps parameters in place that the views hardly see, and h = 0 is the published damping.

The step's views may be split into batches that are solved alone; with D_i of batch i, Δ = Σ D_i Δ_i / Σ D_i in each
entry. A line search over a share of the views finds γ, and θ ← θ + γΔ. The gain ratio

    ρ = (L(θ + γΔ) - L(θ)) / (γ gᵀΔ + ½ γ² ‖JΔ‖²)

compares what the loss did with what its model had said. Where ρ > 1e-5 the step is kept and λ is halved; otherwise
the parameters go back, bit for bit, and λ is doubled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from splatopt.core.checks import InputError, check_not_endless
from splatopt.core.devices import free_memory
from splatopt.core.objective import Evaluation, Objective, Oracle, Tensors
from splatopt.core.optimizer import Optimizer, Progress, register
from splatopt.core.state import Number
from splatopt.curvature.conjugate_gradients import conjugate_gradients, inner
from splatopt.curvature.estimators import Exact
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.preconditioners import BlockPreconditioner, DiagonalPreconditioner, Preconditioner
from splatopt.optim.hellinger import HellingerRadii, RadiusBounds, quaternion_lengths_kept

PreconditionerName = Literal["diagonal", "block"]
"""Jacobi's, or each Gaussian's own block."""

_SMALL_DISTANCE = 1e-6
"""η²/ε is taken at this ε, where it is as good as constant."""

_MEBIBYTE = 2**20

_VECTORS = 16
"""Vectors as long as the parameters that a step holds at its peak, the objective's buffers included."""

_BLOCK_COPIES = 4
"""Square copies of the blocks that inverting them holds at its peak."""


@dataclass(frozen=True)
class LevenbergMarquardtOptions:
    """Levenberg-Marquardt; there is no learning rate."""

    views: int = 0
    """Views a step looks at, in place of --view-batch; 0 for all training views. Unit: views. Source: own
    experiments; 3DGS-LM takes 25 to 280."""

    batches: int = 1
    """The step's views are split into so many batches, each solved alone. Unit: batches. Source: own experiments;
    3DGS-LM takes up to 4."""

    curvature_share: float = 0.34
    """Share of a batch's views whose JᵀJ is multiplied by, other ones at every step; gradient and diagonal are
    always of all. Rounded to one n-th. Unit: fraction. Source: own experiments; 3DGS-LM takes all."""

    iterations: int = 6
    """Iterations of conjugate gradients. Unit: iterations. Source: own experiments; 3DGS-LM takes 8."""

    tolerance: float = 0.0
    """They end early where the preconditioned residual falls to this share of where it began; 0 for never.
    Unit: fraction. Source: 3DGS-LM has none."""

    preconditioner: PreconditionerName = "block"
    """What makes them converge: diagonal (Jacobi), or block (each Gaussian's own 14x14).
    Unit: choice. Source: own experiments; 3DGS-LM takes the diagonal."""

    damping_start: float = 2.0
    """λ at the first step. Unit: factor. Source: own experiments."""

    damping_least: float = 0.2
    """λ does not fall below. Unit: factor. Source: own experiments; 3DGS-LM takes 1e-4."""

    damping_most: float = 1e4
    """λ does not rise above. Unit: factor. Source: 3DGS-LM."""

    hellinger_damping: float = 1e-4
    """h, what λ damps besides diag(JᵀJ); 0 for nothing. Unit: loss per squared Hellinger distance.
    Source: own experiments; 3DGS-LM has none."""

    least_gain: float = 1e-5
    """A step is kept where its gain ratio is above. Unit: fraction. Source: 3DGS-LM."""

    halvings: int = 4
    """The line search halves γ = 1 for as long as the loss falls, at most so many times. Unit: halvings.
    Source: own choice."""

    search_share: float = 0.34
    """Share of the step's views that the line search looks at, other ones at every step. Rounded to one n-th.
    Unit: fraction. Source: 3DGS-LM takes 0.3."""

    memory_mebibytes: int = 0
    """Memory that a step may take beside the parameters; 0 for what the machine has free. Unit: MiB.
    Source: own choice."""

    def __post_init__(self) -> None:
        """Refuse steps that look at nothing or that cannot end, and bounds in the wrong order."""
        at_least = {"views": 0, "batches": 1, "iterations": 1, "halvings": 0, "memory_mebibytes": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InputError(f"lm's {name} must be at least {least}, got {getattr(self, name)}")
            if name != "memory_mebibytes":
                check_not_endless(f"lm's {name}", getattr(self, name))
        if not 0 < self.damping_least <= self.damping_start <= self.damping_most < math.inf:
            raise InputError(
                "lm's damping must satisfy 0 < damping_least <= damping_start <= damping_most, all finite, got "
                f"{self.damping_least}, {self.damping_start} and {self.damping_most}"
            )
        for name in ("curvature_share", "search_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"lm's {name} must be above 0 and at most 1, got {getattr(self, name)}")
        for name in ("tolerance", "least_gain"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"lm's {name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.hellinger_damping < math.inf:
            raise InputError(f"lm's hellinger_damping must be a number of at least 0, got {self.hellinger_damping}")
        if self.preconditioner not in get_args(PreconditionerName):
            raise InputError(f"lm's preconditioner must be diagonal or block, got {self.preconditioner!r}")


class _MeanEvaluation:
    """The mean of the batches' evaluations, with a gradient of its own."""

    def __init__(self, layout: FlatLayout) -> None:
        self._layout = layout
        self._loss = 0.0
        self._facts: dict[str, float] = {}
        self._seen: Tensor | None = None
        self._gradient: Tensor | None = None

    def add(self, evaluation: Evaluation, weight: float) -> Tensor:
        """Count one batch by its share of the views, and return a copy of its gradient."""
        gradient = self._layout.flatten(evaluation.gradient)
        self._loss += weight * evaluation.loss
        for name, value in evaluation.facts.items():
            self._facts[name] = self._facts.get(name, 0.0) + weight * value
        if evaluation.seen is not None:
            self._seen = evaluation.seen.clone() if self._seen is None else self._seen | evaluation.seen
        self._gradient = gradient * weight if self._gradient is None else self._gradient.add_(gradient, alpha=weight)
        return gradient

    @property
    def gradient(self) -> Tensor:
        """The mean g of all batches so far."""
        assert self._gradient is not None  # there is at least one batch
        return self._gradient

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self._loss) and bool(torch.isfinite(self.gradient).all())

    def result(self) -> Evaluation:
        """Return the mean."""
        return Evaluation(self._loss, self._layout.unflatten(self.gradient), self._seen, self._facts)


class _Combination:
    """Σ D_i Δ_i / Σ D_i of the batches' directions in each entry, 0 where Σ D_i is; one alone stays as it is."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, direction: Tensor, diagonal: Tensor) -> None:
        """Take Δ_i and D_i of one batch, both to keep."""
        self._count += 1
        if self._count == 1:
            self._sum, self._weights = direction, diagonal
            return
        if self._count == 2:
            self._sum = self._sum * self._weights
        self._sum = self._sum.addcmul_(direction, diagonal)
        self._weights = self._weights + diagonal

    def result(self) -> Tensor:
        """Return Δ."""
        if self._count == 1:
            return self._sum
        return torch.where(self._weights > 0, self._sum / self._weights, 0)


@dataclass(frozen=True)
class _Model:
    """What the linearised residuals say of a step γΔ: the loss changes by γ gᵀΔ + ½ γ² ‖JΔ‖².

    Attributes:
        slope: gᵀΔ.
        bend: ‖JΔ‖².
    """

    slope: float
    bend: float

    def change(self, length: float) -> float:
        """Return the predicted change for γ."""
        return length * self.slope + 0.5 * length**2 * self.bend


class LevenbergMarquardt(Optimizer):
    """Damped Gauss-Newton steps over many views at once, kept only where the loss falls.

    The evaluation's facts say what became of a step: ``damping`` (λ that it was solved with), ``step_length`` (γ,
    0 where it was taken back) and ``gain_ratio`` (ρ, 0 where there was none to measure). Where loss or gradient
    are not finite, nothing moves.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset(
        {Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.GAUSS_NEWTON_DIAGONAL}
    )

    def __init__(
        self, objective: Objective, options: LevenbergMarquardtOptions, generator: torch.Generator | None = None
    ) -> None:
        """Start with the damping of ``options``; see :class:`~splatopt.core.optimizer.Optimizer`."""
        super().__init__(objective, options, generator)
        if options.preconditioner == "block":
            objective.require(frozenset({Oracle.GAUSS_NEWTON_BLOCKS}), "lm with the block preconditioner")
        self._radii = HellingerRadii(RadiusBounds(), objective.length_scale)
        self._damping = self.remember(Number("damping", float(options.damping_start)))
        self._steps = self.remember(Number("steps", 0))

    @property
    def batch_size(self) -> int:
        """Views that a step wants, 0 for all."""
        return self.options.views

    def check_batch(self, batch: Any) -> None:
        """Refuse options that ask for more views than there are, and a step that does not fit into memory.

        Args:
            batch: All parts (views).

        Raises:
            InputError: Names what there is, or the memory that a step needs and what it may take.
        """
        options, parts = self.options, len(self.objective.parts(batch))
        if options.views > parts:
            raise InputError(f"lm's views must be at most the training views, {parts}, got {options.views}")
        if options.batches > (options.views or parts):
            raise InputError(
                f"lm's batches must be at most the views of a step, {options.views or parts}, got {options.batches}"
            )
        first = next(iter(self.objective.parameters.values()))
        self._check_memory(batch, options.memory_mebibytes * _MEBIBYTE or free_memory(first.device))

    def _check_memory(self, batch: Any, allowed: int) -> None:
        needed = self.memory_needed(batch)
        if needed > allowed:
            rows = next(iter(self.objective.parameters.values())).shape[0]
            remedies = ["raise lm's memory_mebibytes"] if self.options.memory_mebibytes else []
            remedies += ["take its diagonal preconditioner"] if self.options.preconditioner == "block" else []
            raise InputError(
                f"a step of lm needs {math.ceil(needed / _MEBIBYTE)} MiB of memory, for {rows:,} rows and the "
                f"residuals of one view, and may take {allowed // _MEBIBYTE}; "
                + ", ".join([*remedies, "train on smaller photographs, or begin with fewer Gaussians"])
            )

    def memory_needed(self, batch: Any) -> int:
        """Return the bytes that a step on ``batch`` takes beside the parameters and the renderer's own buffers.

        16 vectors as long as the parameters; for blocks of B entries, 4 B² + ½ B (B+1) numbers a row; and twice the
        residuals of the largest view: they are used one view at a time, so the number of views does not count.
        """
        objective, parameters = self.objective, self.objective.parameters
        numbers = _VECTORS * sum(value.numel() for value in parameters.values())
        if self.options.preconditioner == "block":
            inside = [parameters[name] for name in objective.block_names]
            size = sum(math.prod(value.shape[1:]) for value in inside)
            numbers += inside[0].shape[0] * (_BLOCK_COPIES * size**2 + size * (size + 1) // 2)
        residuals = (objective.empty_residuals(part) for part in objective.parts(batch))
        numbers += 2 * max(sum(piece.numel() for piece in view) for view in residuals)
        return numbers * next(iter(parameters.values())).element_size()

    @torch.no_grad()
    def step(self, batch: Any, progress: Progress) -> Evaluation:
        """Solve for a direction, search along it, and keep the step where the loss has fallen by it."""
        if self.options.memory_mebibytes:  # what the machine has free is looked at before a run, not in the midst of it
            self._check_memory(batch, self.options.memory_mebibytes * _MEBIBYTE)
        objective, layout = self.objective, FlatLayout(self.objective.parameters)
        batches = objective.split(batch, self.options.batches)
        weights = [len(objective.parts(views)) / len(objective.parts(batch)) for views in batches]
        means, combination = _MeanEvaluation(layout), _Combination()
        distances = self._distances(layout)
        for views, weight in zip(batches, weights, strict=True):
            gradient = means.add(objective.gradient(views), weight)
            if means.finite:
                combination.add(*self._solve(views, gradient, distances, layout))
        evaluation = means.result()
        if not means.finite:
            return evaluation
        direction = combination.result()
        tangent = layout.unflatten(direction)
        shares = (self._some(views, self.options.curvature_share) for views in batches)
        bends = (objective.gauss_newton_form(views, tangent) for views in shares)
        bend = sum(weight * bend for weight, bend in zip(weights, bends, strict=True))
        model = _Model(inner(means.gradient, direction), bend)
        length, gain = self._walk(batch, evaluation.loss, tangent, model)
        facts = {"damping": self._damping.value, "step_length": length, "gain_ratio": gain}
        self._steps.value += 1
        damping = self._damping.value * (0.5 if length > 0 else 2)
        self._damping.value = min(max(damping, self.options.damping_least), self.options.damping_most)
        return replace(evaluation, facts={**evaluation.facts, **facts})

    def _solve(self, views: Any, gradient: Tensor, distances: Tensor, layout: FlatLayout) -> tuple[Tensor, Tensor]:
        """Return Δ of one batch and its diag(JᵀJ)."""
        preconditioner = self._precondition(views, layout)
        diagonal = preconditioner.diagonal
        damping = self._damping.value * (diagonal + self.options.hellinger_damping * distances)
        preconditioner.factorise(damping)
        some = self._some(views, self.options.curvature_share)

        def product(vector: Tensor) -> Tensor:
            pulled = self.objective.gauss_newton_product(some, layout.unflatten(vector))
            return layout.flatten(pulled).addcmul_(damping, vector)

        solution = conjugate_gradients(
            product,
            -gradient,
            iterations=self.options.iterations,
            tolerance=self.options.tolerance,
            precondition=preconditioner.solve,
        )
        return solution.x, diagonal

    def _precondition(self, views: Any, layout: FlatLayout) -> Preconditioner:
        if self.options.preconditioner == "block":
            return BlockPreconditioner(layout, self.objective.gauss_newton_blocks(views))
        return DiagonalPreconditioner(layout, self.objective.gauss_newton_diagonal(views, Exact()))

    def _distances(self, layout: FlatLayout) -> Tensor:
        """Return 1/η² for η of squared Hellinger distance 1, to second order."""
        parameters = self.objective.parameters
        if not self.options.hellinger_damping:
            return torch.zeros_like(layout.flatten(parameters))
        radii = self._radii.radii(parameters, _SMALL_DISTANCE)
        return layout.flatten(
            {name: (_SMALL_DISTANCE / radii[name].square()).expand_as(value) for name, value in parameters.items()}
        )

    def _some(self, views: Any, share: float) -> Any:
        """Return a share of ``views``, other ones at every step."""
        pieces = self.objective.split(views, round(1 / share))
        return pieces[self._steps.value % len(pieces)]

    # ------------------------------------------------------------------ how far

    def _walk(self, batch: Any, before: float, tangent: Tensors, model: _Model) -> tuple[float, float]:
        """Move by γΔ, or not at all where the loss does not fall; returns γ, 0 for the latter, and ρ."""
        parameters = self.objective.parameters
        kept = {name: value.clone() for name, value in parameters.items()}

        def move(length: float) -> None:
            for name, value in kept.items():
                parameters[name].copy_(value)
            with quaternion_lengths_kept(parameters):
                for name, value in tangent.items():
                    parameters[name].add_(value, alpha=length)

        length, after = self._search(batch, move)
        change = model.change(length)
        gain = (after - before) / change if change < 0 and math.isfinite(after) else 0.0
        if gain > self.options.least_gain:
            return length, gain
        for name, value in kept.items():
            parameters[name].copy_(value)
        return 0.0, gain

    def _search(self, batch: Any, move: Callable[[float], None]) -> tuple[float, float]:
        """Halve γ = 1 for as long as the loss of a share of the views falls; returns γ and the loss of all there."""
        share = self._some(batch, self.options.search_share)
        best, best_value = 1.0, math.inf
        for halving in range(self.options.halvings + 1):
            move(0.5**halving)
            value = self.objective.value(share)
            if not value < best_value:
                move(best)
                break
            best, best_value = 0.5**halving, value
        return best, self.objective.value(batch)


register(
    "lm",
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    help="Levenberg-Marquardt by conjugate gradients over many views; a second stage after another optimizer",
)
