"""SSIM against scikit-image, a naive window and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from splatopt.raster.ssim import ssim_map_reference, ssim_window


def pair(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth random image and a noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    noisy = image + 0.1 * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return image.contiguous(), noisy


def test_interior_equals_scikit_image():
    image, target = pair(33, 41)
    _, expected = structural_similarity(
        image.numpy(),
        target.numpy(),
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=2,
    )
    found = ssim_map_reference(image, target).numpy()
    np.testing.assert_allclose(found[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-10)
    assert expected.min() < 0.5 < expected.max()


def naive_ssim(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """SSIM by an explicit 2D window over an image padded with zeros."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[:, :, None]
    first, second = (np.pad(array, ((5, 5), (5, 5), (0, 0))) for array in (image, target))
    result = np.zeros_like(image)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            a, b = (array[row : row + 11, column : column + 11] for array in (first, second))
            mean_a, mean_b = (window * a).sum((0, 1)), (window * b).sum((0, 1))
            variance_a = (window * a * a).sum((0, 1)) - mean_a**2
            variance_b = (window * b * b).sum((0, 1)) - mean_b**2
            covariance = (window * a * b).sum((0, 1)) - mean_a * mean_b
            result[row, column] = (
                (2 * mean_a * mean_b + 0.0001)
                * (2 * covariance + 0.0009)
                / ((mean_a**2 + mean_b**2 + 0.0001) * (variance_a + variance_b + 0.0009))
            )
    return result


@pytest.mark.parametrize(("height", "width"), [(14, 17), (1, 1), (3, 20), (11, 11), (5, 4)])
def test_zero_padded_border_equals_a_naive_window(height, width):
    image, target = pair(height, width)
    expected = naive_ssim(image.numpy(), target.numpy())
    np.testing.assert_allclose(ssim_map_reference(image, target).numpy(), expected, atol=1e-10)


def test_window_sums_to_one_and_falls_by_the_gaussian():
    window = ssim_window(torch.zeros(1, dtype=torch.float64))
    assert window.shape == (11,)
    assert float(window.sum()) == pytest.approx(1, abs=1e-15)
    assert float(window[5] / window[2]) == pytest.approx(np.exp(9 / 4.5), rel=1e-12)


def test_equal_images_lose_nothing():
    image, _ = pair(16, 12)
    torch.testing.assert_close(ssim_map_reference(image, image), torch.ones_like(image))


def test_derivatives_by_finite_differences():
    image, target = pair(7, 6)
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: ssim_map_reference(value, target), (image,), eps=1e-7, atol=1e-6)
    image, target = pair(3, 3)
    image.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda value: ssim_map_reference(value, target).sum(), (image,))


def test_shapes_that_differ_are_refused():
    image, _ = pair(8, 8)
    other, _ = pair(8, 9)
    with pytest.raises(Exception, match=r"ssim_map_reference|size of tensor|type-check|Type-check"):
        ssim_map_reference(image, other)
