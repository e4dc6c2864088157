"""Photometric losses: each owns its value and its residuals, so that gradient and curvature are of one loss.

A loss compares a rendered image x with a photograph y, both (H, W, 3) in [0, 1], pixel by pixel under weights w,
(H, W, 1). n = 3·Σw counts what is compared. Its residuals r satisfy loss = ½‖r‖², so that JᵀJ is the
Gauss-Newton matrix of the loss, J = ∂r/∂θ. ``docs/curvature.md`` has the derivation.

Whoever calls a loss has set both images to 0 where w = 0 (:class:`~splatopt.raster.problem.ViewProblem` does), as
they are beyond the image's border; a pixel of weight zero then leaves no trace, in SSIM's windows either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Oracle
from splatopt.raster.constants import SSIM_WEIGHT
from splatopt.raster.ssim import ssim_center_derivative_reference, ssim_map_reference

Image = Float[Tensor, "h w 3"]
Weights = Float[Tensor, "h w 1"]
Residual = Float[Tensor, "k h w 3"]


class Loss(ABC):
    """How far a rendered image is from its photograph, as one number and as residuals.

    The two faces must agree: ½‖residuals‖² = value, and ``residual_jvp``, ``residual_vjp`` and ``pixel_curvature``
    are derivatives of the residuals. All are plain PyTorch, in any float type; they are what native passes are
    tested against, and what runs where a renderer has no native pass for a loss.
    """

    @property
    @abstractmethod
    def components(self) -> int:
        """k: residuals for each pixel and channel."""

    @property
    def oracles(self) -> frozenset[Oracle]:
        """The derivative questions that this loss can answer where a renderer can."""
        return frozenset(Oracle)

    @abstractmethod
    def value(self, image: Image, target: Image, weights: Weights) -> Float[Tensor, ""]:
        """Return the loss; twice differentiable in ``image``."""

    def value_and_gradient(self, image: Image, target: Image, weights: Weights) -> tuple[Float[Tensor, ""], Image]:
        """Return the loss, without its graph, and ∂loss/∂x, (H, W, 3), by autograd."""
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            loss = self.value(leaf, target, weights)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    @abstractmethod
    def residuals(self, image: Image, target: Image, weights: Weights) -> Residual:
        """Return r, (k, H, W, 3)."""

    @abstractmethod
    def residual_jvp(self, image: Image, target: Image, weights: Weights, tangent: Image) -> Residual:
        """Return ∂r/∂x · ``tangent``, (k, H, W, 3)."""

    @abstractmethod
    def residual_vjp(self, image: Image, target: Image, weights: Weights, cotangent: Residual) -> Image:
        """Return (∂r/∂x)ᵀ · ``cotangent``, (H, W, 3)."""

    @abstractmethod
    def pixel_curvature(self, image: Image, target: Image, weights: Weights) -> Image:
        """Return W_pc = Σ_k (∂r_kpc/∂x_pc)², (H, W, 3): each residual as a function of its own pixel alone."""


class Shares(NamedTuple):
    """How much of a loss each of its two parts is.

    Attributes:
        pixel: 1-λ, of the penalty of each pixel.
        ssim: λ, of the dissimilarity.
    """

    pixel: float
    ssim: float


class PixelLoss(Loss):
    """(1-λ)·mean ρ(x - y) + λ·(1 - mean SSIM): a penalty ρ of each pixel's difference, and SSIM's share λ.

    Means are under the weights. The residuals are r₁ = √((1-λ)w/n)·q(x - y) with ½q² = ρ, and where λ > 0
    r₂ = √(2λw/n · (1 - SSIM)). Both may end in zero, where a square root's slope is infinite, so the derivatives (not
    the residuals) hold what is under the root above a floor:

        ∂r₂ₚ/∂x_q = -√(λw / (2n · max(1 - SSIMₚ, floor_dissimilarity))) · ∂SSIMₚ/∂x_q, over the 11×11 window

    Jᵀr is the gradient of the loss where no floor acts, and smaller than it where one does. ``pixel_curvature`` keeps
    of SSIM the derivative to the window's centre, as 3DGS-LM (Höllein et al. 2025).
    """

    native_penalty: ClassVar[str | None] = None
    """The penalty's name in the native module; None where it has none, and PyTorch takes its place."""

    ssim_weight: float
    """λ, a fraction."""

    floor_dissimilarity: float
    """Lower bound of 1 - SSIM in ∂r₂/∂x."""

    native_parameter: ClassVar[str | None] = None
    """The field that the native penalty is told as its parameter."""

    def native_numbers(self, count: float) -> dict[str, float]:
        """Return what the native passes are told of the loss beside its penalty and n = ``count``."""
        shares, n = self.shares, count or 1.0
        own = {} if self.native_parameter is None else {"penalty_parameter": getattr(self, self.native_parameter)}
        return own | {
            "ssim_weight": shares.ssim,
            "pixel_scale": (shares.pixel / n) ** 0.5,
            "pixel_half_scale": (shares.pixel / (2 * n)) ** 0.5,
            "ssim_half_scale": (shares.ssim / (2 * n)) ** 0.5,
            "floor_dissimilarity": self.floor_dissimilarity,
        }

    @property
    def shares(self) -> Shares:
        """1-λ and λ."""
        return Shares(1 - self.ssim_weight, self.ssim_weight)

    @abstractmethod
    def penalty(self, difference: Image) -> Image:
        """Return ρ."""

    @abstractmethod
    def root(self, difference: Image) -> Image:
        """Return q, ½q² = ρ."""

    @abstractmethod
    def root_slope(self, difference: Image) -> Image:
        """Return dq/d(x - y), finite everywhere."""

    @property
    def components(self) -> int:
        """2, or 1 without SSIM."""
        return 2 if self.ssim_weight else 1

    def value(self, image: Image, target: Image, weights: Weights) -> Float[Tensor, ""]:
        """Return the loss; see :class:`Loss`."""
        count = _count(weights)
        loss = (1 - self.ssim_weight) * (weights * self.penalty(image - target)).sum() / count
        if not self.ssim_weight:
            return loss
        return loss + self.ssim_weight * (weights * (1 - ssim_map_reference(image, target))).sum() / count

    def residuals(self, image: Image, target: Image, weights: Weights) -> Residual:
        """Return r; see :class:`Loss`."""
        by_pixel = self._pixel_scale(weights) * self.root(image - target)
        if not self.ssim_weight:
            return by_pixel[None]
        # Rounding may take SSIM a hair above 1.
        dissimilarity = (1 - ssim_map_reference(image, target)).clamp_min(0)
        share = 2 * self.ssim_weight / _count(weights)
        return torch.stack([by_pixel, (share * weights * dissimilarity).sqrt()])

    def residual_jvp(self, image: Image, target: Image, weights: Weights, tangent: Image) -> Residual:
        """Return ∂r/∂x · ``tangent``, over SSIM's whole window; see :class:`Loss`."""
        by_pixel = self._pixel_slope(image, target, weights) * tangent
        if not self.ssim_weight:
            return by_pixel[None]
        change = torch.func.jvp(lambda x: ssim_map_reference(x, target), (image,), (tangent,))[1]
        return torch.stack([by_pixel, self._ssim_slope(image, target, weights) * change])

    def residual_vjp(self, image: Image, target: Image, weights: Weights, cotangent: Residual) -> Image:
        """Return (∂r/∂x)ᵀ · ``cotangent``, over SSIM's whole window; see :class:`Loss`."""
        by_pixel = self._pixel_slope(image, target, weights) * cotangent[0]
        if not self.ssim_weight:
            return by_pixel
        transposed = torch.func.vjp(lambda x: ssim_map_reference(x, target), image)[1]
        return by_pixel + transposed(self._ssim_slope(image, target, weights) * cotangent[1])[0]

    def pixel_curvature(self, image: Image, target: Image, weights: Weights) -> Image:
        """Return W, of SSIM the window's centre alone; see :class:`Loss`."""
        by_pixel = self._pixel_slope(image, target, weights).square()
        if not self.ssim_weight:
            return by_pixel
        to_center = ssim_center_derivative_reference(image, target)
        return by_pixel + (self._ssim_slope(image, target, weights) * to_center).square()

    def _pixel_scale(self, weights: Weights) -> Weights:
        return ((1 - self.ssim_weight) * weights / _count(weights)).sqrt()

    def _pixel_slope(self, image: Image, target: Image, weights: Weights) -> Image:
        """∂r₁/∂x."""
        return self._pixel_scale(weights) * self.root_slope(image - target)

    def _ssim_slope(self, image: Image, target: Image, weights: Weights) -> Image:
        """∂r₂/∂SSIM."""
        dissimilarity = (1 - ssim_map_reference(image, target)).clamp_min(self.floor_dissimilarity)
        return -(self.ssim_weight * weights / (2 * _count(weights)) / dissimilarity).sqrt()


