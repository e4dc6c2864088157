"""Image metrics: PSNR and SSIM, on whole images in double precision.

SSIM is computed here, by separable filters. torchmetrics' takes the variances as differences of
single-precision means (off by 5e-4 on flat images), counts pixels whose windows reach over the
border, and in double precision needs 0.7 GB and a second for an image of 270x480.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from splatopt.core.checks import InputError

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, pixels (Wang et al. 2004)."""

SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, pixels (Wang et al. 2004)."""

_C1 = 0.01**2
_C2 = 0.03**2


def _check_same_shape(image: Tensor, target: Tensor) -> None:
    if image.shape != target.shape or image.numel() == 0:
        raise ValueError(
            f"image and target must have one shape and hold a pixel, got {tuple(image.shape)} and {tuple(target.shape)}"
        )


def psnr(image: Float[Tensor, "height width channels"], target: Float[Tensor, "height width channels"]) -> float:
    """Return the peak signal-to-noise ratio, -10·log10(MSE), in decibels.

    MSE is the mean over pixels and channels; the peak is 1. Values outside [0, 1] are taken as they are.

    Args:
        image: (H, W, C) in [0, 1].
        target: (H, W, C) in [0, 1].

    Returns:
        Decibels; infinity for equal images, NaN if a value is NaN.

    Raises:
        ValueError: The shapes differ, or there is no pixel.
    """
    _check_same_shape(image, target)
    error = float((image.detach().double() - target.detach().double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: Float[Tensor, "height width channels"], target: Float[Tensor, "height width channels"]) -> float:
    """Return the mean structural similarity (Wang et al. 2004), window 11, σ 1.5, data range 1.

    Equals scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)``: the 5 pixels along each border, whose windows
    reach outside, are excluded from the mean over pixels and channels.

    Args:
        image: (H, W, C) in [0, 1].
        target: (H, W, C) in [0, 1].

    Returns:
        At most 1, which equal images have.

    Raises:
        ValueError: The shapes differ.
        InputError: A side is smaller than the window, so that no pixel has a whole one.
    """
    _check_same_shape(image, target)
    height, width = image.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {width}x{height}; use larger images"
        )
    first, second = (tensor.detach().cpu().double().numpy() for tensor in (image, target))
    # One channel after the other, so that the temporaries stay small.
    channels = [_structural_similarity(first[..., c], second[..., c]) for c in range(first.shape[2])]
    return float(np.mean(channels))


def _window_mean(values: np.ndarray) -> np.ndarray:
    """Return the Gaussian-weighted mean around each pixel that has a whole window, (H - 10, W - 10)."""
    reach = SSIM_WINDOW // 2
    blurred = gaussian_filter(values, sigma=SSIM_SIGMA, radius=reach)
    return blurred[reach:-reach, reach:-reach]


def _structural_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean of SSIM over one channel, (H, W) float64; equations 13 and 14 of Wang et al."""
    mean_first, mean_second = _window_mean(first), _window_mean(second)
    variances = _window_mean(first**2) - mean_first**2 + _window_mean(second**2) - mean_second**2
    covariance = _window_mean(first * second) - mean_first * mean_second
    luminance = (2 * mean_first * mean_second + _C1) / (mean_first**2 + mean_second**2 + _C1)
    return float((luminance * (2 * covariance + _C2) / (variances + _C2)).mean())
