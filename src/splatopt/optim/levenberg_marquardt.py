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
from dataclasses import dataclass
from typing import ClassVar, get_args

from splatopt.core.checks import InputError, check_max_count
from splatopt.core.devices import free_memory
from splatopt.core.objective import Batch, Evaluation, Oracle
from splatopt.core.optimizer import Progress, register
from splatopt.core.state import Number
from splatopt.optim.parts.bounds import Unbounded
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.gain_ratio import GainRatio
from splatopt.optim.parts.gauss_newton_solve import GaussNewtonSolve, PreconditionerName
from splatopt.optim.parts.projections import QuaternionLengths

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

    damping_min: float = 0.2
    """λ does not fall below. Unit: factor. Source: own experiments; 3DGS-LM takes 1e-4."""

    damping_max: float = 1e4
    """λ does not rise above. Unit: factor. Source: 3DGS-LM."""

    hellinger_damping: float = 1e-4
    """h, what λ damps besides diag(JᵀJ); 0 for nothing. Unit: loss per squared Hellinger distance.
    Source: own experiments; 3DGS-LM has none."""

    min_gain: float = 1e-5
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
        min_values = {"views": 0, "batches": 1, "iterations": 1, "halvings": 0, "memory_mebibytes": 0}
        for name, minimum in min_values.items():
            if getattr(self, name) < minimum:
                raise InputError(f"lm's {name} must be at least {minimum}, got {getattr(self, name)}")
            if name != "memory_mebibytes":
                check_max_count(f"lm's {name}", getattr(self, name))
        if not 0 < self.damping_min <= self.damping_start <= self.damping_max < math.inf:
            raise InputError(
                "lm's damping must satisfy 0 < damping_min <= damping_start <= damping_max, all finite, got "
                f"{self.damping_min}, {self.damping_start} and {self.damping_max}"
            )
        for name in ("curvature_share", "search_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"lm's {name} must be above 0 and at most 1, got {getattr(self, name)}")
        for name in ("tolerance", "min_gain"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"lm's {name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.hellinger_damping < math.inf:
            raise InputError(f"lm's hellinger_damping must be a number of at least 0, got {self.hellinger_damping}")
        if self.preconditioner not in get_args(PreconditionerName):
            raise InputError(f"lm's preconditioner must be diagonal or block, got {self.preconditioner!r}")


class LevenbergMarquardt(ComposedOptimizer):
    """Damped Gauss-Newton steps over many views at once, kept only where the loss falls.

    The evaluation's metrics say what became of a step: ``damping`` (λ that it was solved with), ``step_length`` (γ,
    0 where it was taken back) and ``gain_ratio`` (ρ, 0 where there was none to measure). Where loss or gradient
    are not finite, nothing moves.
    """

    needs: ClassVar[frozenset[Oracle]] = frozenset(
        {Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.GAUSS_NEWTON_DIAGONAL}
    )
    options: LevenbergMarquardtOptions

    def compose(self) -> Parts:
        """Return a direction by conjugate gradients, kept by its gain ratio, which damps the next one."""
        options = self.options
        damping = self.remember(Number("damping", float(options.damping_start)))
        direction = GaussNewtonSolve(
            self,
            damping,
            batches=options.batches,
            curvature_share=options.curvature_share,
            iterations=options.iterations,
            tolerance=options.tolerance,
            preconditioner=options.preconditioner,
            hellinger_damping=options.hellinger_damping,
        )
        lengths = QuaternionLengths()
        acceptance = GainRatio(
            self.objective,
            direction,
            lengths,
            damping,
            damping_range=(options.damping_min, options.damping_max),
            min_gain=options.min_gain,
            halvings=options.halvings,
            search_share=options.search_share,
        )
        return Parts(direction, Unbounded(), acceptance, (lengths,))

    def step(self, batch: Batch, progress: Progress) -> Evaluation:
        """Take one step; raises InputError where it may take less memory than it needs."""
        if self.options.memory_mebibytes:  # what the machine has free is looked at before a run, not in the midst of it
            self._check_memory(batch, self.options.memory_mebibytes * _MEBIBYTE)
        return super().step(batch, progress)

    @property
    def batch_size(self) -> int:
        """Views that a step wants, 0 for all."""
        return self.options.views

    def check_batch(self, batch: Batch) -> None:
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

    def _check_memory(self, batch: Batch, allowed: int) -> None:
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

    def memory_needed(self, batch: Batch) -> int:
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
        numbers += 2 * max(sum(part.numel() for part in view) for view in residuals)
        return numbers * next(iter(parameters.values())).element_size()


register(
    "lm",
    LevenbergMarquardt,
    LevenbergMarquardtOptions,
    help="Levenberg-Marquardt by conjugate gradients over many views; a second stage after another optimizer",
)
