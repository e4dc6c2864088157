"""Pictures of a run: its views as photographed, at the start and as trained."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.data import Capture
from splatopt.raster.renderer import Renderer
from splatopt.raster.threads import quiet_torch
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.machine import Machine
from splatopt.train.setup import render_options, starting_cloud

MAX_SIDE = 640
"""Pictures in a page are shrunk until their longer side has at most so many pixels, so that it stays light."""

_GREY = torch.tensor(128, dtype=torch.uint8)


@dataclass(frozen=True)
class ViewPictures:
    """What is shown of one view; all pictures have one size.

    Attributes:
        name: What the capture calls the view; its scores are found by it.
        image: The photograph, (H, W, 3), uint8.
        start: The render before the first step, in the same form, or None where it is not known.
        trained: The render at the end.
        camera: Where the view stands in the capture's own frame, at the pictures' size; None where it is not known.
        seen: (H, W), which pixels are not masked; None where all count.
    """

    name: str
    image: Tensor
    start: Tensor | None
    trained: Tensor
    camera: Camera | None = None
    seen: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse pictures of different sizes."""
        for other in (self.start, self.trained):
            if other is not None and other.shape != self.image.shape:
                raise ValueError(
                    f"pictures of view {self.name!r} must be {tuple(self.image.shape)}, got {tuple(other.shape)}"
                )


def run_pictures(
    config: TrainConfig, capture: Capture, trained: GaussianCloud, steps: int, machine: Machine, max_views: int = 4
) -> list[ViewPictures]:
    """Render held-out views of a run before and after, or training views where there are no others.

    Args:
        config: What the run was told; its start is made again from it.
        capture: What it was trained on.
        trained: Its scene.
        steps: Optimizer steps that the scene has seen.
        machine: What renders, and where.
        max_views: So many views at most, spread evenly.
    """
    generator = torch.Generator().manual_seed(config.schedule.seed)
    start = starting_cloud(config, capture, generator, []).to(machine.device)
    trained, renderer = trained.to(machine.device), machine.renderer
    options = render_options(config, capture)
    first = replace(options, sh_degree=config.scene.sh_degree_at(0))
    last = replace(options, sh_degree=config.scene.sh_degree_at(max(0, steps - 1)))
    return [
        ViewPictures(
            name=capture.cameras[view].name,
            image=greyed(capture.images[view], capture.images.seen(view)),
            start=_drawn(renderer, start, capture.cameras[view], first),
            trained=_drawn(renderer, trained, capture.cameras[view], last),
            camera=(capture.own or capture).cameras[view],
            seen=capture.images.seen(view),
        )
        for view in spread(capture.split.test or capture.split.train, max_views)
    ]


def greyed(picture: UInt8[Tensor, "h w 3"], seen: Bool[Tensor, "h w"] | None) -> UInt8[Tensor, "h w 3"]:
    """Return the picture with masked pixels in grey, as what does not count is shown."""
    return picture if seen is None else torch.where(seen[:, :, None], picture, _GREY)


def spread(views: tuple[int, ...], max_views: int) -> list[int]:
    """Return at most ``max_views`` of ``views``, evenly spread and in order."""
    count = min(max_views, len(views))
    return [views[index * len(views) // count] for index in range(count)]


def _drawn(renderer: Renderer, cloud: GaussianCloud, camera: Camera, options: RenderOptions) -> Tensor:
    """Render one view as bytes."""
    with quiet_torch(renderer):
        return (renderer.render(cloud, camera, options).image.clamp(0, 1) * 255).round().to(torch.uint8)


def data_uri(picture: UInt8[Tensor, "h w 3"]) -> str:
    """Return the picture as a PNG inside a data URI, shrunk to MAX_SIDE."""
    image = Image.fromarray(picture.cpu().contiguous().numpy())
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # hardly larger than the best, many times as fast
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