def _count(weights: Weights) -> Float[Tensor, ""]:
    """Return n = 3·Σw; 1 where nothing is weighed, so that all is 0 and not NaN."""
    total = 3 * weights.sum()
    return torch.where(total > 0, total, torch.ones_like(total))


def _check_fraction(ssim_weight: float) -> None:
    if not 0 <= ssim_weight <= 1:
        raise InputError(f"the weight of SSIM in the loss must lie in [0, 1], got {ssim_weight}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(
            f"the residuals' {name} must be a positive number, got {value}; without a floor their derivative is "
            "infinite where the error is zero"
        )


@dataclass(frozen=True)
class L1Ssim(PixelLoss):
    """(1-λ)·mean|x - y| + λ·(1 - mean SSIM), the loss of 3DGS (Kerbl et al. 2023).

    ∂r₁/∂x = sign(x - y) · √((1-λ)w / (2n · max(|x - y|, floor_absolute))), sign(0) = 0.

    Attributes:
        ssim_weight: λ, a fraction.
        floor_absolute: Lower bound of |x - y| in ∂r₁/∂x, in colours from 0 to 1; one step of an 8-bit image.
        floor_dissimilarity: Lower bound of 1 - SSIM in ∂r₂/∂x.
    """

    native_penalty: ClassVar[str | None] = "absolute"
    native_parameter: ClassVar[str | None] = "floor_absolute"
    ssim_weight: float = SSIM_WEIGHT
    floor_absolute: float = 1.0 / 255.0
    floor_dissimilarity: float = 1e-3

    def __post_init__(self) -> None:
        """Check that λ is a fraction and that the floors are above zero."""
        _check_fraction(self.ssim_weight)
        _check_positive("floor_absolute", self.floor_absolute)
        _check_positive("floor_dissimilarity", self.floor_dissimilarity)

    def penalty(self, difference: Image) -> Image:
        """Return |x - y|."""
        return difference.abs()

    def root(self, difference: Image) -> Image:
        """Return √(2|x - y|)."""
        return (2 * difference.abs()).sqrt()

    def root_slope(self, difference: Image) -> Image:
        """Return sign(x - y)/√(2·max(|x - y|, floor))."""
        return difference.sign() / (2 * difference.abs().clamp_min(self.floor_absolute)).sqrt()


