"""Residuals of a scene's loss through any renderer's image."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.raster.losses import Charbonnier, L1Ssim, SquaredError
from splatopt.torch_api import SceneOptimizer, photometric_residuals
from torch_api.toy_scene import parameters, photographs, render

GENERATOR = torch.Generator().manual_seed(0)
TARGETS, APART = (torch.rand(2, 9, 8, 3, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
IMAGES = TARGETS + 0.1 + 0.5 * APART
"""Nowhere near the photographs, where floors act."""


def loss_of(loss, images: torch.Tensor) -> torch.Tensor:
    weights = torch.ones_like(images[0, ..., :1])
    return torch.stack(
        [loss.value(image, target, weights) for image, target in zip(images, TARGETS, strict=True)]
    ).mean()


@pytest.mark.parametrize("loss", [L1Ssim(), SquaredError(), Charbonnier()], ids=lambda loss: type(loss).__name__)
def test_half_their_squares_are_the_loss_and_so_is_the_gradient(loss):
    images = IMAGES.clone().requires_grad_()
    residuals = photometric_residuals(images, TARGETS, loss)
    half = 0.5 * residuals.square().sum()
    expected = loss_of(loss, images)
    torch.testing.assert_close(half, expected)
    (mine,), (theirs,) = torch.autograd.grad(half, images), torch.autograd.grad(expected, images)
    torch.testing.assert_close(mine, theirs)


def test_their_derivative_is_that_of_finite_differences():
    loss = L1Ssim()
    assert torch.autograd.gradcheck(
        lambda image: photometric_residuals(image, TARGETS[0], loss), IMAGES[0].clone().requires_grad_(), fast_mode=True
    )


def test_a_pixel_that_is_right_has_a_finite_slope():
    images = TARGETS.clone().requires_grad_()
    photometric_residuals(images, TARGETS).sum().backward()
    assert torch.isfinite(images.grad).all()


def test_curvature_of_the_usual_loss_trains_a_scene():
    params, targets = parameters(), photographs()
    optimizer = SceneOptimizer("block-gn", params, steps=30)
    losses = []
    for step in range(30):
        view = step % 3
        evaluation = optimizer.step(lambda view=view: photometric_residuals(render(params, view)[0], targets[view]))
        losses.append(evaluation.loss)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_shapes_are_checked_in_a_sentence():
    with pytest.raises(InputError, match="must both be"):
        photometric_residuals(IMAGES, TARGETS[0])
    with pytest.raises(InputError, match="must both be"):
        photometric_residuals(IMAGES[None], TARGETS[None])
