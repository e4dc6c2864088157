"""Image metrics: PSNR and SSIM, on whole images in double precision.

SSIM is computed here, by separable filters. torchmetrics' takes the variances as differences of
single-precision means (off by 5e-4 on flat images), counts pixels whose windows reach over the
border, and in double precision needs 0.7 GB and a second for an image of 270x480.

Weights say how much each pixel counts. A pixel of weight 0 leaves no trace: both images are 0 there, so that SSIM's
windows beside it do not see it, and it is left out of the mean.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.checks import InputError

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, pixels (Wang et al. 2004)."""

SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, pixels (Wang et al. 2004)."""

_REACH = SSIM_WINDOW // 2
_TILE, _BAND = (16, 512), 32
"""Rows and columns that SSIM is computed of at once, and columns of a product: they stay in a processor's cache, and no
product is so large that NumPy would share it among threads."""

_C1 = 0.01**2
_C2 = 0.03**2


@dataclass(frozen=True)
class ViewScore:
    """How near one rendered view, clamped to [0, 1], comes to its photograph.

    Attributes:
        name: The view's name in its capture.
        psnr: Peak signal-to-noise ratio over pixels and channels, dB.
        ssim: Structural similarity, 1 at equality.
        counted: Share of the view's pixels that both are of; 1 without a mask.
    """

    name: str
    psnr: float
    ssim: float
    counted: float = 1.0


def _check_same_shape(image: Tensor, target: Tensor) -> None:
    if image.shape != target.shape or image.numel() == 0:
        raise ValueError(
            f"image and target must have one shape and hold a pixel, got {tuple(image.shape)} and {tuple(target.shape)}"
        )


def psnr(
    image: Float[Tensor, "height width channels"],
    target: Float[Tensor, "height width channels"],
    weights: Float[Tensor, "height width"] | None = None,
) -> float:
    """Return the peak signal-to-noise ratio, -10·log10(MSE), in decibels.

    MSE is the weighted mean over pixels and channels; the peak is 1. Values outside [0, 1] are taken as they are.

    Args:
        image: (H, W, C) in [0, 1].
        target: (H, W, C) in [0, 1].
        weights: How much each pixel counts, (H, W), at least 0; all alike when None.

    Returns:
        Decibels; infinity for equal images, NaN if a value is NaN.

    Raises:
        ValueError: The shapes differ, or there is no pixel that counts.
    """
    _check_same_shape(image, target)
    squares = (image.detach().double() - target.detach().double()).square()
    error = float(squares.mean() if weights is None else _weighted_mean(squares.mean(dim=2), weights.to(squares)))
    return math.inf if error == 0 else -10 * math.log10(error)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w·value / Σ w over the pixels that count."""
    total = weights.sum()
    if not total > 0:
        raise ValueError("no pixel counts: all weights are 0")
    return torch.where(weights > 0, weights * values, torch.zeros_like(values)).sum() / total


def ssim(
    image: Float[Tensor, "height width channels"],
    target: Float[Tensor, "height width channels"],
    weights: Float[Tensor, "height width"] | None = None,
) -> float:
    """Return the mean structural similarity (Wang et al. 2004), window 11, σ 1.5, data range 1.

    Equals scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)``: the 5 pixels along each border, whose windows
    reach outside, are excluded from the mean over pixels and channels.

    Args:
        image: (H, W, C) in [0, 1].
        target: (H, W, C) in [0, 1].
        weights: How much each pixel counts, (H, W), at least 0; all alike when None.

    Returns:
        At most 1, which equal images have.

    Raises:
        ValueError: The shapes differ, or no pixel that counts has a whole window.
        InputError: A side is smaller than the window, so that no pixel has a whole one.
    """
    _check_same_shape(image, target)
    height, width = image.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {width}x{height}; use larger images"
        )
    first, second = (tensor.detach().cpu().double() for tensor in (image, target))
    if weights is not None:
        weights = weights.detach().cpu().double()
        counts = (weights > 0)[:, :, None]
        first, second = (torch.where(counts, tensor, torch.zeros_like(tensor)) for tensor in (first, second))
        weights = weights[_REACH:-_REACH, _REACH:-_REACH]
    # One channel after the other, so that the temporaries stay small.
    pairs = zip(first.unbind(dim=2), second.unbind(dim=2), strict=True)
    channels = [_structural_similarity(one.numpy(), other.numpy()) for one, other in pairs]
    if weights is None:
        return float(np.mean([similarity.mean() for similarity in channels]))
    return float(np.mean([float(_weighted_mean(torch.from_numpy(similarity), weights)) for similarity in channels]))


def _structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return SSIM of one channel, (H - 10, W - 10) float64; equations 13 and 14 of Wang et al."""
    found = np.empty((first.shape[0] - 2 * _REACH, first.shape[1] - 2 * _REACH))
    for top, left in itertools.product(*(range(0, side, step) for side, step in zip(found.shape, _TILE, strict=True))):
        rows, columns = (slice(begin, begin + step) for begin, step in zip((top, left), _TILE, strict=True))
        around = slice(top, rows.stop + 2 * _REACH), slice(left, columns.stop + 2 * _REACH)
        found[rows, columns] = _tile_similarity(first[around], second[around])
    return found


def _tile_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return SSIM of a tile, given with the pixels around it; the formula asks for the sum of the variances alone."""
    sums = np.stack([first, second, first * first + second * second, first * second])
    mean_first, mean_second, squares, products = _window_means(sums)
    product, square = mean_first * mean_second, mean_first * mean_first + mean_second * mean_second
    similarity: np.ndarray = (
        (2 * product + _C1) / (square + _C1) * (2 * (products - product) + _C2) / (squares - square + _C2)
    )
    return similarity


def _window_means(values: np.ndarray) -> np.ndarray:
    """Return the Gaussian-weighted means around all pixels that have a whole window, (n, h - 10, w - 10) of (n, h, w).

    As products with band matrices, down and then across: several times as fast as sums of shifted images.
    """
    count, height, width = values.shape[0], values.shape[1] - 2 * _REACH, values.shape[2] - 2 * _REACH
    down = np.matmul(_bands(height), values).reshape(count * height, -1)
    across = np.empty((count * height, width))
    for left in range(0, width, _BAND):
        columns = slice(left, min(left + _BAND, width))
        bands = _bands(columns.stop - left).T
        np.matmul(down[:, left : columns.stop + 2 * _REACH], bands, out=across[:, columns])
    return across.reshape(count, height, width)


@lru_cache(maxsize=64)
def _bands(count: int) -> np.ndarray:
    """Return the matrix, (count, count + 10), by which values become means in their windows."""
    window = np.exp(-0.5 * (np.arange(-_REACH, _REACH + 1) / SSIM_SIGMA) ** 2)
    rows = [np.pad(window / window.sum(), (row, count - 1 - row)) for row in range(count)]
    return np.stack(rows)
