"""Small scenes in gsplat's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

DIFFERENTIABLE = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


def plain_scene(
    dtype: torch.dtype,
    rows: int,
    views: int,
    channels: int | None = None,
    degree: int = 3,
    size: tuple[int, int] = (41, 30),
    seed: int = 3,
) -> dict[str, Tensor]:
    """Gaussians about the origin and cameras before it, the same numbers in any type, all leaves that want gradients.

    Colours are of ``channels``, or coefficients of ``degree`` where there are none.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.tensor([1.2, 0.8, 0.5], dtype=torch.float64)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    viewmats[:, 2, 3] = 3.0
    for view in range(views):
        viewmats[view, 0, 3] = 0.3 * view
        viewmats[view, 0, 2] = 0.1 * view
    width, height = size
    intrinsics = [[0.9 * width, 0.0, 0.5 * width + 0.3], [0.0, 0.95 * width, 0.5 * height - 0.2], [0.0, 0.0, 1.0]]
    scene = {
        "means": draw(rows, 3) * spread,
        "quats": draw(rows, 4),
        "scales": 0.15 * (0.4 * draw(rows, 3)).exp(),
        "opacities": torch.sigmoid(draw(rows)),
        "colors": 0.3 * draw(rows, (degree + 1) ** 2, 3) if channels is None else torch.sigmoid(draw(rows, channels)),
        "viewmats": viewmats,
        "backgrounds": torch.sigmoid(draw(views, 3 if channels is None else channels)),
    }
    # Exactly representable in float32, so that both types are given the same.
    scene = {name: tensor.float().to(dtype).requires_grad_() for name, tensor in scene.items()}
    return {**scene, "Ks": torch.tensor(intrinsics, dtype=dtype).repeat(views, 1, 1), "size": torch.tensor(size)}


def arguments_of(scene: dict[str, Tensor], **options: object) -> dict[str, object]:
    """The scene as keyword arguments of ``rasterization``; coefficients are told by their three axes and channels."""
    given = {name: value for name, value in scene.items() if name != "size"}
    width, height = scene["size"].tolist()
    colors = scene["colors"]
    stored = colors.ndim >= 3 and colors.shape[-1] == 3 and colors.shape[-2] in (1, 4, 9, 16)
    degree = round(colors.shape[-2] ** 0.5) - 1 if stored else None
    return {**given, "width": width, "height": height, "sh_degree": degree, **options}
