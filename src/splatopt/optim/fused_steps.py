"""Which combinations of parts a fused pass moves, reading and writing each number once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from splatopt import kernels
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.optim.parts.adam import AdamMoments
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.optim.parts.bounds import HellingerBall, HellingerBox, StepBound, Unbounded
from splatopt.optim.parts.diagonal import MomentumOverDiagonal
from splatopt.optim.parts.direction import Direction, Point
from splatopt.optim.parts.projections import Projection, QuaternionLengths
from splatopt.optim.parts.sign import MomentumSign


def _sign(direction: MomentumSign, bound: HellingerBox, at: Point) -> bool:
    clouds = (at.parameters, at.gradient, direction.momentum.values)
    fused = direction.fused_passes(*clouds)
    if fused is None:
        return False
    fused.passes.sign_step(bound.fused(fused), *map(fused.cloud, clouds), decay=direction.decay)
    return True


def _adam_clipped(direction: AdamMoments, bound: HellingerBox, at: Point) -> bool:
    clouds = (at.parameters, at.gradient, direction.exp_avg.values, direction.exp_avg_sq.values)
    fused = direction.fused_passes(*clouds)
    if fused is None:
        return False
    fused.passes.adam_clipped_step(
        bound.fused(fused),
        *map(fused.cloud, clouds),
        rates=[direction.rates[name] for name in GAUSSIAN_TENSORS],
        beta1=direction.options.beta1,
        beta2=direction.options.beta2,
        epsilon=direction.options.epsilon,
        step=direction.steps.value,
    )
    return True


def _over_diagonal(direction: MomentumOverDiagonal, bound: HellingerBox, at: Point) -> bool:
    clouds = (at.parameters, at.gradient, direction.momentum.values, direction.curvature.values)
    fused = direction.fused_passes(*clouds)
    if fused is None:
        return False
    predictions = fused.passes.curvature_step(
        bound.fused(fused),
        *map(fused.cloud, clouds),
        decay=direction.decay,
        factor=direction.factor,
        damping=[direction.damping(name) for name in GAUSSIAN_TENSORS],
    )
    for name, predicted in zip(GAUSSIAN_TENSORS, predictions, strict=True):
        direction.note(name, predicted)
    return True


def _blocks(direction: BlockSolve, bound: HellingerBall, at: Point) -> bool:
    fused = direction.passes()
    if fused is None:
        return False
    bounds = bound.fused(fused)
    values, gradient, momentum = map(fused.cloud, (at.parameters, at.gradient, direction.momentum.values))
    rows = len(direction.multipliers.values) if at.seen is None else int(at.seen.count_nonzero())

    def step(damping: float, measure_only: bool) -> float:
        predicted = fused.passes.block_step(
            bounds,
            values,
            gradient,
            momentum,
            direction.blocks.values,
            at.seen,
            direction.multipliers.values,
            decay=direction.decay if at.updates else 1.0,
            correction=1.0 if measure_only else direction.correction(at.updates),
            scale=direction.scale,
            damping=damping,
            factorisations=direction.factorisations,
            measure_only=measure_only,
        )
        return predicted / max(1, rows)

    if direction.steps.value == 1:
        direction.note(step(0.0, measure_only=True))
    direction.note(step(direction.damping, measure_only=False))
    return True


def _adam(direction: AdamMoments, bound: Unbounded, at: Point) -> bool:
    """Parameters need not be a cloud's: one launch for all of them on a GPU, and one by one on the CPU."""
    if not kernels.takes([*at.parameters.values(), *at.gradient.values()]):
        direction.update(at)
        return True
    from splatopt.kernels import adam

    groups = [
        adam.AdamGroup(
            parameter, at.gradient[name], direction.exp_avg[name], direction.exp_avg_sq[name], direction.rates[name]
        )
        for name, parameter in at.parameters.items()
    ]
    options = direction.options
    adam.adam_step(
        groups, beta1=options.beta1, beta2=options.beta2, epsilon=options.epsilon, step=direction.steps.value
    )
    return True


_FUSED: dict[tuple[type[Direction], type[StepBound], bool], Callable[..., bool]] = {
    (MomentumSign, HellingerBox, True): _sign,
    (AdamMoments, HellingerBox, True): _adam_clipped,
    (MomentumOverDiagonal, HellingerBox, True): _over_diagonal,
    (BlockSolve, HellingerBall, True): _blocks,
    (AdamMoments, Unbounded, False): _adam,
}
"""By direction, bound, and whether quaternions keep their lengths."""


@runtime_checkable
class FusedStep(Protocol):
    """One move of all parameters in fused passes."""

    def __call__(self, direction: Direction, bound: StepBound, at: Point) -> bool:
        """Move, and return True, or return False where no pass takes these tensors; torch moves them then."""
        ...


def find_fused_step(direction: Direction, bound: StepBound, projections: Sequence[Projection]) -> FusedStep | None:
    """Return the fused step of a combination of parts, or None where there is none."""
    around = [one for one in projections if type(one).around is not Projection.around]
    if not all(isinstance(one, QuaternionLengths) for one in around):
        return None
    keeps_lengths = bool(around)
    return _FUSED.get((type(direction), type(bound), keeps_lengths))
