"""What the loss looks like around a run's checkpoints: sharpness, spectra, and how far its steps reach.

Of a scene the matrix is Gauss-Newton's, A = JᵀJ, in units u of the rates of 3DGS at step 0, x = θ/u, since its types of
parameters have different units; of a field it is the Hessian, with u = 1. At a point θ with gradient g and d the step
that the run's optimizer would take there:

    sharpness        λ₁, the largest eigenvalue of uAu
    share            ‖Vᵀ ug‖² / ‖ug‖², V the eigenvectors of the k largest (Gur-Ari, Roberts and Dyer 2018)
    reach            dᵀA d / -gᵀd: at 1 the step ends in its line's minimum, from 2 on the quadratic model rises
    reach, sharpest  λ₁ ‖d/u‖² / -gᵀd, that of a step as long along the sharpest direction; 2 is the edge of stability
                     of gradient descent, whose steps -ηg have ηλ₁ (Cohen et al. 2021)
    overlap          κ = ‖J d‖² / Σ dᵢᵀBᵢdᵢ, Bᵢ each Gaussian's own block: by how much blocks alone underrate A along d
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from splatopt.core.bounds import bounds, check_bounds
from splatopt.core.checks import InputError
from splatopt.core.objective import Batch, Objective, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.curvature.blocks import block_form
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.spectrum import (
    RitzPairs,
    TopSpace,
    gauss_newton_operator,
    hessian_operator,
    scaled,
    top_space,
)
from splatopt.optim.first_order import GaussianRates
from splatopt.runs.memory import GIBIBYTE
from splatopt.runs.points import RunPoint

_MIN_STEPS = 4
_FIND = 0.01
"""An eigenvalue is found where its residual is below this share of it."""

Watch = Callable[[str], None]


@dataclass(frozen=True)
class RunDiagnosisPlan:
    """How closely a run is looked at."""

    views: int = field(default=4, metadata=bounds(1))
    """Training views that a scene is looked at in, spread over all. Unit: views."""

    examples: int = field(default=4096, metadata=bounds(1))
    """Examples (pixels, points, rays) that a field is looked at in. Unit: examples."""

    top: int = field(default=10, metadata=bounds(1, 1000))
    """Largest eigenvalues that are looked at. Unit: eigenvalues."""

    lanczos_steps: int = field(default=30, metadata=bounds(_MIN_STEPS, 10_000))
    """Products of each Lanczos run. Unit: products."""

    probes: int = field(default=2, metadata=bounds(1, 1000))
    """Lanczos runs from random signs whose mean is the spectrum. Unit: runs."""

    minutes: float = field(default=10.0, metadata=bounds(0.01))
    """Time for all checkpoints together; Lanczos ends early where it is short. Unit: minutes."""

    max_memory: float = field(default=2.0, metadata=bounds(0))
    """Lanczos' vectors may take so much; it takes fewer steps where they would take more. Unit: GiB."""

    seed: int = field(default=0, metadata=bounds(0, 2**62))
    """Seed of the random signs, and of a field's examples."""

    def __post_init__(self) -> None:
        """Refuse numbers out of their bounds."""
        check_bounds(self)


