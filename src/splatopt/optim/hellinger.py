"""Trust radii by the squared Hellinger distance (Hsiao et al. 2026, 3DGS²-TR, arXiv 2602.00395).

A Gaussian with opacity α, colour C, scales S and covariance Σ is the unnormalised density G of mass
α·C·det(S). The distance between G and G', normalised by det(S), is

    H² = ½ ∫ (√G - √G')² / det(S)

and the radius η of a scalar parameter is the change that takes H² to about ε when nothing else moves
(C = 1 where the colour does not move). In the space of opacities and scales themselves:

    mean, axis c      √(-8 V_c ln(1 - ε/α)),  V_c the variance along c
    scale S_c         √(2 S_c² ε/α)
    opacity α         √(4 α ε)
    colour C_c        √(4 C_c ε/α)
    quaternion q_c    √(-8/β_c · ln(1 - ε/α))

What is stored is log S, logit α and the coefficient of the constant spherical harmonic, so radii are divided
by the derivative of the activation: log S by S, logit α by α(1-α), sh_dc by Y₀. β_c is the second derivative
of ‖S(I+E)S⁻¹‖² along q_c, I+E = RᵀR(q + δe_c), which has a closed form: :func:`quaternion_curvature`.

To second order the mean reaches ε, a scale ¾ ε, and quaternion, opacity and colour ½ ε.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.constants import MAX_LOG_RATIO, MAX_LOG_SCALE, SH_C0
from splatopt.core.objective import Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.schema import GAUSSIAN_TENSORS, rotation_matrices
from splatopt.optim.fused import BoundsT, CloudT, FusedPasses

_MAX_QUAT = 0.5

MeanVariance = Literal["marginal", "conditional"]
"""Which variance V_c bounds a mean along world axis c: Σ_cc, the marginal one, as published, for which H² exceeds ε
by the factor Σ_cc (Σ⁻¹)_cc, large for thin slanted Gaussians; or 1/(Σ⁻¹)_cc, the conditional one, for which it
reaches ε."""


@dataclass(frozen=True)
class RadiusBounds:
    """What keeps trust radii finite and the quadratic picture believable; no radius exceeds it."""

    opacity_floor: float = 0.01
    """Opacities below count as this in the formulas. Unit: fraction. Source: own experiments."""

    max_relative_distance: float = 0.02
    """ε/α counts as at most this. Unit: fraction. Source: own experiments."""

    max_mean: float = 0.02
    """Largest step of a mean along an axis; huge Gaussians would leap out of the scene. Unit: the scene's length.
    Source: own experiments."""

    max_log_scale: float = 0.15
    """Largest step of a log-scale. Unit: per step. Source: own experiments."""

    max_quat: float = 0.1
    """Largest step of a quaternion's entry. Unit: quaternion's norm. Source: own experiments."""

    max_logit: float = 0.5
    """Largest step of a logit opacity. Unit: per step. Source: own experiments."""

    max_color: float = 0.1
    """Largest step of a colour channel. Unit: colour in [0, 1]. Source: own experiments."""

    color_floor: float = 0.01
    """Colours below, negative ones too, count as this in the formula. Unit: colour. Source: own choice."""

    higher_bands: float = 0.25
    """Radius of sh_rest over that of sh_dc. At 1 one coefficient changes the colour by as much as sh_dc, as a root
    mean square over directions; at 1/√15 ≈ 0.25 all of degree 3 together do. Unit: factor. Source: own choice."""

    mean_variance: MeanVariance = "marginal"
    """The variance that bounds a mean: marginal, or conditional. Unit: choice. Source: 3DGS²-TR: marginal."""

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive or that let a logarithm or a division be infinite."""
        if self.mean_variance not in get_args(MeanVariance):
            raise InputError(f"mean_variance must be marginal or conditional, got {self.mean_variance!r}")
        for field in fields(RadiusBounds):
            value = getattr(self, field.name)
            if field.name != "mean_variance" and not 0 < value < math.inf:
                raise InputError(f"the trust region's {field.name} must be a positive number, got {value}")
        for name in ("opacity_floor", "max_relative_distance"):
            if getattr(self, name) >= 1:
                raise InputError(f"the trust region's {name} must lie below 1, got {getattr(self, name)}")
        if self.max_quat >= _MAX_QUAT:
            raise InputError(
                f"the trust region's max_quat must lie below {_MAX_QUAT}, where a step can reach the zero "
                f"quaternion, got {self.max_quat}"
            )


@dataclass(frozen=True)
class PublishedBounds(RadiusBounds):
    """The formulas as published; the bounds only keep them finite."""

    opacity_floor: float = 1e-6
    """Opacities below count as this in the formulas. Unit: fraction. Source: finiteness alone."""

    max_relative_distance: float = 0.99
    """ε/α counts as at most this. Unit: fraction. Source: finiteness alone."""

    max_mean: float = 1e6
    """Largest step of a mean along an axis. Unit: the scene's length. Source: finiteness alone."""

    max_log_scale: float = 2.0
    """Largest step of a log-scale. Unit: per step. Source: finiteness alone."""

    max_quat: float = 0.25
    """Largest step of a quaternion's entry. Unit: quaternion's norm. Source: finiteness alone, for spheres."""

    max_logit: float = 10.0
    """Largest step of a logit opacity. Unit: per step. Source: finiteness alone, for opacities near 1."""

    max_color: float = 2.0
    """Largest step of a colour channel. Unit: colour in [0, 1]. Source: finiteness alone."""

    higher_bands: float = 1.0
    """Radius of sh_rest over that of sh_dc; at 1 one coefficient changes the colour by as much as sh_dc, as a root
    mean square over directions. Unit: factor. Source: the formula for colours."""


