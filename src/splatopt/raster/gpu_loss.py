"""The photometric loss on a GPU: glue between the rule's numbers and the kernels; imported where kernels serve."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.kernels import loss
from splatopt.raster import constants
from splatopt.raster.losses import L1Ssim
from splatopt.raster.problem import ViewLoss, ViewProblem
from splatopt.raster.ssim import ssim_window


@functools.cache
def loss_window() -> loss.SsimWindow:
    """Return the rule of SSIM as the kernels take it."""
    taps = ssim_window(torch.zeros(1, dtype=torch.float64))
    return loss.SsimWindow(tuple(taps.tolist()), constants.SSIM_C1, constants.SSIM_C2)


def known_loss(problem: ViewProblem) -> L1Ssim | None:
    """Return the view's loss where the kernels know it, L1 and SSIM without weights; else PyTorch takes their place."""
    loss = problem.loss
    return loss if isinstance(loss, L1Ssim) and loss.shares.ssim > 0 and problem.weights is None else None


def view_loss(
    image: Float[Tensor, "h w 3"], problem: ViewProblem, gradient: Float[Tensor, "h w 3"] | None = None
) -> ViewLoss:
    """Return the loss and the squared error of an image, and write ∂loss/∂image into ``gradient`` where given.

    The host waits for the device here, and twice in the tile lists, for how long they get: three times a view.

    Args:
        image: Rendered, contiguous float32.
        problem: The view, its photograph on the image's device.
        gradient: Written.
    """
    known = known_loss(problem)
    if known is None:
        found, slope = problem.loss_gradient(image)
        if gradient is not None:
            gradient.copy_(slope)
        return found
    shares = known.shares
    sums = loss.photometric_loss(image, problem.image, shares, loss_window(), gradient)
    similarity, absolute, squared = (torch.stack(sums) / image.numel()).tolist()
    return ViewLoss(shares.pixel * absolute + shares.ssim * (1 - similarity), squared)


def residuals(image: Float[Tensor, "h w 3"], problem: ViewProblem) -> Float[Tensor, "k h w 3"]:
    """Return the residuals of an image; see :mod:`splatopt.raster.losses`."""
    known = known_loss(problem)
    if known is None:
        return problem.residuals(image)
    return loss.residuals(image, problem.image, _slopes(image, known), loss_window())


def residual_jvp(
    image: Float[Tensor, "h w 3"], problem: ViewProblem, tangent: Float[Tensor, "h w 3"]
) -> Float[Tensor, "k h w 3"]:
    """Return ∂r/∂image · tangent."""
    known = known_loss(problem)
    if known is None:
        return problem.residual_jvp(image, tangent)
    return loss.residual_jvp(image, problem.image, tangent, _slopes(image, known), loss_window())


def residual_vjp(
    image: Float[Tensor, "h w 3"], problem: ViewProblem, cotangent: Float[Tensor, "k h w 3"]
) -> Float[Tensor, "h w 3"]:
    """Return (∂r/∂image)ᵀ · cotangent: the image's gradient that a backward pass goes on from."""
    known = known_loss(problem)
    if known is None:
        return problem.residual_vjp(image, cotangent)
    return loss.residual_vjp(image, problem.image, cotangent, _slopes(image, known), loss_window())


def pixel_curvature(image: Float[Tensor, "h w 3"], problem: ViewProblem) -> Float[Tensor, "h w 3"]:
    """Return W = Σ (∂r/∂image)² of each pixel's own residuals, the weights of diagonals and blocks."""
    known = known_loss(problem)
    if known is None:
        return problem.pixel_curvature(image)
    return loss.residual_weights(image, problem.image, _slopes(image, known), loss_window())


def _slopes(image: Tensor, options: L1Ssim) -> loss.ResidualSlopes:
    half_share = 1 / (2 * image.numel())
    return loss.ResidualSlopes(
        absolute=(half_share * options.shares.pixel) ** 0.5,
        dissimilarity=(half_share * options.shares.ssim) ** 0.5,
        floor_absolute=options.floor_absolute,
        floor_dissimilarity=options.floor_dissimilarity,
    )
