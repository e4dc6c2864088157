"""What the network is told of each Gaussian, and of the scene as a whole.

All of it is free of units: gradients are divided by their own root mean square, entry by entry and, so that the first
ones keep their direction, group by group; sizes by the scene's mean, and the way that Adam's rate moves a mean by the
Gaussian's own size. Vectors are given along each Gaussian's own axes, so that nothing but Adam's squares, kept along
the world's axes, and Gaussians whose axes are the world's at the start know how the world is turned; half turns about
its axes leave everything as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.schema import GAUSSIAN_TENSORS, rotation_matrices
from splatopt.meta.constants import AGES, MIN_SQUARE
from splatopt.meta.frames import quaternion_to_rotation_vector, to_own_axes
from splatopt.meta.inner import SLOW_GROUPS, InnerRates, InnerState, by_row, corrections, roots


@dataclass(frozen=True)
class AdamInputs:
    """What Adam's own step is made of besides its mean of gradients.

    Attributes:
        roots: √v̂ + ε by group.
        first_correction: 1-β₁ᵗ, (N,) float64.
        seen: Rows that the step may move, (N,).
        fallen: What age has left of the rates, (N,) float64.
    """

    roots: Tensors
    first_correction: Float[Tensor, " n"]
    seen: Bool[Tensor, " n"]
    fallen: Float[Tensor, " n"]


@dataclass(frozen=True)
class Inputs(AdamInputs):
    """One step's inputs.

    Attributes:
        rows: (N, ROW_FEATURES).
        scene: (SCENE_FEATURES,).
        rotations: Each Gaussian's axes, (N, 3, 3).
        unit_quats: (N, 4).
        asked: Rows that the step may move and the network has a share in, (N,).
        share: The network's share, (N,).
    """

    rows: Float[Tensor, "n features"]
    scene: Float[Tensor, " scene_features"]
    rotations: Float[Tensor, "n 3 3"]
    unit_quats: Float[Tensor, "n 4"]
    asked: Bool[Tensor, " n"]
    share: Float[Tensor, " n"]


def adam_inputs(state: InnerState, rates: InnerRates, seen: Bool[Tensor, " n"]) -> AdamInputs:
    """Return what Adam's step takes after ``state`` has taken in a gradient; ``seen`` are the rows that it may move."""
    first, second = corrections(state, rates)
    root = {name: roots(state, rates, name, second) for name in GAUSSIAN_TENSORS}
    return AdamInputs(root, first, seen, rates.fallen(state.age))


def build_inputs(
    parameters: Tensors,
    gradient: Tensors,
    state: InnerState,
    rates: InnerRates,
    length_scale: float,
    seen: Bool[Tensor, " n"],
) -> Inputs:
    """Return what the network sees after ``state`` has taken in ``gradient``.

    Args:
        parameters: A cloud's six tensors; the features that come from them carry their graph.
        gradient: ∂loss/∂θ.
        state: After :meth:`InnerState.observe`.
        rates: Adam's rates and decays.
        length_scale: The scene's extent, world units.
        seen: Rows that the step may move; means over the scene are over those that the network has a share in.
    """
    unit_quats = torch.nn.functional.normalize(parameters["quats"], dim=1)
    rotations = rotation_matrices(unit_quats)
    adam = adam_inputs(state, rates, seen)
    squares = {name: _mean_square(adam.roots[name]) for name in GAUSSIAN_TENSORS}
    parts = _normalised(gradient, state, rates, adam, squares)
    share = rates.learned_share(state.age)
    asked = seen & (share > 0)
    weight = asked.to(unit_quats.dtype)
    weight = weight / weight.sum().clamp(min=1)
    power = torch.stack([_mean_square(mean) for part in parts[:2] for mean in part.values()], dim=1)
    sizes = torch.stack([squares[name] for name in GAUSSIAN_TENSORS], dim=1).clamp(min=MIN_SQUARE).log() / 2
    pace, log_scales = rates.of("means", length_scale) * adam.fallen, parameters["log_scales"]
    columns = [
        *(_squashed(_own(part, rotations, unit_quats)) for part in parts),
        power.sqrt(),
        (sizes - _weighted(weight, sizes).sum(dim=0)).clamp(-8, 8) / 2,
        _shape_features(parameters, weight),
        (by_row(pace.log(), log_scales) - log_scales.mean(dim=1, keepdim=True)).clamp(-6, 6) / 2,
        torch.stack([torch.exp(-state.age / scale) for scale in AGES], dim=1),
    ]
    rows = torch.cat(columns, dim=1)
    scene = torch.cat([_weighted(weight, power).sum(dim=0), rows.new_tensor(history_features(state))])
    return Inputs(
        **vars(adam),
        rows=rows,
        scene=scene,
        rotations=rotations,
        unit_quats=unit_quats,
        asked=asked,
        share=share,
    )


