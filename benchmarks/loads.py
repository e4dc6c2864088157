"""The scenes that are timed: real captures and synthetic loads of a known size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splatopt.core.camera import Camera
from splatopt.data import CaptureOptions, load_capture
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import start_from_points


@dataclass(frozen=True)
class Load:
    """A cloud, the cameras it is seen from and a photograph for each.

    Attributes:
        name: What the table calls it.
        cloud: The Gaussians.
        cameras: At least one.
        targets: (H, W, 3) uint8, one per camera.
        sh_degree: Degree that is evaluated: 0 at the start of a training run, 3 later.
    """

    name: str
    cloud: GaussianCloud
    cameras: tuple[Camera, ...]
    targets: tuple[torch.Tensor, ...]
    sh_degree: int


def fox(data: Path) -> Load:
    """The fox at 270x480 from its 10,968 SfM points, as a run starts on it."""
    capture = load_capture(data / "fox", CaptureOptions())
    assert capture.points is not None
    views = capture.split.train[:8]
    return Load(
        "fox 270x480, start",
        start_from_points(capture.points.positions, capture.points.colors),
        tuple(capture.cameras[view] for view in views),
        tuple(capture.images[view] for view in views),
        sh_degree=0,
    )


def garden(data: Path) -> Load:
    """138,766 points of a garden at 648x420 from three cameras; no photographs, so noise in their place."""
    with np.load(data / "garden_workload.npz", allow_pickle=False) as arrays:
        cloud = start_from_points(torch.from_numpy(arrays["means3d"]), torch.from_numpy(arrays["colors"]))
        width, height = int(arrays["width"]), int(arrays["height"])
        cameras = tuple(
            Camera(
                torch.from_numpy(pose).double(),
                *(float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))),
                width,
                height,
            )
            for pose, intrinsics in zip(arrays["viewmats"], arrays["Ks"], strict=True)
        )
    return Load("garden 648x420", cloud, cameras, tuple(noise(camera) for camera in cameras), sh_degree=0)


def made_up(count: int, width: int, height: int, pixels_each: float, sh_degree: int = 3) -> Load:
    """``count`` Gaussians spread over the image, each reaching about ``pixels_each`` pixels.

    Opacities are about 0.05, so that rays reach most of what lies on them and the work grows with the count.
    """
    generator = torch.Generator().manual_seed(count)
    depth, focal = 4.0, 1.25 * width
    # With opacity o, α falls to 1/255 at √(2 ln 255·o) standard deviations.
    opacity = 0.05
    sigma = math.sqrt(pixels_each / (2 * math.pi * math.log(255 * opacity))) * depth / focal
    means = torch.rand(count, 3, generator=generator) - 0.5
    means *= torch.tensor([width / focal * depth, height / focal * depth, 1.0])
    coefficients = (sh_degree + 1) ** 2 - 1
    cloud = GaussianCloud(
        means=means,
        log_scales=math.log(sigma) + 0.3 * torch.randn(count, 3, generator=generator),
        quats=torch.randn(count, 4, generator=generator),
        logit_opacities=math.log(opacity / (1 - opacity)) + 0.1 * torch.randn(count, generator=generator),
        sh_dc=torch.rand(count, 3, generator=generator),
        sh_rest=0.05 * torch.randn(count, coefficients, 3, generator=generator),
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = depth
    camera = Camera(pose, focal, focal, width / 2, height / 2, width, height)
    return Load(f"{count:,} Gaussians {width}x{height}", cloud, (camera,), (noise(camera),), sh_degree)


def noise(camera: Camera) -> torch.Tensor:
    """A photograph of nothing, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (camera.height, camera.width, 3), generator=generator, dtype=torch.uint8)
