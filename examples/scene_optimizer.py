"""A scene's optimizer in three lines: any dictionary of Gaussians, any renderer that PyTorch differentiates.

The renderer here is twenty lines of PyTorch, without sorting and tiles; ``gsplat.rasterization`` or
``splatopt.torch_api.rasterization`` take its place. Run it with ``python examples/scene_optimizer.py``; it takes a few
seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splatopt.torch_api import SceneOptimizer

SIDE, GAUSSIANS, STEPS = 24, 60, 60


def new_scene(seed: int) -> nn.ParameterDict:
    """Gaussians in gsplat's names and shapes: scales are logarithms, opacities logits."""
    torch.manual_seed(seed)
    return nn.ParameterDict(
        {
            "means": torch.randn(GAUSSIANS, 3),
            "scales": torch.full((GAUSSIANS, 3), -1.5),
            "quats": torch.randn(GAUSSIANS, 4),
            "opacities": torch.zeros(GAUSSIANS),
            "sh0": 0.5 * torch.randn(GAUSSIANS, 1, 3),
            "shN": torch.zeros(GAUSSIANS, 3, 3),
        }
    )


def render(scene: nn.ParameterDict, axis: int) -> Tensor:
    """Return the image (SIDE, SIDE, 3) along one axis of the world: soft discs, blended without an order."""
    across = [other for other in range(3) if other != axis]
    grid = torch.linspace(-2.5, 2.5, SIDE)
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1).view(-1, 1, 2)
    distance = ((pixels - scene["means"][:, across]) / scene["scales"].exp()[:, across]).square().sum(dim=-1)
    weights = scene["opacities"].sigmoid() * torch.exp(-0.5 * distance)
    color = 0.5 + 0.282 * scene["sh0"][:, 0] + scene["shN"][:, axis]
    return (weights @ color / (0.2 + weights.sum(dim=1, keepdim=True))).view(SIDE, SIDE, 3)


def residuals(scene: nn.ParameterDict, images: list[Tensor], view: int) -> Tensor:
    """Return r such that ½‖r‖² is the mean squared error."""
    return (render(scene, view) - images[view]) * (2 / images[view].numel()) ** 0.5


def main() -> None:
    with torch.no_grad():
        images = [render(new_scene(seed=1), axis) for axis in range(3)]
    for name in ("adam", "sign-tr", "learned", "tr2", "block-gn"):
        scene = new_scene(seed=2)
        optimizer = SceneOptimizer(name, scene, scene_scale=3.0, steps=STEPS)
        losses = []
        for step in range(STEPS):
            view = step % 3
            loss = 0.5 * residuals(scene, images, view).square().sum()
            loss.backward()
            # Curvature is asked for in some steps of tr2 and block-gn alone; the others leave the function uncalled.
            optimizer.step(lambda view=view, scene=scene: residuals(scene, images, view), loss=loss)
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"{name}: loss {sum(losses[:3]) / 3:.5f} -> {sum(losses[-3:]) / 3:.5f}")


if __name__ == "__main__":
    main()
