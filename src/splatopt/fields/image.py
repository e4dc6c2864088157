"""An image as a field: coordinates in, colours out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from splatopt.core.graph import mean_squared_residual
from splatopt.fields.task import Task, in_chunks
from splatopt.metrics.image import SSIM_WINDOW, psnr, ssim

MAX_DECIBELS = 100.0
"""PSNR of an image that equals its target; infinity would have no mean and no JSON."""


class ImageTask(Task):
    """L = mean over the batch's pixels and channels of (f(x) - y)², coordinates x in [-1, 1]² at pixel centres.

    A batch is a tensor of pixel numbers, row by row.
    """

    def __init__(self, field: nn.Module, image: Float[Tensor, "height width channels"]) -> None:
        """Bind ``field`` to ``image``.

        Args:
            field: From (B, 2) coordinates, x to the right and y down, to (B, channels).
            image: Values in [0, 1].
        """
        super().__init__(field)
        self.image = image
        height, width, channels = image.shape
        self.points = pixel_centres(height, width).to(image)
        self.colors = image.reshape(-1, channels)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return len(self.points)

    def residual(self, batch: Tensor) -> Tensor:
        """Return √(2/n)·(f(x) - y) for the pixels ``batch``."""
        return mean_squared_residual(self.module(self.points[batch]), self.colors[batch])

    def metrics(self, loss: float) -> Mapping[str, float]:
        """Return the PSNR of the batch, dB; the loss is its mean squared error."""
        return {"psnr": decibels(loss)}

    def predict(self) -> Float[Tensor, "height width channels"]:
        """Return the whole image as the field has it, clamped to [0, 1]."""
        return in_chunks(self.module, self.points, self.chunk).clamp(0, 1).reshape(self.image.shape)

    def score(self) -> Mapping[str, float]:
        """Return PSNR and SSIM of the whole image; no SSIM where a side is below its window."""
        predicted = self.predict()
        scores = {"psnr": min(psnr(predicted, self.image), MAX_DECIBELS)}
        if min(self.image.shape[:2]) >= SSIM_WINDOW:
            scores["ssim"] = ssim(predicted, self.image)
        return scores


def pixel_centres(height: int, width: int) -> Float[Tensor, "pixels 2"]:
    """Return the centres of an image's pixels, row by row, (x, y) with the image's edges at ±1."""
    rows = (torch.arange(height) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width) + 0.5) * (2 / width) - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def decibels(squared_error: float) -> float:
    """Return -10·log10(mean squared error), at most 100."""
    if squared_error == 0:
        return MAX_DECIBELS
    return min(-10 * math.log10(squared_error), MAX_DECIBELS)
