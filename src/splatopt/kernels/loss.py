"""L1 and SSIM of an image against a photograph on the GPU: the loss, its gradient and its residual view.

SSIM's windows are separable. A program takes a strip of columns and walks down its rows: each row is filtered across,
kept with the ten before it in registers, and filtered down, so that an image is read once and no blurred image is
written. :func:`_windows` gives what each window gives by itself; derivatives that reach over a window, ∂SSIM by the
sums E[x], E[x²] + E[y²] and E[xy], are written as three maps, which :func:`_spread` takes back to the pixels by the
same walk. Outside the image everything is 0. Channels lie side by side in memory, so a neighbour along a row is
three numbers away and no program knows of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor
from triton import cdiv

from splatopt.kernels.jit import jit

HALF: tl.constexpr = tl.constexpr(5)
"""Pixels of a window on each side of its centre."""

COLUMNS = 128
"""Numbers of a row that a program takes, one for each of its threads."""

ROWS = 16
"""Rows of windows that a program takes; it reads ten more, so more rows mean less reading and fewer programs."""


@dataclass(frozen=True)
class SsimWindow:
    """The rule of SSIM, from whoever knows it.

    Attributes:
        taps: The window's eleven weights along one axis; they sum to 1.
        c1: Constant for the means.
        c2: Constant for the variances.
    """

    taps: tuple[float, ...]
    c1: float
    c2: float

    def __post_init__(self) -> None:
        """Refuse windows that the walk was not made for."""
        if len(self.taps) != 2 * HALF.value + 1:
            raise ValueError(f"SSIM's window must have {2 * HALF.value + 1} taps, got {len(self.taps)}")


@dataclass(frozen=True)
class ResidualSlopes:
    """The residuals r₁ = 2a·√|x - y| and r₂ = 2d·√(1 - SSIM), whose sum of squares is twice a loss.

    Attributes:
        absolute: a; ∂r₁/∂x = a·sign(x - y)/√max(|x - y|, floor_absolute).
        dissimilarity: d; ∂r₂/∂SSIM = -d/√max(1 - SSIM, floor_dissimilarity).
        floor_absolute: Lower bound of |x - y| in a derivative.
        floor_dissimilarity: Lower bound of 1 - SSIM in a derivative.
    """

    absolute: float
    dissimilarity: float
    floor_absolute: float
    floor_dissimilarity: float


class PhotometricSums(NamedTuple):
    """What a loss is made of, float64 on the device: sums over the pixels and channels of one image.

    Attributes:
        similarity: Σ SSIM.
        absolute: Σ |x - y|.
        squared: Σ (x - y)².
    """

    similarity: Tensor
    absolute: Tensor
    squared: Tensor


class _Window(NamedTuple):
    """SSIM of windows, and its derivatives by their sums E[x], E[x²] + E[y²] and E[xy]."""

    ssim: tl.tensor
    by_mean: tl.tensor
    by_squares: tl.tensor
    by_product: tl.tensor


@jit
def _window(mean_x, mean_y, squares, product, C1: tl.constexpr, C2: tl.constexpr):
    means = mean_x * mean_y
    mean_squares = mean_x * mean_x + mean_y * mean_y
    above_means, above_covariance = 2 * means + C1, 2 * (product - means) + C2
    below_means, below_variances = mean_squares + C1, squares - mean_squares + C2
    inverse = 1 / (below_means * below_variances)
    ssim = above_means * above_covariance * inverse
    by_mean = 2 * (
        mean_y * (above_covariance - above_means) * inverse + mean_x * ssim * inverse * (below_means - below_variances)
    )
    return _Window(ssim, by_mean, -ssim * inverse * below_means, 2 * above_means * inverse)


@jit
def _sign(a):
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, 0.0))


@jit
def _absolute_slope(difference, slope, floor):
    return _sign(difference) * slope / tl.sqrt(tl.maximum(tl.abs(difference), floor))


@jit
def _repeated(value, COUNT: tl.constexpr):
    values = (value,)
    for _ in tl.static_range(1, COUNT):
        values = values + (value,)
    return values


@jit
def _down(ring, WEIGHTS: tl.constexpr, SIZE: tl.constexpr):
    """The windows' sums of one map, from its last rows filtered across."""
    total = ring[0] * WEIGHTS[0]
    for row in tl.static_range(1, SIZE):
        total += ring[row] * WEIGHTS[row]
    return total


