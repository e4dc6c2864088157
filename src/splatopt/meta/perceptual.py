"""Losses of whole images in the meta-loss, LPIPS above all, differentiated through the renderer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from splatopt.core.objective import Oracle
from splatopt.raster.losses import SquaredError
from splatopt.raster.problem import WeightedSum
from splatopt.scene.photometric import PhotometricObjective

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""A differentiable distance of two images (H, W, 3) with values in [0, 1]."""


def image_loss_gradient(objective: PhotometricObjective, view: int, loss: ImageLoss) -> tuple[float, dict[str, Tensor]]:
    """Return ``loss`` of one rendered view against its photograph, and its gradient by θ.

    The squared error's residuals are r = (x - y)/√n with n = 3·H·W, so that ∂loss/∂θ = √n · Jᵀ ∂loss/∂x. The render
    is not clamped.

    Args:
        objective: A cloud and its views; its renderer must give Jacobian products.
        view: The view's index.
        loss: The distance.

    Returns:
        The distance, and tensors in the shapes of the parameters.
    """
    problem = replace(objective.problem(view), loss=SquaredError(), weights=None)
    rendering = objective.renderer.render(objective.cloud, problem.camera, problem.options)
    image = rendering.image.detach().cpu().clone().requires_grad_()
    with torch.enable_grad():
        value = loss(image, problem.image.to(image) / 255)
        (slope,) = torch.autograd.grad(value, image)
    gradient = {name: torch.zeros_like(tensor) for name, tensor in objective.parameters.items()}
    into = WeightedSum(gradient, math.sqrt(slope.numel()), overwrite=True)
    objective.renderer.vjp(objective.cloud, problem, slope[None].to(objective.cloud.means.device), into)
    return float(value.detach()), gradient


def gives_image_loss_gradient(objective: PhotometricObjective) -> bool:
    """Whether the objective's renderer gives what :func:`image_loss_gradient` asks for."""
    return Oracle.VJP in objective.oracles
