from __future__ import annotations

import math
import re

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.metrics import psnr, ssim
from splatopt.metrics.image import _check_same_shape


def _pair(height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, 3, generator=generator, dtype=dtype)
    noise = torch.randn(height, width, 3, generator=generator, dtype=dtype)
    return (target + 0.1 * noise).clamp(0, 1), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(11, 11), (12, 31), (48, 40)])
def test_ssim_agrees_with_skimage(size: tuple[int, int], dtype: torch.dtype) -> None:
    image, target = _pair(*size, dtype=dtype)
    expected = structural_similarity(
        target.double().numpy(),
        image.double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=2,
    )
    assert ssim(image, target) == pytest.approx(expected, abs=1e-9)


def _weights(height: int, width: int) -> Tensor:
    drawn = torch.rand(height, width, generator=torch.Generator().manual_seed(5))
    return torch.where(drawn < 0.4, torch.zeros_like(drawn), drawn)


def test_weights_are_those_of_a_mean() -> None:
    image, target = _pair(24, 20)
    weights = _weights(24, 20)
    error = (weights[:, :, None] * (image - target).square()).sum() / (3 * weights.sum())
    assert psnr(image, target, weights) == pytest.approx(-10 * math.log10(float(error)), abs=1e-5)
    assert psnr(image, target, torch.ones(24, 20)) == pytest.approx(psnr(image, target), abs=1e-9)
    assert ssim(image, target, torch.ones(24, 20)) == pytest.approx(ssim(image, target), abs=1e-12)
    assert ssim(image, target, 3 * weights) == pytest.approx(ssim(image, target, weights), abs=1e-12)
    assert abs(ssim(image, target, weights) - ssim(image, target)) > 1e-3


def test_what_lies_under_weight_zero_leaves_no_trace() -> None:
    image, target = _pair(24, 20)
    weights = _weights(24, 20)
    other = torch.where((weights > 0)[:, :, None], image, torch.full_like(image, math.nan))
    assert psnr(other, target, weights) == psnr(image, target, weights)
    assert ssim(other, target, weights) == ssim(image, target, weights)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="no pixel counts"):
            metric(image, target, torch.zeros(24, 20))


def test_ssim_of_equal_and_opposite_images() -> None:
    _, target = _pair(20, 20)
    assert ssim(target, target) == pytest.approx(1.0, abs=1e-12)
    assert ssim(1 - target, target) < 0


def test_ssim_of_constant_images_is_its_luminance_term() -> None:
    value = ssim(torch.full((16, 16, 3), 0.2), torch.full((16, 16, 3), 0.6))
    assert value == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-6)


def test_ssim_of_one_window_is_the_formula() -> None:
    """At 11x11 only the centre has a whole window, so SSIM is the weighted moments' formula there."""
    image, target = _pair(11, 11, dtype=torch.float64)
    line = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2)
    weights = (line[:, None] * line / line.sum() ** 2)[..., None]
    x, y = (weights * image).sum((0, 1)), (weights * target).sum((0, 1))
    xx, yy = (weights * (image - x) ** 2).sum((0, 1)), (weights * (target - y) ** 2).sum((0, 1))
    xy = (weights * (image - x) * (target - y)).sum((0, 1))
    formula = (2 * x * y + 1e-4) * (2 * xy + 9e-4) / ((x**2 + y**2 + 1e-4) * (xx + yy + 9e-4))
    assert ssim(image, target) == pytest.approx(float(formula.mean()), abs=1e-12)


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (1, 1)])
def test_ssim_of_images_smaller_than_its_window(size: tuple[int, int]) -> None:
    image, target = _pair(*size)
    with pytest.raises(InputError, match=rf"at least 11x11 pixels, got {size[1]}x{size[0]}"):
        ssim(image, target)


def test_psnr_agrees_with_skimage() -> None:
    image, target = _pair(17, 9)
    expected = peak_signal_noise_ratio(target.double().numpy(), image.double().numpy(), data_range=1.0)
    assert psnr(image, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("error", "decibels"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0), (10.0, -20.0)])
def test_psnr_of_a_constant_error(error: float, decibels: float) -> None:
    target = torch.zeros(4, 5, 3, dtype=torch.float64)
    assert psnr(target + error, target) == pytest.approx(decibels, abs=1e-9)


def test_psnr_at_the_ends() -> None:
    _, target = _pair(5, 5)
    assert psnr(target, target) == math.inf
    assert psnr(target + math.inf, target) == -math.inf
    assert math.isnan(psnr(target * math.nan, target))


@pytest.mark.parametrize(("first", "second"), [((20, 20, 3), (20, 21, 3)), ((0, 4, 3), (0, 4, 3))])
def test_shapes_must_agree(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Called where users' calls end up too; in the tests the annotations refuse these shapes before."""
    with pytest.raises(ValueError, match=re.escape(f"got {first} and {second}")):
        _check_same_shape(torch.zeros(first), torch.zeros(second))


def test_metrics_carry_no_gradient() -> None:
    image, target = _pair(12, 12)
    image.requires_grad_()
    assert isinstance(psnr(image, target), float)
    assert isinstance(ssim(image, target), float)


def test_ssim_agrees_with_torchmetrics_away_from_the_border() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, target = _pair(40, 30, dtype=torch.float64)
    first, second = (tensor.permute(2, 0, 1)[None] for tensor in (image, target))
    _, values = structural_similarity_index_measure(first, second, sigma=1.5, data_range=1.0, return_full_image=True)
    assert ssim(image, target) == pytest.approx(float(values[:, :, 5:-5, 5:-5].mean()), abs=1e-9)


def test_ssim_is_exact_on_flat_images() -> None:
    """Where single precision loses the variances."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((40, 40, 3), 0.9, dtype=torch.float64)
    image = flat + 1e-4 * torch.randn(40, 40, 3, generator=generator, dtype=torch.float64)
    assert ssim(image, flat) == pytest.approx(9e-4 / (9e-4 + 1e-8), abs=1e-6)
