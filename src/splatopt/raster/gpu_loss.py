"""The photometric loss on a GPU: glue between the rule's numbers and the kernels; imported where kernels serve."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from splatopt.kernels import loss
from splatopt.raster import constants
from splatopt.raster.reference_loss import ssim_window
from splatopt.raster.renderer import ViewLoss
from splatopt.raster.residuals import L1Ssim, ResidualOptions


@functools.cache
def loss_window() -> loss.SsimWindow:
    """Return the rule of SSIM as the kernels take it."""
    taps = ssim_window(torch.zeros(1, dtype=torch.float64))
    return loss.SsimWindow(tuple(taps.tolist()), constants.SSIM_C1, constants.SSIM_C2)


def view_loss(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    ssim_weight: float,
    gradient: Float[Tensor, "h w 3"] | None = None,
) -> ViewLoss:
    """Return the loss and the squared error of an image, and write ∂loss/∂image into ``gradient`` where given.

    The host waits for the device here, and twice in the tile lists, for how long they get: three times a view.

    Args:
        image: Rendered, contiguous float32.
        target: The photograph, on the image's device.
        ssim_weight: λ.
        gradient: Written.
    """
    sums = loss.photometric_loss(image, target, ssim_weight, loss_window(), gradient)
    similarity, absolute, squared = (torch.stack(sums) / image.numel()).tolist()
    return ViewLoss((1 - ssim_weight) * absolute + ssim_weight * (1 - similarity), squared)


def residuals(
    image: Float[Tensor, "h w 3"], target: UInt8[Tensor, "h w 3"], options: ResidualOptions
) -> Float[Tensor, "k h w 3"]:
    """Return the residuals of an image; see :mod:`splatopt.raster.residuals`."""
    if not isinstance(options, L1Ssim):
        return ((image - target / 255) / image.numel() ** 0.5)[None]
    return loss.residuals(image, target, _slopes(image, options), loss_window())


def residual_jvp(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    options: ResidualOptions,
    tangent: Float[Tensor, "h w 3"],
) -> Float[Tensor, "k h w 3"]:
    """Return ∂r/∂image · tangent."""
    if not isinstance(options, L1Ssim):
        return (tangent / image.numel() ** 0.5)[None]
    return loss.residual_jvp(image, target, tangent, _slopes(image, options), loss_window())


def residual_vjp(
    image: Float[Tensor, "h w 3"],
    target: UInt8[Tensor, "h w 3"],
    options: ResidualOptions,
    cotangent: Float[Tensor, "k h w 3"],
) -> Float[Tensor, "h w 3"]:
    """Return (∂r/∂image)ᵀ · cotangent: the image's gradient that a backward pass goes on from."""
    if not isinstance(options, L1Ssim):
        return cotangent[0] / image.numel() ** 0.5
    return loss.residual_vjp(image, target, cotangent, _slopes(image, options), loss_window())


def residual_weights(
    image: Float[Tensor, "h w 3"], target: UInt8[Tensor, "h w 3"], options: ResidualOptions
) -> Float[Tensor, "h w 3"]:
    """Return W = Σ (∂r/∂image)² of each pixel's own residuals, the weights of diagonals and blocks."""
    if not isinstance(options, L1Ssim):
        return torch.full_like(image, 1 / image.numel())
    return loss.residual_weights(image, target, _slopes(image, options), loss_window())


def _slopes(image: Tensor, options: L1Ssim) -> loss.ResidualSlopes:
    half_share = 1 / (2 * image.numel())
    return loss.ResidualSlopes(
        absolute=(half_share * (1 - options.ssim_weight)) ** 0.5,
        dissimilarity=(half_share * options.ssim_weight) ** 0.5,
        floor_absolute=options.floor_absolute,
        floor_dissimilarity=options.floor_dissimilarity,
    )