@dataclass(frozen=True)
class PointDiagnosis:
    """What was measured at one point of a run.

    Attributes:
        step: Steps done there.
        optimizer: Name of the one that goes on.
        parameters: Numbers that are trained.
        loss: On the batch that was looked at.
        gradient_norm: ‖ug‖.
        eigenvalues: The largest of uAu, descending.
        residuals: ‖uAuv - λv‖ of each.
        shares: ‖Vᵀug‖²/‖ug‖² of the first, the first two, and so on.
        products: Of each Lanczos run.
        spectrum: Ritz pairs of each.
        slope: gᵀd.
        curvature: dᵀA d.
        step_norm: ‖d/u‖.
        overlap: κ of d; None where there are no blocks.
        kept_overlap: κ that the optimizer itself has measured; None where it does not.
    """

    step: int
    optimizer: str
    parameters: int
    loss: float
    gradient_norm: float
    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    shares: tuple[float, ...]
    products: tuple[int, ...]
    spectrum: tuple[RitzPairs, ...]
    slope: float
    curvature: float
    step_norm: float
    overlap: float | None = None
    kept_overlap: float | None = None

    @property
    def sharpness(self) -> float:
        """λ₁."""
        return self.eigenvalues[0]

    @property
    def found(self) -> int:
        """How many of the largest eigenvalues are known to 1 %."""
        good = [rest <= _FIND * abs(value) for value, rest in zip(self.eigenvalues, self.residuals, strict=True)]
        return good.index(False) if False in good else len(good)

    @property
    def reach(self) -> float:
        """dᵀA d / -gᵀd; NaN where the step does not go down."""
        return self.curvature / -self.slope if self.slope < 0 else math.nan

    @property
    def sharpest_reach(self) -> float:
        """λ₁‖d/u‖² / -gᵀd; NaN where the step does not go down."""
        return self.sharpness * self.step_norm**2 / -self.slope if self.slope < 0 else math.nan

    def to_json(self) -> dict[str, object]:
        """Return all of it, and what follows from it."""
        spectrum = [{"values": one.values.tolist(), "weights": one.weights.tolist()} for one in self.spectrum]
        ratios = {"sharpness": self.sharpness, "reach": self.reach, "sharpest_reach": self.sharpest_reach}
        return asdict(self) | {"spectrum": spectrum, "found": self.found} | ratios


def diagnose_points(
    points: Iterable[RunPoint], batch_of: Callable[[RunPoint], Batch], plan: RunDiagnosisPlan, watch: Watch
) -> list[PointDiagnosis]:
    """Measure every point of a run, in the time that the plan allows.

    Args:
        points: As they come; each is done with before the next is asked for.
        batch_of: What a point is looked at in.
        plan: How closely.
        watch: Told what is going on.

    Raises:
        InputError: Lanczos' vectors do not fit into the memory that the plan allows.
    """
    ends = time.monotonic() + 60 * plan.minutes
    found: list[PointDiagnosis] = []
    for point in points:
        # Half of what is left: a run's number of checkpoints is known when the last has been read.
        goes_on = _until((ends + time.monotonic()) / 2)
        found.append(diagnose_point(point, batch_of(point), plan, watch, goes_on))
    return found


def _until(moment: float) -> Callable[[], bool]:
    return lambda: time.monotonic() < moment


def diagnose_point(
    point: RunPoint,
    batch: Batch,
    plan: RunDiagnosisPlan,
    watch: Watch = lambda text: None,
    goes_on: Callable[[], bool] = lambda: True,
) -> PointDiagnosis:
    """Measure one point; its parameters are moved meanwhile and put back, bit for bit.

    Args:
        point: Where; its optimizer takes a step.
        batch: What it is looked at in.
        plan: How closely.
        watch: Told what is going on.
        goes_on: Whether there is time for another product.

    Raises:
        InputError: Lanczos' vectors do not fit into the memory that the plan allows, or the gradient is not finite.
    """
    objective = point.objective
    layout, units = FlatLayout(objective.parameters), units_of(objective)
    evaluation = objective.gradient(batch)
    gradient = layout.flatten(scaled(evaluation.gradient, units))
    if not bool(torch.isfinite(gradient).all()):
        raise InputError(f"the gradient at step {point.step} is not finite; there is no curvature to speak of")
    product = _operator(objective, batch)
    top, spectrum = _spaces(product, gradient, plan, lambda text: watch(f"step {point.step}, {text}"), goes_on)
    watch(f"step {point.step}, the optimizer's step")
    kept_overlap = point.optimizer.state().scalars.get("kappa") or None
    moved = step_of(point, batch)
    flat = layout.flatten(scaled(moved, {name: 1 / unit for name, unit in units.items()}))
    return PointDiagnosis(
        step=point.step,
        optimizer=point.name,
        parameters=gradient.numel(),
        loss=evaluation.loss,
        gradient_norm=float(gradient.norm()),
        eigenvalues=tuple(top.values.tolist()),
        residuals=tuple(top.residuals.tolist()),
        shares=shares_of(gradient, top),
        products=tuple(len(one.values) for one in spectrum),
        spectrum=tuple(spectrum),
        slope=float(gradient.double() @ flat.double()),
        curvature=float(flat @ product(flat)),
        step_norm=float(flat.norm()),
        overlap=_overlap(objective, batch, moved),
        kept_overlap=kept_overlap,
    )


