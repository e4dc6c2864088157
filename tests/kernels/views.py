"""Tiny views for the kernels: the awkward clouds of the renderers' tests, a score of Gaussians on a few tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raster.cases import RenderCase, find_case, make_camera
from splatopt.kernels import blend, blend_backward, blend_moments, curvature, loss, statistics, tangent
from splatopt.kernels.projection import CloudPointers, SplatBuffers, project
from splatopt.kernels.tiles import TileLists, make_tile_lists
from splatopt.raster.gpu import cloud_pointers, view_numbers
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

if not torch.cuda.is_available():
    # The interpreter's time goes by the number of operations, whatever their size.
    blend.BATCH = blend_backward.BATCH = blend_moments.BATCH = statistics.BATCH = tangent.BATCH = 16
    curvature.BLOCK_ROWS = curvature.DIAGONAL_ROWS = loss.ROWS = 32

GREY = RenderOptions(background=(0.2, 0.5, 0.9))
NAMES = ("degree_3", "opaque_giants", "all_around", "dark", "degree_0")


@dataclass(frozen=True)
class TinyView:
    """A case of the renderers' tests cut down to what the interpreter draws in a fraction of a second."""

    case: RenderCase
    count: int

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.case.options.footprint.value}"

    def cloud(self) -> GaussianCloud:
        """The first Gaussians of the case, float64, exactly representable in float32."""
        return self.case.cloud().map(lambda tensor: tensor[: self.count].clone())


def tiny(
    name: str,
    footprint: Footprint = Footprint.CLASSIC,
    count: int = 20,
    size: tuple[int, int] = (24, 20),
    sh_degree: int | None = None,
) -> TinyView:
    """Cut a case down to a few pixels, two by two tiles."""
    options = replace(GREY, footprint=footprint, sh_degree=sh_degree)
    return TinyView(replace(find_case(name), camera=make_camera(*size), options=options), count)


TINY = (
    *(tiny(name) for name in NAMES),
    tiny("needles", sh_degree=1),  # stored at degree 3
    tiny("degree_3", Footprint.ANTIALIASED),
    tiny("blades_antialiased", Footprint.ANTIALIASED),
)


@dataclass(frozen=True)
class Drawn:
    """A view on a device, projected and listed."""

    numbers: torch.Tensor
    cloud: CloudPointers
    splats: SplatBuffers
    lists: TileLists


def prepare(view: TinyView, device: torch.device) -> Drawn:
    """Project a view in float32 and make its lists."""
    camera, options = view.case.camera, view.case.options
    cloud = cloud_pointers(view.cloud().to(torch.float32).map(lambda tensor: tensor.to(device)), options)
    numbers = view_numbers(camera, options, device)
    splats = project(numbers, cloud, options.footprint is Footprint.ANTIALIASED)
    return Drawn(numbers, cloud, splats, make_tile_lists(numbers, splats, camera.width, camera.height))
