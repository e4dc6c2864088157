"""Structural similarity in plain PyTorch, as 3DGS computes it, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from splatopt.raster.constants import SSIM_C1, SSIM_C2, SSIM_SIGMA, SSIM_WINDOW


def ssim_window(like: Tensor) -> Float[Tensor, " w"]:
    """Return SSIM's 1D Gaussian window, which sums to 1, in the type of ``like``."""
    offset = torch.arange(SSIM_WINDOW, dtype=like.dtype, device=like.device) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    return window / window.sum()


def _blur(stack: Tensor, window: Tensor) -> Tensor:
    """Blur each map of (B, H, W) by the separable window, zeros outside.

    By shifted copies: on a CPU PyTorch's convolution of one channel takes ten times as long, with its backward pass.
    """
    half = window.numel() // 2
    for side in (-1, -2):
        length, border = stack.shape[side], (half, half) if side == -1 else (0, 0, half, half)
        padded = pad(stack, border)
        stack = window[0] * padded.narrow(side, 0, length)
        for shift in range(1, window.numel()):
            stack = stack + window[shift] * padded.narrow(side, shift, length)
    return stack


@dataclass(frozen=True)
class _Moments:
    """Windowed moments of two images and the factors of SSIM = (a₁ a₂)/(b₁ b₂), all (3, H, W)."""

    mean_1: Tensor
    mean_2: Tensor
    above_means: Tensor
    above_covariance: Tensor
    below_means: Tensor
    below_variances: Tensor

    @property
    def ssim(self) -> Tensor:
        return self.above_means * self.above_covariance / (self.below_means * self.below_variances)


def _moments(image: Tensor, target: Tensor) -> _Moments:
    first, second = image.permute(2, 0, 1), target.permute(2, 0, 1)
    moments = torch.cat([first, second, first * first, second * second, first * second])
    blurred = _blur(moments, ssim_window(image)).reshape(5, 3, *image.shape[:2])
    mean_1, mean_2, square_1, square_2, product = blurred.unbind(dim=0)
    variance_1, variance_2 = square_1 - mean_1 * mean_1, square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    return _Moments(
        mean_1=mean_1,
        mean_2=mean_2,
        above_means=2 * mean_1 * mean_2 + SSIM_C1,
        above_covariance=2 * covariance + SSIM_C2,
        below_means=mean_1 * mean_1 + mean_2 * mean_2 + SSIM_C1,
        below_variances=variance_1 + variance_2 + SSIM_C2,
    )


def ssim_map_reference(image: Float[Tensor, "h w 3"], target: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Compute the structural similarity of two images at every pixel and channel.

    (2·μ₁μ₂ + C₁)(2·σ₁₂ + C₂) / ((μ₁² + μ₂² + C₁)(σ₁² + σ₂² + C₂)), moments under a Gaussian window of
    11 px, σ 1.5 px, with zeros outside the image (Wang et al. 2004; the border as in 3DGS).

    Args:
        image: (H, W, 3), in [0, 1] where the constants make sense.
        target: (H, W, 3), same type.

    Returns:
        (H, W, 3), at most 1.
    """
    return _moments(image, target).ssim.permute(1, 2, 0)


def ssim_center_derivative_reference(
    image: Float[Tensor, "h w 3"], target: Float[Tensor, "h w 3"]
) -> Float[Tensor, "h w 3"]:
    """Return ∂SSIM_p/∂image_p at every pixel and channel: the derivative to the window's centre alone.

    With w₀ the window's central weight, ∂μ₁ = w₀, ∂σ₁² = 2 w₀ (x - μ₁) and ∂σ₁₂ = w₀ (y - μ₂) at x = image_p,
    y = target_p, so that ∂SSIM = 2 w₀ · [(μ₂ a₂ + (y - μ₂) a₁) / (b₁ b₂) - SSIM · (μ₁/b₁ + (x - μ₁)/b₂)].
    """
    window = ssim_window(image)
    central = window[SSIM_WINDOW // 2] ** 2
    at = _moments(image, target)
    x, y = image.permute(2, 0, 1), target.permute(2, 0, 1)
    above = at.mean_2 * at.above_covariance + (y - at.mean_2) * at.above_means
    rise = above / (at.below_means * at.below_variances)
    fall = at.ssim * (at.mean_1 / at.below_means + (x - at.mean_1) / at.below_variances)
    return (2 * central * (rise - fall)).permute(1, 2, 0)
