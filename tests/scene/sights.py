"""Captures in memory of scenes with a formula: cameras, and photographs of what their rays meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.data import Capture, Split
from splatopt.data.image_store import ImageSource, ImageStore
from splatopt.data.lens import Lens

WIDTH, HEIGHT, FOCAL = 60, 45, 55.0

Sight = Callable[[Tensor, Tensor], Tensor]
"""Colours in [0, 1], and alpha as a fourth channel or none, of rays from (3,) along (..., 3)."""


class Photographs(ImageStore):
    """Images in memory, RGB or RGBA; those of views that are not to be looked at raise when they are."""

    def __init__(self, images: Sequence[Tensor], forbidden: Sequence[int]) -> None:
        lens = Lens("PINHOLE", WIDTH, HEIGHT, (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
        super().__init__([ImageSource(Path("none"), lens, WIDTH, HEIGHT)] * len(images), (1.0, 1.0, 1.0), 0)
        self._images, self._forbidden = images, set(forbidden)

    def __getitem__(self, index: int) -> Tensor:
        return self.with_alpha(index)[0]

    def with_alpha(self, index: int) -> tuple[Tensor, Tensor | None]:
        assert index not in self._forbidden, f"view {index} is held out"
        image = self._images[index]
        return image[..., :3].contiguous(), image[..., 3].contiguous() if image.shape[2] == 4 else None


def camera_at(eye: Sequence[float], target: Sequence[float] = (0.0, 0.0, 0.0)) -> Camera:
    """A camera of the usual size at ``eye`` that looks at ``target``, y down."""
    place, toward = (torch.tensor(tuple(one), dtype=torch.float64) for one in (eye, target))
    forward = torch.nn.functional.normalize(toward - place, dim=0)
    right = torch.linalg.cross(torch.tensor([0.0, 1, 0], dtype=torch.float64), forward)
    right = torch.nn.functional.normalize(right, dim=0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ place
    return Camera(pose, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def orbit(count: int = 12, radius: float = 4.0, height: float = -1.5) -> list[Camera]:
    """Cameras on a ring that look at the origin."""
    angles = [2 * math.pi * index / count for index in range(count)]
    return [camera_at((radius * math.sin(angle), height, -radius * math.cos(angle))) for angle in angles]


def arc(count: int = 8) -> list[Camera]:
    """Cameras side by side that look along z."""
    places = [(0.35 * (index - (count - 1) / 2), 0.2 * (index % 3) - 0.2) for index in range(count)]
    return [camera_at((x, y, -4.0), (x, y, 0.0)) for x, y in places]


def rays_of(camera: Camera) -> Tensor:
    """Directions through the middles of all pixels, (H, W, 3), world axes, float64."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    x, y = (columns + 0.5 - camera.cx) / camera.fx, (rows + 0.5 - camera.cy) / camera.fy
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).double() @ camera.world_to_camera[:3, :3].double()


def capture_of(cameras: Sequence[Camera], sight: Sight, test: Sequence[int] = ()) -> Capture:
    """Return the capture of what ``sight`` says that the cameras see; views in ``test`` must not be looked at."""
    images = [(sight(camera.center.double(), rays_of(camera)) * 255).round().to(torch.uint8) for camera in cameras]
    train = tuple(index for index in range(len(cameras)) if index not in test)
    return Capture(
        name="sight",
        path=Path("sight"),
        kind="colmap",
        cameras=tuple(cameras),
        images=Photographs(images, test),
        points=None,
        split=Split("own", train, tuple(test)),
        warnings=(),
        camera_models=("PINHOLE",),
        background=(0.0, 0.0, 0.0),
    )


def texture(places: Tensor) -> Tensor:
    """A smooth colour for each place, (..., 3), that differs from place to place."""
    x, y, z = (3 * places).unbind(dim=-1)
    waves = [torch.sin(3.1 * x + 1.7 * y), torch.sin(2.3 * y - 1.9 * z + 1), torch.cos(2.7 * z + 2.1 * x - 0.8 * y)]
    return 0.5 + 0.4 * torch.stack(waves, dim=-1)


def wall(origin: Tensor, directions: Tensor) -> Tensor:
    """A textured wall at z = 0."""
    return texture(origin + directions * (-origin[2] / directions[..., 2])[..., None])


def ball(origin: Tensor, directions: Tensor) -> Tensor:
    """A textured ball of radius 1 about the origin, nothing around it."""
    a, b = directions.square().sum(dim=-1), (directions @ origin)
    root = b.square() - a * (origin.square().sum() - 1)
    hit = root > 0
    places = origin + directions * ((-b - root.clamp_min(0).sqrt()) / a)[..., None]
    return torch.cat([texture(places) * hit[..., None], hit[..., None].double()], dim=-1)


def grey(origin: Tensor, directions: Tensor) -> Tensor:
    """The same grey everywhere."""
    return torch.full(directions.shape, 0.5, dtype=torch.float64)