@dataclass(frozen=True)
class SquaredError(PixelLoss):
    """Half the mean squared error; residuals (1, H, W, 3), r = √(w/n)·(x - y)."""

    native_penalty: ClassVar[str | None] = "squared"
    ssim_weight: ClassVar[float] = 0.0  # type: ignore[misc] # no setting of this loss
    floor_dissimilarity: ClassVar[float] = 1.0  # type: ignore[misc]

    def penalty(self, difference: Image) -> Image:
        """Return ½(x - y)²."""
        return 0.5 * difference.square()

    def root(self, difference: Image) -> Image:
        """Return x - y."""
        return difference

    def root_slope(self, difference: Image) -> Image:
        """Return 1."""
        return torch.ones_like(difference)


@dataclass(frozen=True)
class Charbonnier(PixelLoss):
    """(1-λ)·mean √((x - y)² + ε²) + λ·(1 - mean SSIM): L1 with a rounded corner (Charbonnier et al. 1994).

    Residuals r₁ = √(2(1-λ)w/n · √((x - y)² + ε²)) never reach zero, so their derivative needs no floor.

    Attributes:
        epsilon: ε > 0, the difference below which the penalty is nearly a square; in colours from 0 to 1.
        ssim_weight: λ, a fraction.
        floor_dissimilarity: Lower bound of 1 - SSIM in ∂r₂/∂x.
    """

    native_penalty: ClassVar[str | None] = "charbonnier"
    native_parameter: ClassVar[str | None] = "epsilon"
    epsilon: float = 1e-3
    ssim_weight: float = SSIM_WEIGHT
    floor_dissimilarity: float = 1e-3

    def __post_init__(self) -> None:
        """Check that λ is a fraction and that ε and the floor are above zero."""
        _check_fraction(self.ssim_weight)
        _check_positive("epsilon", self.epsilon)
        _check_positive("floor_dissimilarity", self.floor_dissimilarity)

    def penalty(self, difference: Image) -> Image:
        """Return √((x - y)² + ε²)."""
        return (difference.square() + self.epsilon**2).sqrt()

    def root(self, difference: Image) -> Image:
        """Return √(2ρ)."""
        return (2 * self.penalty(difference)).sqrt()

    def root_slope(self, difference: Image) -> Image:
        """Return (x - y)/(ρ√(2ρ))."""
        penalty = self.penalty(difference)
        return difference / (penalty * (2 * penalty).sqrt())