@jit
def _windows(
    image, target, given, out, sums, height, width, scale, slope, floor, absolute_slope, absolute_floor,
    TASK: tl.constexpr, WEIGHTS: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of windows after another.

    ``width`` counts numbers, three for a pixel. ``TASK`` is ``loss`` (``sums``), ``gradient`` (``sums``, and the
    windows' derivatives times ``scale`` to ``out``), ``vjp`` (derivatives times ∂r₂/∂SSIM and the cotangent that is
    ``given``), ``jvp`` (both rows of J·tangent, ``given``, to ``out``), ``residuals`` or ``weights``.
    """
    SIZE: tl.constexpr = 2 * HALF + 1
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * ROWS
    plane = height.to(tl.int64) * width
    zero = tl.zeros((COLUMNS,), tl.float32)
    ring = _repeated(zero, SIZE)
    means_x, means_y, squares, products = ring, ring, ring, ring
    changes, changes_x, changes_y = ring, ring, ring
    similarity, absolute, squared = zero, zero, zero
    for step in range(ROWS + SIZE - 1):
        row = begin + step - HALF
        at = row.to(tl.int64) * width + column
        mean_x, mean_y, square, product = zero, zero, zero, zero
        change, change_x, change_y = zero, zero, zero
        if (row >= 0) & (row < height):
            for tap in tl.static_range(SIZE):
                aside = 3 * (tap - HALF)
                inside = (column + aside >= 0) & (column + aside < width)
                x = tl.load(image + at + aside, mask=inside, other=0.0)
                y = tl.load(target + at + aside, mask=inside, other=0).to(tl.float32) * (1 / 255)
                weighted_x, weighted_y = WEIGHTS[tap] * x, WEIGHTS[tap] * y
                mean_x += weighted_x
                mean_y += weighted_y
                square += weighted_x * x + weighted_y * y
                product += weighted_x * y
                if TASK == "jvp":
                    dx = WEIGHTS[tap] * tl.load(given + at + aside, mask=inside, other=0.0)
                    change += dx
                    change_x += dx * x
                    change_y += dx * y
        means_x, means_y = means_x[1:] + (mean_x,), means_y[1:] + (mean_y,)
        squares, products = squares[1:] + (square,), products[1:] + (product,)
        if TASK == "jvp":
            changes, changes_x = changes[1:] + (change,), changes_x[1:] + (change_x,)
            changes_y = changes_y[1:] + (change_y,)
        row -= HALF
        if (row >= begin) & (row < height):
            at = row.to(tl.int64) * width + column
            inside = column < width
            x = tl.load(image + at, mask=inside, other=0.0)
            y = tl.load(target + at, mask=inside, other=0).to(tl.float32) * (1 / 255)
            window = _window(
                _down(means_x, WEIGHTS, SIZE), _down(means_y, WEIGHTS, SIZE), _down(squares, WEIGHTS, SIZE),
                _down(products, WEIGHTS, SIZE), C1, C2,
            )  # fmt: skip
            lack = 1 - window.ssim
            factor = -slope / tl.sqrt(tl.maximum(lack, floor))
            if TASK == "loss" or TASK == "gradient":
                similarity += tl.where(inside, window.ssim, 0.0)
                absolute += tl.abs(x - y)
                squared += (x - y) * (x - y)
                factor = zero + scale
            if TASK == "vjp":
                factor *= tl.load(given + plane + at, mask=inside, other=0.0)
            if TASK == "gradient" or TASK == "vjp":
                tl.store(out + at, factor * window.by_mean, mask=inside)
                tl.store(out + plane + at, factor * window.by_squares, mask=inside)
                tl.store(out + 2 * plane + at, factor * window.by_product, mask=inside)
            if TASK == "residuals":
                tl.store(out + at, 2 * absolute_slope * tl.sqrt(tl.abs(x - y)), mask=inside)
                tl.store(out + plane + at, 2 * slope * tl.sqrt(tl.maximum(lack, 0.0)), mask=inside)
            if TASK == "weights":
                by_pixel = _absolute_slope(x - y, absolute_slope, absolute_floor)
                own = window.by_mean + 2 * x * window.by_squares + y * window.by_product
                by_window = factor * WEIGHTS[HALF] * WEIGHTS[HALF] * own
                tl.store(out + at, by_pixel * by_pixel + by_window * by_window, mask=inside)
            if TASK == "jvp":
                by_pixel = _absolute_slope(x - y, absolute_slope, absolute_floor)
                tl.store(out + at, by_pixel * tl.load(given + at, mask=inside, other=0.0), mask=inside)
                moved = (
                    window.by_mean * _down(changes, WEIGHTS, SIZE)
                    + 2 * window.by_squares * _down(changes_x, WEIGHTS, SIZE)
                    + window.by_product * _down(changes_y, WEIGHTS, SIZE)
                )
                tl.store(out + plane + at, factor * moved, mask=inside)
    if TASK == "loss" or TASK == "gradient":
        program = 3 * (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0))
        tl.store(sums + program, tl.sum(similarity))
        tl.store(sums + program + 1, tl.sum(absolute))
        tl.store(sums + program + 2, tl.sum(squared))


@jit
def _spread(
    image, target, maps, given, out, height, width, scale, absolute_slope, absolute_floor,
    TASK: tl.constexpr, WEIGHTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Take the windows' derivatives back to the pixels and add what each pixel has by itself.

    That is ``scale``·∂|x - y| (``gradient``), or ∂r₁/∂x times the cotangent that is ``given`` (``vjp``).
    """
    SIZE: tl.constexpr = 2 * HALF + 1
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * ROWS
    plane = height.to(tl.int64) * width
    zero = tl.zeros((COLUMNS,), tl.float32)
    ring = _repeated(zero, SIZE)
    means, squares, products = ring, ring, ring
    for step in range(ROWS + SIZE - 1):
        row = begin + step - HALF
        at = row.to(tl.int64) * width + column
        mean, square, product = zero, zero, zero
        if (row >= 0) & (row < height):
            for tap in tl.static_range(SIZE):
                aside = 3 * (tap - HALF)
                inside = (column + aside >= 0) & (column + aside < width)
                beside = maps + at + aside
                mean += WEIGHTS[tap] * tl.load(beside, mask=inside, other=0.0)
                square += WEIGHTS[tap] * tl.load(beside + plane, mask=inside, other=0.0)
                product += WEIGHTS[tap] * tl.load(beside + 2 * plane, mask=inside, other=0.0)
        means, squares, products = means[1:] + (mean,), squares[1:] + (square,), products[1:] + (product,)
        row -= HALF
        if (row >= begin) & (row < height):
            at = row.to(tl.int64) * width + column
            inside = column < width
            x = tl.load(image + at, mask=inside, other=0.0)
            y = tl.load(target + at, mask=inside, other=0).to(tl.float32) * (1 / 255)
            if TASK == "gradient":
                own = scale * _sign(x - y)
            else:
                own = _absolute_slope(x - y, absolute_slope, absolute_floor)
                own *= tl.load(given + at, mask=inside, other=0.0)
            own += _down(means, WEIGHTS, SIZE)
            own += 2 * x * _down(squares, WEIGHTS, SIZE) + y * _down(products, WEIGHTS, SIZE)
            tl.store(out + at, own, mask=inside)


def photometric_loss(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    shares: tuple[float, float],
    window: SsimWindow,
    gradient: Float[Tensor, "h w 3"] | None = None,
) -> PhotometricSums:
    """Return the sums of which (1-λ)·mean|x - y| + λ·(1 - mean SSIM) is made, and write its gradient.

    Args:
        image: x, contiguous.
        target: y·255, contiguous, on the same device.
        shares: 1-λ and λ.
        window: The rule of SSIM.
        gradient: Written where given: ∂loss/∂x.
    """
    count = image.numel()
    strips = _strips(image)
    sums = image.new_empty(strips[0] * strips[1], 3)
    maps = image.new_empty(3, *image.shape) if gradient is not None else image
    task = "loss" if gradient is None else "gradient"
    given = _Given(image, target, window)
    _launch_windows(task, given, image, maps, sums, scale=-shares[1] / count)
    if gradient is not None:
        _launch_spread(task, given, maps, image, gradient, scale=shares[0] / count)
    return PhotometricSums(*sums.sum(dim=0, dtype=torch.float64))


def residuals(
    image: Float[Tensor, "h w 3"], target: UInt8[Tensor, "h w 3"], slopes: ResidualSlopes, window: SsimWindow
) -> Float[Tensor, "2 h w 3"]:
    """Return r₁ and r₂ of :class:`ResidualSlopes`."""
    out = image.new_empty(2, *image.shape)
    _launch_windows("residuals", _Given(image, target, window), image, out, image, slopes)
    return out


def residual_jvp(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    tangent: Float[Tensor, "h w 3"],
    slopes: ResidualSlopes,
    window: SsimWindow,
) -> Float[Tensor, "2 h w 3"]:
    """Return J·tangent, J = ∂r/∂x, over whole windows."""
    out = image.new_empty(2, *image.shape)
    _launch_windows("jvp", _Given(image, target, window), tangent, out, image, slopes)
    return out


def residual_vjp(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    cotangent: Float[Tensor, "2 h w 3"],
    slopes: ResidualSlopes,
    window: SsimWindow,
) -> Float[Tensor, "h w 3"]:
    """Return Jᵀ·cotangent, J = ∂r/∂x, over whole windows."""
    maps, out = image.new_empty(3, *image.shape), torch.empty_like(image)
    given = _Given(image, target, window)
    _launch_windows("vjp", given, cotangent, maps, image, slopes)
    _launch_spread("vjp", given, maps, cotangent, out, slopes)
    return out


def residual_weights(
    image: Float[Tensor, "h w 3"], target: UInt8[Tensor, "h w 3"], slopes: ResidualSlopes, window: SsimWindow
) -> Float[Tensor, "h w 3"]:
    """Return W = Σ (∂r/∂x)² of each pixel's own residuals; of a window's, the derivative by its centre alone."""
    out = torch.empty_like(image)
    _launch_windows("weights", _Given(image, target, window), image, out, image, slopes)
    return out


_NO_SLOPES = ResidualSlopes(0.0, 0.0, 1.0, 1.0)


def _strips(image: Tensor) -> tuple[int, int]:
    """Return the programs beside and below one another."""
    height, width, channels = image.shape
    return cdiv(width * channels, COLUMNS), cdiv(height, ROWS)


def _check(image: Tensor, *others: Tensor) -> None:
    """Refuse tensors that the kernels would read wrongly; ``image`` and all others lie on one device."""
    for tensor in (image, *others):
        if tensor.device != image.device or not tensor.is_contiguous() or tensor.shape[-3:] != image.shape:
            raise ValueError(
                f"the loss needs contiguous tensors of one size on one device: the image is {tuple(image.shape)} on "
                f"{image.device}, another {tuple(tensor.shape)}, strides {tensor.stride()}, on {tensor.device}"
            )


class _Given(NamedTuple):
    """What each launch is given of a view: x, y·255 and the rule of SSIM."""

    image: Tensor
    target: Tensor
    window: SsimWindow


def _launch_windows(
    task: str, view: _Given, given: Tensor, out: Tensor, sums: Tensor,
    slopes: ResidualSlopes = _NO_SLOPES, scale: float = 0.0,
) -> None:  # fmt: skip
    image, target, window = view
    _check(image, target, given, out)
    height, width, channels = image.shape
    _windows[_strips(image)](
        image, target, given, out, sums, height, channels * width,
        scale, slopes.dissimilarity, slopes.floor_dissimilarity, slopes.absolute, slopes.floor_absolute,
        TASK=task, WEIGHTS=window.taps, C1=window.c1, C2=window.c2, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip


def _launch_spread(
    task: str, view: _Given, maps: Tensor, given: Tensor, out: Tensor,
    slopes: ResidualSlopes = _NO_SLOPES, scale: float = 0.0,
) -> None:  # fmt: skip
    image, target, window = view
    _check(image, target, maps, given, out)
    height, width, channels = image.shape
    _spread[_strips(image)](
        image, target, maps, given, out, height, channels * width, scale, slopes.absolute, slopes.floor_absolute,
        TASK=task, WEIGHTS=window.taps, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
