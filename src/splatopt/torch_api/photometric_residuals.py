"""Residuals of the losses that scenes are trained by, differentiable through any renderer's image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.raster.losses import L1Ssim, Loss


def photometric_residuals(images: Tensor, targets: Tensor, loss: Loss | None = None) -> Tensor:
    """Return residuals r such that ½‖r‖² is the mean of the views' losses, as ``step(residuals_fn)`` wants them.

    Written by hand, the square roots of such residuals have infinite slopes where a pixel is right; these have the
    floors of the loss (``docs/curvature.md``).

    Args:
        images: Rendered, (H, W, 3) or (C, H, W, 3), with their graph.
        targets: Photographs in [0, 1], of the same shape.
        loss: How they are compared; that of 3DGS, L1 and SSIM, when None.

    Returns:
        (C, k, H, W, 3), k of the loss, with its graph.

    Raises:
        InputError: The shapes differ, or are of no images.
    """
    if images.shape != targets.shape or images.dim() not in (3, 4):
        raise InputError(
            f"images and targets must both be (H, W, 3) or (C, H, W, 3), got {tuple(images.shape)} and "
            f"{tuple(targets.shape)}"
        )
    views = images.reshape(-1, *images.shape[-3:])
    compared = targets.reshape(views.shape).to(views)
    found = [_Residuals.apply(view, target, loss or L1Ssim()) for view, target in zip(views, compared, strict=True)]
    return torch.stack(found) / math.sqrt(len(found))


class _Residuals(torch.autograd.Function):
    """One view's residuals, with the derivatives that the loss gives."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, loss: Loss) -> Tensor:
        ctx.save_for_backward(image, target)
        ctx.loss = loss
        return loss.residuals(image, target, torch.ones_like(image[..., :1]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, None, None]:
        image, target = ctx.saved_tensors
        weights = torch.ones_like(image[..., :1])
        return ctx.loss.residual_vjp(image, target, weights, along.contiguous()), None, None