def _normalised(
    gradient: Tensors, state: InnerState, rates: InnerRates, adam: AdamInputs, squares: Tensors
) -> tuple[dict[str, Tensor], ...]:
    """Return both means and the gradient over √v̂, and the gradient over the root of each row's mean ``squares``."""
    first, root = adam.first_correction, adam.roots
    slow_correction = 1 - rates.beta_slow ** state.age.double().clamp(min=1)
    fast = {name: state.exp_avg[name] / (by_row(first, root[name]) * root[name]) for name in GAUSSIAN_TENSORS}
    slow = {name: state.slow[name] / (by_row(slow_correction, root[name]) * root[name]) for name in SLOW_GROUPS}
    now = {name: gradient[name] / root[name] for name in SLOW_GROUPS}
    whole = {name: gradient[name] / by_row(squares[name].clamp(min=MIN_SQUARE).sqrt(), gradient[name]) for name in now}
    return fast, slow, now, whole


def _own(part: Tensors, rotations: Tensor, unit_quats: Tensor) -> Float[Tensor, "n 13"]:
    """Return the 13 numbers of normalised gradients that have a place of their own, along each Gaussian's axes."""
    columns = [
        to_own_axes(rotations, part["means"]),
        part["log_scales"],
        quaternion_to_rotation_vector(unit_quats, part["quats"]),
        part["logit_opacities"][:, None],
        part["sh_dc"],
    ]
    return torch.cat(columns, dim=1)


def _squashed(values: Tensor) -> Tensor:
    return torch.asinh(values)


def _mean_square(values: Tensor) -> Float[Tensor, " n"]:
    """Return the mean square of each row; 0 where a row has no numbers."""
    squares = values.square()
    if values.dim() == 1:
        return squares
    return squares.flatten(1).sum(dim=1) / max(1, math.prod(values.shape[1:]))


def _weighted(weight: Float[Tensor, " n"], values: Tensor) -> Tensor:
    """Return ``weight`` · ``values`` (N, ...), 0 where a row has no weight: there it may hold any number, and NaN."""
    weight = weight.reshape(-1, *[1] * (values.dim() - 1))
    return torch.where(weight > 0, weight * values, 0.0)


def _shape_features(parameters: Tensors, weight: Tensor) -> Float[Tensor, "n 10"]:
    """Return sizes relative to the scene's mean, their mean, opacity, colour, higher bands and offset."""
    log_scales, means = parameters["log_scales"], parameters["means"]
    mean_scale = _weighted(weight, log_scales).sum() / 3
    middle = _weighted(weight, means).sum(dim=0)
    distance = (means - middle).square().sum(dim=1)
    typical = _weighted(weight, distance).sum().clamp(min=MIN_SQUARE)
    columns = [
        (log_scales - mean_scale).clamp(-6, 6) / 2,
        parameters["logit_opacities"][:, None].clamp(-8, 8) / 4,
        parameters["sh_dc"].clamp(-3, 3),
        (_mean_square(parameters["sh_rest"]) + MIN_SQUARE).sqrt()[:, None].clamp(max=2) * 4,
        (log_scales.mean(dim=1) - mean_scale).clamp(-6, 6)[:, None] / 2,
        (distance / typical + MIN_SQUARE).log()[:, None].clamp(-6, 6) / 4,
    ]
    return torch.cat(columns, dim=1)


def history_features(state: InnerState) -> list[float]:
    """Return how the loss moves and how young the run is, seven numbers.

    Logarithms of the ratios of the loss's running means, and of its size; then three numbers that are 1 at the
    beginning and 0 from some thousands of steps on.
    """
    fast, middle, slow = (max(value, MIN_SQUARE) for value in state.running_losses())
    trends = [5 * max(-1.0, min(1.0, math.log(ratio))) for ratio in (fast / middle, middle / slow, fast / slow)]
    return [*trends, math.log(slow) / 4, *(math.exp(-state.steps / scale) for scale in AGES)]