@dataclass(frozen=True)
class TrustRegionOptions(RadiusBounds):
    """A trust region that shrinks over the run."""

    epsilon_start: float = 1e-5
    """ε at step 0, the squared Hellinger distance that one parameter may move a Gaussian, over det(S).
    Unit: opacity. Source: own experiments; published 1e-6."""

    epsilon_end: float = 1e-7
    """ε when the run ends; in between it decays exponentially. Unit: opacity. Source: own experiments;
    published 1e-8."""

    def __post_init__(self) -> None:
        """Refuse distances that are none."""
        super().__post_init__()
        for name in ("epsilon_start", "epsilon_end"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"the trust region's {name} must be a positive number, got {getattr(self, name)}; "
                    "3DGS²-TR goes from 1e-6 to 1e-8"
                )

    def distance(self, progress: Progress) -> float:
        """Return ε at one step, ε₀^(1-f) · ε₁^f with f the share of the horizon already done."""
        return self.epsilon_start ** (1 - progress.fraction) * self.epsilon_end**progress.fraction


@dataclass(frozen=True)
class PublishedTrustRegionOptions(PublishedBounds, TrustRegionOptions):
    """The trust region as published."""

    epsilon_start: float = 1e-6
    """ε at step 0, the squared Hellinger distance that one parameter may move a Gaussian, over det(S).
    Unit: opacity. Source: 3DGS²-TR."""

    epsilon_end: float = 1e-8
    """ε when the run ends; in between it decays exponentially. Unit: opacity. Source: 3DGS²-TR."""