def _spaces(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    plan: RunDiagnosisPlan,
    watch: Watch,
    goes_on: Callable[[], bool],
) -> tuple[TopSpace, list[RitzPairs]]:
    """Return the top eigenvectors, and the spectrum by every probe; see :func:`diagnose_point`."""
    steps, done = _lanczos_steps(plan, gradient), 0

    def counted(vector: Tensor) -> Tensor:
        nonlocal done
        done += 1
        watch(f"product {done} of {plan.probes * steps}")
        return product(vector)

    generator, like = torch.Generator().manual_seed(plan.seed), gradient.cpu()
    top = top_space(counted, rademacher(like, generator).to(gradient), steps, plan.top, goes_on)
    spectrum = [top.pairs]
    for _ in range(plan.probes - 1):
        if goes_on():
            start = rademacher(like, generator).to(gradient)
            spectrum.append(top_space(counted, start, steps, 0, goes_on).pairs)
    return top, spectrum


def units_of(objective: Objective) -> Mapping[str, float]:
    """Return u of a cloud's parameters, the rates of 3DGS at step 0; nothing, for 1, of all others."""
    if set(objective.parameters) != set(GAUSSIAN_TENSORS):
        return {}
    return GaussianRates().rates(objective.length_scale, Progress(0, 1))


def shares_of(gradient: Tensor, top: TopSpace) -> tuple[float, ...]:
    """Return ‖Vᵀg‖²/‖g‖² for V the first of the top vectors, the first two, and so on; 0 where g is."""
    square = float(gradient.double().square().sum())
    parts = (top.vectors @ gradient).double().square().cumsum(dim=0)
    return tuple((parts / square).tolist()) if square > 0 else (0.0,) * len(parts)


def step_of(point: RunPoint, batch: Batch) -> dict[str, Tensor]:
    """Return the step that a point's optimizer takes on ``batch``; the parameters are put back, bit for bit."""
    parameters = point.objective.parameters
    kept = {name: value.clone() for name, value in parameters.items()}
    try:
        point.optimizer.step(batch, point.progress)
        return {name: value - kept[name] for name, value in point.objective.parameters.items()}
    finally:
        with torch.no_grad():
            for name, value in point.objective.parameters.items():
                value.copy_(kept[name])


def _operator(objective: Objective, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Gauss-Newton's matrix of a scene in its units, the Hessian of a field."""
    units = units_of(objective)
    if not units:
        return hessian_operator(objective, batch)[0]
    objective.require(frozenset({Oracle.JVP, Oracle.VJP}), "diagnose run")
    return gauss_newton_operator(objective, batch, units)


def _lanczos_steps(plan: RunDiagnosisPlan, like: Tensor) -> int:
    """Products of a Lanczos run whose vectors, and those of the eigenvectors, fit into the plan's memory."""
    each = like.numel() * like.element_size()
    steps = min(plan.lanczos_steps, int(plan.max_memory * GIBIBYTE) // each - min(plan.top, plan.lanczos_steps))
    if steps < min(_MIN_STEPS, like.numel()):
        needed = each * (_MIN_STEPS + min(plan.top, plan.lanczos_steps)) / GIBIBYTE
        raise InputError(
            f"the vectors of {like.numel():,} parameters that Lanczos keeps need {needed:.2g} GiB, and --max-memory "
            f"allows {plan.max_memory:g}; allow more, or look at fewer eigenvalues with --top"
        )
    return steps


def _overlap(objective: Objective, batch: Batch, moved: Mapping[str, Tensor]) -> float | None:
    """Return κ along a step; None where there are no blocks, or no step."""
    if Oracle.GAUSS_NEWTON_BLOCKS not in objective.oracles or not units_of(objective):
        return None
    alone = block_form(objective.gauss_newton_blocks(batch), moved)
    return objective.gauss_newton_form(batch, moved) / alone if alone > 0 else None
