"""A scene in gsplat's names, and a soft renderer of it that PyTorch differentiates: no sorting, no tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splatopt.core.schema import rotation_matrices
from splatopt.torch_api import SceneOptimizer

SIDE = 16
_PIXELS = torch.stack(torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="xy"), dim=-1).reshape(-1, 2)
_FOCAL = 6.0


def parameters(rows: int = 24, seed: int = 0, bands: int = 3, dtype: torch.dtype = torch.float32) -> nn.ParameterDict:
    """Gaussians in a square of two units, with gsplat's names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    values = {
        "means": 0.5 * normal(rows, 3),
        "scales": 0.2 * normal(rows, 3) - 1.8,
        "quats": normal(rows, 4),
        "opacities": 0.5 * normal(rows),
        "sh0": 0.5 * normal(rows, 1, 3),
        "shN": 0.05 * normal(rows, bands, 3),
    }
    return nn.ParameterDict({name: nn.Parameter(value) for name, value in values.items()})


def render(params: Mapping[str, Tensor], view: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """Return an image (SIDE, SIDE, 3) and what gsplat's strategies read, of one view that looks along z."""
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).roll(view, dims=0).to(params["means"])
    centers = (params["means"] @ turn.T)[:, :2] * _FOCAL + SIDE / 2
    means2d = centers[None] * 1.0
    axes = turn @ rotation_matrices(params["quats"]) * params["scales"].exp()[:, None, :]
    flat = (axes @ axes.mT)[:, :2, :2] * _FOCAL**2 + 0.3 * torch.eye(2, dtype=axes.dtype)
    offsets = _PIXELS.to(means2d)[:, None, :] - means2d[0]
    distance = torch.einsum("pni,nij,pnj->pn", offsets, torch.linalg.inv(flat), offsets)
    weights = torch.sigmoid(params["opacities"].reshape(-1)) * torch.exp(-0.5 * distance)
    color = 0.5 + 0.282 * params["sh0"].reshape(-1, 3)
    if "shN" in params:
        color = color + 0.3 * params["shN"].sum(dim=1)
    image = (weights @ color) / (0.3 + weights.sum(dim=1, keepdim=True))
    radii = 3 * torch.linalg.eigvalsh(flat.detach()).amax(dim=1).sqrt()
    info = {"means2d": means2d, "radii": radii[None, :, None].expand(1, -1, 2).round().int(), "gaussian_ids": None}
    return image.view(SIDE, SIDE, 3), info | {"width": SIDE, "height": SIDE, "n_cameras": 1}


def photographs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Three images of another scene."""
    with torch.no_grad():
        return [render(parameters(30, seed=9, dtype=dtype), view)[0] for view in range(3)]


def residuals(params: Mapping[str, Tensor], view: int, targets: list[Tensor]) -> Tensor:
    """r such that ½‖r‖² is the mean squared error."""
    image, _ = render(params, view)
    return (image - targets[view]) * (2 / image.numel()) ** 0.5


def loss_of(params: Mapping[str, Tensor], targets: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float(residuals(params, view, targets).square().sum()) / 2 for view in range(3))


TARGETS = photographs()
BRIEFLY = ("learned", "sign-tr", "adam", "tr2", "block-gn")
"""Optimizers that the fast suite tries."""


def backward(params, view: int) -> Tensor:
    """Leave the gradient of ½‖r‖² of a view in ``.grad``; returns the loss."""
    loss = residuals(params, view, TARGETS).square().sum() / 2
    loss.backward()
    return loss


def train(optimizer: SceneOptimizer, params, steps: int, begin: int = 0) -> None:
    """Take steps on the three views in turn."""
    for step in range(begin, begin + steps):
        loss = backward(params, step % 3)
        optimizer.step(lambda view=step % 3: residuals(params, view, TARGETS), loss=loss, views=[step % 3])
        optimizer.zero_grad()
