"""The image task: pixel centres, batches, scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fields.cases import tiny_image_task
from splatopt.fields import ImageTask
from splatopt.fields.image import decibels, pixel_centres
from splatopt.metrics import psnr, ssim


def test_pixel_centres_run_row_by_row_with_edges_at_one():
    points = pixel_centres(2, 4)
    assert torch.allclose(points[:, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75] * 2))
    assert torch.allclose(points[:, 1], torch.tensor([-0.5] * 4 + [0.5] * 4))


class Ramp(nn.Module):
    """Colour = x, as a field with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, points):
        return (self.slope * points[..., :1]).expand(*points.shape[:-1], 3)


def test_a_batch_sees_its_pixels_and_the_loss_is_their_mean_squared_error():
    image = torch.zeros(2, 4, 3)
    image[1, 2] = torch.tensor([0.25, 0.5, 1.0])
    task = ImageTask(Ramp(), image)
    evaluation = task.gradient(torch.tensor([6, 0]))
    expected = ((0.0**2 + 0.25**2 + 0.75**2) + 3 * 0.75**2) / 6
    assert evaluation.loss == pytest.approx(expected)
    assert evaluation.metrics["psnr"] == pytest.approx(-10 * math.log10(expected))
    assert task.size == 8


def test_scores_are_those_of_the_whole_clamped_image():
    task = ImageTask(Ramp(), torch.rand(12, 16, 3, generator=torch.Generator().manual_seed(0)))
    predicted = task.predict()
    assert predicted.min() == 0, "x below zero is clamped"
    scores = task.score()
    assert scores == {"psnr": psnr(predicted, task.image), "ssim": ssim(predicted, task.image)}
    assert list(scores) == ["psnr", "ssim"]


def test_small_images_have_no_ssim_and_equal_ones_a_finite_psnr():
    task = tiny_image_task("sine")
    assert list(task.score()) == ["psnr"]
    task = ImageTask(Ramp(), tiny_image_task("sine").image.float().expand(6, 6, 3).contiguous())
    task.image = task.predict()
    assert task.score()["psnr"] == 100.0


def test_decibels():
    assert decibels(0.01) == pytest.approx(20.0)
    assert decibels(0.0) == 100.0
    assert decibels(1e-30) == 100.0
    assert math.isnan(decibels(math.nan))
