"""The loss and its residual view on the GPU (or interpreted) against float64 torch."""

from __future__ import annotations

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from splatopt.core.camera import Camera
from splatopt.kernels import loss
from splatopt.raster import gpu_loss
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import ViewProblem

SIZES = [(8, 6), (1, 1), (3, 21)]
LOSSES = [
    L1Ssim(),
    L1Ssim(ssim_weight=0.9, floor_absolute=0.1, floor_dissimilarity=0.3),
    SquaredError(),
]


@pytest.fixture(autouse=True)
def narrow_programs(monkeypatch):
    """Several programs beside and below one another, even on a small image."""
    monkeypatch.setattr(loss, "COLUMNS", 16)
    monkeypatch.setattr(loss, "ROWS", 5)


def pair(size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy photograph and its image; some pixels agree, one row is far off."""
    generator = torch.Generator().manual_seed(size[0])
    coarse = torch.rand(1, 3, 3, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0)
    smooth = smooth.contiguous()
    target = (255 * (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)).to(torch.uint8)
    image = smooth.clone()
    image[::3, ::2] = target[::3, ::2] / 255
    image[-1] += 0.5
    return image.to(device), target.to(device)


def problem_of(target: torch.Tensor, loss_: Loss) -> ViewProblem:
    camera = Camera(torch.eye(4, dtype=torch.float64), 1.0, 1.0, 0.0, 0.0, target.shape[1], target.shape[0])
    return ViewProblem(camera, target, loss=loss_)


def exact(image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64, the photograph as the kernels see it: in float32 an image may equal it."""
    return image.double().cpu(), (target.cpu().float() * (1 / 255)).double()


def close(found: torch.Tensor, expected: torch.Tensor, share: float = 2e-5) -> bool:
    """Whether no entry is further off than a share of the largest; SSIM's variances are differences in float32."""
    return bool((found.double().cpu() - expected).abs().max() <= share * expected.abs().max())


@pytest.mark.parametrize(("size", "ssim_weight"), [*((size, 0.2) for size in SIZES), ((3, 2), 1.0)])
def test_loss_and_gradient(device, size, ssim_weight):
    image, target = pair(size, device)
    gradient = torch.full_like(image, torch.nan)
    problem = problem_of(target, L1Ssim(ssim_weight))
    found = gpu_loss.view_loss(image, problem, gradient)
    x, y = exact(image, target)
    x.requires_grad_()
    expected = problem.loss.value(x, y, torch.ones_like(x[..., :1]))
    expected.backward()
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.squared_error == pytest.approx((x - y).square().mean().item(), rel=1e-5)
    assert close(gradient, x.grad)
    if size == SIZES[0]:
        assert gpu_loss.view_loss(image, problem) == found, "the value is that of the gradient's pass"


@pytest.mark.parametrize(("size", "options"), [(SIZES[0], LOSSES[0]), *(((3, 7), options) for options in LOSSES)])
def test_residuals_and_their_products(device, size, options):
    image, target = pair(size, device)
    generator = torch.Generator().manual_seed(1)
    tangent = torch.randn(image.shape, generator=generator)
    cotangent = torch.randn((options.components, *image.shape), generator=generator)
    x, y = exact(image, target)

    problem, all_alike = problem_of(target, options), torch.ones_like(x[..., :1])
    found = gpu_loss.residuals(image, problem)
    # A root turns the rounding of SSIM near 1 into 1e-4 of the largest residual.
    assert close(found, options.residuals(x, y, all_alike), share=1e-3)

    jvp = gpu_loss.residual_jvp(image, problem, tangent.to(device))
    assert close(jvp, options.residual_jvp(x, y, all_alike, tangent.double()), share=1e-4)

    vjp = gpu_loss.residual_vjp(image, problem, cotangent.to(device))
    assert close(vjp, options.residual_vjp(x, y, all_alike, cotangent.double()), share=1e-4)

    products = [(jvp.cpu() * cotangent).sum(), (vjp.cpu() * tangent).sum()]
    assert float(products[0]) == pytest.approx(float(products[1]), rel=1e-3)

    curvature = gpu_loss.pixel_curvature(image, problem)
    assert close(curvature, options.pixel_curvature(x, y, all_alike), share=1e-4)


def test_the_loss_is_half_the_sum_of_squared_residuals(device):
    image, target = pair((4, 3), device)
    problem = problem_of(target, L1Ssim(ssim_weight=0.3))
    found = gpu_loss.residuals(image, problem)
    assert 0.5 * float(found.square().sum()) == pytest.approx(gpu_loss.view_loss(image, problem).loss, rel=1e-5)


def test_the_comparison_sees_a_wrong_window(device, monkeypatch):
    image, target = pair((6, 3), device)
    right = gpu_loss.loss_window()
    taps = list(right.taps)
    taps[4], taps[5] = taps[5], taps[4]
    monkeypatch.setattr(gpu_loss, "loss_window", lambda: loss.SsimWindow(tuple(taps), right.c1, right.c2))
    gradient = torch.empty_like(image)
    gpu_loss.view_loss(image, problem_of(target, L1Ssim(1.0)), gradient)
    x, y = exact(image, target)
    x.requires_grad_()
    L1Ssim(1.0).value(x, y, torch.ones_like(x[..., :1])).backward()
    assert not close(gradient, x.grad, share=1e-2)


def test_tensors_that_the_kernels_would_misread_are_refused(device):
    image, target = pair((6, 8), device)
    with pytest.raises(ValueError, match="contiguous"):
        gpu_loss.view_loss(image, problem_of(target, L1Ssim()), torch.empty(3, 6, 8, device=device).permute(1, 2, 0))
    with pytest.raises(ValueError, match="11 taps"):
        loss.SsimWindow((1.0,), 1e-4, 9e-4)