class HellingerRadii:
    """Per-entry trust radii of a cloud's parameters.

    Parameters that are not a cloud's six tensors get one constant, √(8ε): the radius of the mean of an
    opaque Gaussian of variance 1.
    """

    def __init__(self, bounds: RadiusBounds, length_scale: float = 1.0) -> None:
        """Keep the bounds and the scene's length, world units."""
        self.bounds = bounds
        self._max_mean = bounds.max_mean * length_scale

    def radii(
        self, parameters: Tensors, epsilon: float, factors: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Return η ≥ 0 for every parameter, in a shape that broadcasts to the parameter's.

        Args:
            parameters: The values that a step starts from; not written.
            epsilon: ε, the normalised squared Hellinger distance.
            factors: What radii are multiplied by at last, by parameter; 1 where none is given.
        """
        factors = factors or {}
        if set(parameters) != set(GAUSSIAN_TENSORS):
            constant = math.sqrt(8 * epsilon)
            return {name: value.new_tensor(factors.get(name, 1.0) * constant) for name, value in parameters.items()}
        bounds = self.bounds
        logits, log_scales, quats = parameters["logit_opacities"], parameters["log_scales"], parameters["quats"]
        opacity = logits.sigmoid().clamp_min_(bounds.opacity_floor)
        relative = (epsilon / opacity).clamp_max_(bounds.max_relative_distance)
        # 8·(-ln(1 - ε/α)): what V_c is multiplied and β_c is divided by.
        eightfold = torch.log1p(-relative).mul_(-8)[:, None]
        # 2·√(ε/α)/(1-α); 1-α from the logit, for α that rounds to 1.
        logit = relative.sqrt().mul_(2).div_((-logits).sigmoid_().clamp_min_(torch.finfo(logits.dtype).tiny))
        color = (0.5 + SH_C0 * parameters["sh_dc"]).clamp_min_(bounds.color_floor)
        color = color.mul_(4 * relative[:, None]).sqrt_().clamp_max_(bounds.max_color).div_(SH_C0)
        max_quat = bounds.max_quat * quats.norm(dim=1, keepdim=True)
        radii = {
            "means": mean_variances(log_scales, quats, bounds.mean_variance)
            .mul_(eightfold)
            .sqrt_()
            .clamp_max_(self._max_mean),
            "log_scales": (2 * relative).sqrt_().clamp_max_(bounds.max_log_scale)[:, None],
            "quats": torch.minimum((eightfold / quaternion_curvature(log_scales, quats)).sqrt_(), max_quat),
            "logit_opacities": logit.clamp_max_(bounds.max_logit),
            "sh_dc": color,
            "sh_rest": (bounds.higher_bands * color)[:, None, :],
        }
        return {name: radius * factors[name] if name in factors else radius for name, radius in radii.items()}

    def fused_bounds(
        self, passes: FusedPasses[BoundsT, CloudT], epsilon: float, factors: Mapping[str, float] | None = None
    ) -> BoundsT:
        """Return what the fused passes make the same radii from, with a factor for each of ``TYPES``."""
        factors = factors or {}
        numbers = {field.name: getattr(self.bounds, field.name) for field in fields(RadiusBounds)}
        numbers["max_mean"] = self._max_mean
        conditional = numbers.pop("mean_variance") == "conditional"
        numbers |= {
            "place": factors.get("means", 1.0),
            "shape": factors.get("quats", 1.0),
            "look": factors.get("sh_dc", 1.0),
        }
        return passes.bounds(epsilon=epsilon, conditional_variance=conditional, **numbers)


@contextmanager
def quaternion_lengths_kept(parameters: Tensors) -> Iterator[None]:
    """Scale a cloud's quaternions, on leaving, to the lengths that they had on entering.

    A quaternion's length rotates nothing, so no distance bounds it. Near spheres every step is as long as the cap,
    a share of the length, and mostly at right angles to the quaternion, so lengths grow exponentially until
    their squares overflow. What has not been changed stays bit for bit, and parameters that are no cloud's are
    left alone.
    """
    if set(parameters) != set(GAUSSIAN_TENSORS):
        yield
        return
    quats = parameters["quats"]
    lengths = quats.norm(dim=1, keepdim=True)
    yield
    moved = quats.norm(dim=1, keepdim=True)
    quats.mul_(torch.where(moved > 0, lengths / moved, 1.0))


def mean_variances(
    log_scales: Float[Tensor, "n 3"], quats: Float[Tensor, "n 4"], kind: MeanVariance
) -> Float[Tensor, "n 3"]:
    """Return Σ_cc = Σ_k R_ck² S_k² (marginal) or 1/(Σ⁻¹)_cc = 1/Σ_k R_ck²/S_k² (conditional), world units²."""
    rotation_squared = rotation_matrices(quats).square_()
    doubled = 2 * log_scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    if kind == "marginal":
        return (rotation_squared * doubled.exp()[:, None, :]).sum(dim=2)
    return (rotation_squared * (-doubled).exp()[:, None, :]).sum(dim=2).reciprocal_()


def quaternion_curvature(log_scales: Float[Tensor, "n 3"], quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Return β_c, the second derivative of ‖S(I+E)S⁻¹‖² along each entry of the quaternion.

    With v_c = Im(q̄ e_c)/‖q‖², half the rotation about the Gaussian's own axes that δe_c makes, and r_k the
    ratio of the two other axes' scales: β_c = 8 Σ_k v_ck² (r_k - 1/r_k)², (r - 1/r)² = 4 sinh²(ln r).
    It is 0 for a sphere, which no rotation changes.
    """
    first, second, third = log_scales.unbind(dim=1)
    ratios = torch.stack([second - third, third - first, first - second], dim=1)
    stretch = ratios.clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO).sinh_().square_().mul_(32)
    squares = quats.square()
    norm_squared = squares.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(quats.dtype).tiny)
    w, x, y, z = squares.div_(norm_squared).unbind(dim=1)
    rotations = torch.stack([x, y, z, w, z, y, z, w, x, y, x, w], dim=1).view(-1, 4, 3)
    return (rotations * stretch[:, None, :]).sum(dim=2).div_(norm_squared)


def squared_distances(before: Tensors, after: Tensors, channel: int | None = None) -> Float[Tensor, " n"]:
    """Return H² = ½ ∫ (√G - √G')² / det(S) of each Gaussian before and after a change, det(S) that of before.

    In closed form: with masses w = α·C·det(S) and the mean of both covariances Σ̄,
    H² = ((w + w')/2 - √(ww') · det(Σ)^¼ det(Σ')^¼ / det(Σ̄)^½ · exp(-⅛ δᵀΣ̄⁻¹δ)) / det(S), δ the change of the mean.

    Args:
        before: A cloud's tensors.
        after: Likewise, of as many Gaussians.
        channel: The colour channel that C is of; C = 1 when None.
    """

    def mass(cloud: Tensors) -> Tensor:
        color = 1.0 if channel is None else (0.5 + SH_C0 * cloud["sh_dc"][:, channel]).clamp_min(0)
        return cloud["logit_opacities"].sigmoid() * color * cloud["log_scales"].sum(dim=1).exp()

    first, second = (_covariance(cloud["log_scales"], cloud["quats"]) for cloud in (before, after))
    middle = (first + second) / 2
    offset = after["means"] - before["means"]
    exponent = (offset[:, None, :] @ torch.linalg.solve(middle, offset[:, :, None])).view(-1) / 8
    overlap = (torch.linalg.det(first) * torch.linalg.det(second)) ** 0.25 / torch.linalg.det(middle).sqrt()
    one, two = mass(before), mass(after)
    integral = (one + two) / 2 - (one * two).sqrt() * overlap * torch.exp(-exponent)
    return integral / before["log_scales"].sum(dim=1).exp()


def _covariance(log_scales: Float[Tensor, "n 3"], quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Return Σ = R S² Rᵀ."""
    factor = rotation_matrices(quats) * log_scales.exp()[:, None, :]
    return factor @ factor.mT
