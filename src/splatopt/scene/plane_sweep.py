"""Depths along camera rays at which photographs agree: a plane sweep over small copies of the training views.

A ray through a pixel is looked at in 64 places, spaced evenly in the logarithm of depth. Each place is projected into
up to 8 neighbouring views, and view k agrees by exp(-(d_k/τ)²), d_k the mean absolute difference of the pixels'
features: the colour and the mean colour of 5×5 pixels around it. The agreement a of a place is the sum over the
neighbours, as a share of all; one that does not see the place adds nothing, so that places where many rays meet are
likelier. One place is drawn, with probability ∝ (a + 10⁻⁴)^γ, and then one of 32 about it, likewise. Where surfaces
have texture this is the surface; where they have none, a place in the space in which the photographs do not rule it
out.

A masked pixel says nothing: no ray begins there, and a place that a neighbour has masked is not seen by it.

Depths are measured by the distances between cameras. Cameras are in the training frame: those nearer than 3.5e-6 of its
units stand in one place, and where all do, depths are those that captures usually have there.

Source: Collins 1996, A space-sweep approach to true multi-image matching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.frame import ONE_PLACE, USUAL_DISTANCE, in_one_place
from splatopt.data import Capture
from splatopt.data.seen_pixels import box_mean

MAX_SIDE = 300
"""Longer side of the copies that photographs are compared in, pixels: a row covers several pixels of a photograph."""

MAX_VIEWS = 128
"""Training views that are looked at, evenly spread over all by name; bounds time and memory."""

_PLANES = 64
_FINE_PLANES = 32
"""Places that are looked at then, from one coarse place before that drawn to one behind it."""
_RANKS = (1, 2, 3, 5, 8, 13, 21, 34)
"""Neighbours of a view, by rank of distance: near ones are alike, far ones tell depths apart."""
_MIN_COSINE = 0.5
"""Views whose axes are 60° and more apart are no neighbours."""
_TOLERANCE = 0.06
"""τ: a difference of features at which agreement is 1/e, of colours in [0, 1]."""
_SHARPNESS = 24.0
"""γ, by which agreement decides."""
_FLOOR = 1e-4
_NEAR = 0.25
"""Nearest depth, in distances to the median neighbour."""
_NEAR_OF_SPREAD = 0.01
"""Nearest depth at least, in largest distances of a camera from the cameras' mean."""
_FAR_DISPARITY = 3.0
"""Farthest depth: where the farthest neighbour sees a point so far from where it sees one at infinity, pixels."""
_LONE_DEPTH = USUAL_DISTANCE
"""Depth that is looked at where all cameras stand in one place, from a half to twice as much."""
_MAX_RAYS = 4096
"""Rays that are looked at together, which bounds memory."""
_NO_BASELINE = ONE_PLACE * USUAL_DISTANCE
"""Cameras nearer to each other than this stand in one place."""
_SAME_DISTANCE = 1e-6
"""Distances that differ by a smaller share of the largest are the same."""
_HALF_OPAQUE = 127
_TRANSPARENT = 5
"""Alpha up to which a pixel of a small copy is transparent, of 255."""


@dataclass(frozen=True)
class SweepView:
    """A training view, small.

    Attributes:
        camera: At the copy's size.
        features: (H·W, 6) uint8, red, green, blue of a pixel, and of 5×5 around it.
        alpha: (H·W,) uint8, None where nothing is transparent.
        seen: (H·W,) which pixels are not masked, None where all are seen. A masked pixel says nothing.
    """

    camera: Camera
    features: UInt8[Tensor, "pixels 6"]
    alpha: UInt8[Tensor, " pixels"] | None
    seen: Bool[Tensor, " pixels"] | None = None

    @property
    def rotation(self) -> Float[Tensor, "3 3"]:
        """World to camera, float64."""
        return self.camera.world_to_camera[:3, :3].double()

    @property
    def translation(self) -> Float[Tensor, " 3"]:
        """World to camera, float64."""
        return self.camera.world_to_camera[:3, 3].double()

    def pixels(self, local: Float[Tensor, "*places 3"]) -> tuple[Int[Tensor, "*places"], Bool[Tensor, "*places"]]:
        """Return the pixel in which each place, in camera axes, is seen, 0 where it is not, and whether it is."""
        camera, depth = self.camera, local[..., 2]
        column = (camera.fx * local[..., 0] / depth + camera.cx).floor()
        row = (camera.fy * local[..., 1] / depth + camera.cy).floor()
        inside = (depth > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        at = torch.where(inside, row * camera.width + column, 0.0).long()
        return at, inside if self.seen is None else inside & self.seen[at]

    @property
    def opaque(self) -> Int[Tensor, " pixels"] | None:
        """The pixels that rays begin in: seen, and more opaque than not; None for all."""
        if self.alpha is None and self.seen is None:
            return None
        opaque = None if self.alpha is None else self.alpha > _HALF_OPAQUE
        parts = [part for part in (opaque, self.seen) if part is not None]
        return torch.nonzero(torch.stack(parts).all(dim=0))[:, 0]

    def colors(self, pixels: Int[Tensor, "*places"]) -> Float[Tensor, "*places 3"]:
        """Return the colours of pixels, in [0, 1]."""
        return self.features[pixels, :3].float() / 255

    def is_transparent(self, pixels: Int[Tensor, "*places"]) -> Bool[Tensor, "*places"]:
        """Return whether nothing is seen in pixels."""
        if self.alpha is None:
            return torch.zeros(pixels.shape, dtype=torch.bool)
        return self.alpha[pixels] <= _TRANSPARENT


@dataclass(frozen=True)
class Columns:
    """Tensors whose rows belong together, as the fields of a dataclass."""


_Columns = TypeVar("_Columns", bound=Columns)


@dataclass(frozen=True)
class RayPlaces(Columns):
    """Places drawn on rays, one a ray.

    Attributes:
        positions: (M, 3) float64.
        agreement: (M,) share of the neighbours that agree there, in [0, 1].
        far_share: (M,) probability with which the farthest place would have been drawn.
        origins: (M, 3) float64, where the rays begin.
        directions: (M, 3) float64, of length 1.
        colors: (M, 3) in [0, 1], of the rays' pixels.
    """

    positions: Float[Tensor, "rays 3"]
    agreement: Float[Tensor, " rays"]
    far_share: Float[Tensor, " rays"]
    origins: Float[Tensor, "rays 3"]
    directions: Float[Tensor, "rays 3"]
    colors: Float[Tensor, "rays 3"]


def joined(parts: Sequence[_Columns]) -> _Columns:
    """Return the rows of all parts, one part after the other."""
    kind = type(parts[0])
    return kind(**{one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(kind)})


def chosen_rows(columns: _Columns, rows: Int[Tensor, " chosen"]) -> _Columns:
    """Return the rows of these numbers."""
    return type(columns)(**{one.name: getattr(columns, one.name)[rows] for one in fields(columns)})


def turned(places: Float[Tensor, "*places 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "*places 3"]:
    """Return R x for each place x; sums in a fixed order, which matrix products do not have on all machines."""
    return sum((places[..., axis, None] * rotation[:, axis] for axis in range(3)), torch.zeros(()))


def sweep_views(capture: Capture) -> list[SweepView]:
    """Return the capture's training views, small, at most :data:`MAX_VIEWS`; held-out views are not looked at.

    Raises:
        InputError: A photograph cannot be read.
    """
    train = capture.split.train
    count = min(len(train), MAX_VIEWS)
    chosen = [train[place * len(train) // count] for place in range(count)]
    with ThreadPoolExecutor(max_workers=max(1, min(8, torch.get_num_threads()))) as threads:
        return list(threads.map(lambda index: _small_view(capture, index), chosen))


def _small_view(capture: Capture, index: int) -> SweepView:
    camera = capture.cameras[index]
    shrink = min(1.0, MAX_SIDE / max(camera.width, camera.height))
    size = max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink))
    pixels, alpha = capture.images.with_alpha(index)
    seen = capture.images.seen(index)
    if seen is None:
        small = _shrunk(pixels, size)
        around = _around(small.float())
    else:
        small, seen = (torch.from_numpy(one) for one in box_mean(pixels.numpy(), seen.numpy(), size))
        share = _around(seen[:, :, None].float())
        around = torch.where(share > 0, _around(small.float()) / share, 0.0)
        seen = seen.reshape(-1)
    visible = None if alpha is None or bool((alpha > _TRANSPARENT).all()) else _shrunk(alpha, size).reshape(-1)
    features = torch.cat([small, around.round().to(torch.uint8)], dim=2).reshape(-1, 6)
    return SweepView(camera.resized(*size), features, visible, seen)


def _around(image: Tensor) -> Tensor:
    """Return the mean of 5×5 pixels around each, (H, W, C)."""
    padded = torch.nn.functional.pad(image.permute(2, 0, 1)[None], (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 5, 1)[0].permute(1, 2, 0)


def _shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an 8-bit image at another size, each pixel the mean of those that it covers."""
    return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize(size, Image.Resampling.BOX)))


def neighbours(views: Sequence[SweepView]) -> list[list[int]]:
    """Return, for each view, those that it is compared with: near ones and far ones, looking the same way.

    Views from the same place tell nothing of depth and are left out. Where no axis lies within 60° of a view's own,
    those of any direction are taken.
    """
    centers = torch.stack([view.camera.center.double() for view in views])
    axes = torch.stack([view.rotation[2] for view in views])
    chosen = []
    for center, axis in zip(centers, axes, strict=True):
        distances = (centers - center).norm(dim=1)
        apart = distances > _NO_BASELINE
        alike = apart & ((axes * axis).sum(dim=1) > _MIN_COSINE)
        candidates = torch.nonzero(alike if alike.any() else apart)[:, 0]
        # Rounded, so that on a regular orbit the order is that of the views and not that of the last bits.
        steps = (distances[candidates] / distances.max() / _SAME_DISTANCE).round()
        ordered = candidates[steps.argsort(stable=True)].tolist()
        chosen.append([ordered[rank - 1] for rank in _RANKS if rank <= len(ordered)])
    return chosen


def depth_range(view: SweepView, others: Sequence[SweepView], spread: float) -> tuple[float, float]:
    """Return the nearest and the farthest depth that is looked at along a view's rays.

    Args:
        view: Whose rays.
        others: Its neighbours.
        spread: Largest distance of a camera from the cameras' mean.
    """
    baselines = sorted(float((other.camera.center - view.camera.center).double().norm()) for other in others)
    if not baselines:
        lone = _LONE_DEPTH if in_one_place(spread) else spread
        return lone / 2, lone * 2
    near = max(_NEAR * baselines[len(baselines) // 2], _NEAR_OF_SPREAD * spread)
    return near, max(4 * near, view.camera.fx * baselines[-1] / _FAR_DISPARITY)


def sweep(views: Sequence[SweepView], count: int, generator: torch.Generator) -> RayPlaces:
    """Draw rays through opaque pixels of all views alike, and a place on each; see the module.

    Args:
        views: At least one.
        count: Number of rays.
        generator: Source of randomness, on the CPU.

    Raises:
        InputError: All photographs are transparent throughout.
    """
    centers = torch.stack([view.camera.center.double() for view in views])
    spread = float((centers - centers.mean(dim=0)).norm(dim=1).max())
    near = neighbours(views)
    opaque = [index for index, view in enumerate(views) if view.opaque is None or len(view.opaque)]
    if not opaque:
        raise InputError("all photographs are transparent throughout or masked, so that there is nothing to start from")
    parts = []
    for place, index in enumerate(opaque):
        rays = count * (place + 1) // len(opaque) - count * place // len(opaque)
        view, others = views[index], [views[other] for other in near[index]]
        for first in range(0, rays, _MAX_RAYS):
            some = min(_MAX_RAYS, rays - first)
            parts.append(_places_of(view, others, some, depth_range(view, others, spread), generator))
    return joined(parts)


def _places_of(
    view: SweepView,
    others: Sequence[SweepView],
    count: int,
    depths: tuple[float, float],
    generator: torch.Generator,
) -> RayPlaces:
    """Draw ``count`` rays of one view, and a place on each."""
    pixels = _opaque_pixels(view, count, generator)
    camera = view.camera
    jitter = torch.rand(3, count, generator=generator, dtype=torch.float64)
    across = (pixels % camera.width + jitter[0] - camera.cx) / camera.fx
    down = (pixels // camera.width + jitter[1] - camera.cy) / camera.fy
    slopes = torch.stack([across, down, torch.ones_like(across)], dim=1)
    share = (torch.arange(_PLANES, dtype=torch.float64) + jitter[2][:, None]) / _PLANES
    span = math.log(depths[1] / depths[0])
    coarse = _drawn_depth(view, others, pixels, slopes, depths[0] * (span * share).exp(), generator)
    share = (torch.arange(_FINE_PLANES, dtype=torch.float64) + jitter[2][:, None]) / _FINE_PLANES
    fine = coarse.depth[:, None] * (span / _PLANES * (2 * share - 1)).exp()
    found = _drawn_depth(view, others, pixels, slopes, fine, generator)
    directions = turned(slopes, view.rotation.T)
    return RayPlaces(
        positions=camera.center.double() + directions * found.depth[:, None],
        agreement=found.agreement,
        far_share=coarse.last_share,
        origins=camera.center.double().expand(count, 3),
        directions=directions / directions.norm(dim=1, keepdim=True),
        colors=view.colors(pixels),
    )


@dataclass(frozen=True)
class _DrawnDepth:
    """Depths that were drawn, one a ray: (rays,) each; the last place's probability as ``last_share``."""

    depth: Tensor
    agreement: Tensor
    last_share: Tensor


def _drawn_depth(
    view: SweepView,
    others: Sequence[SweepView],
    pixels: Tensor,
    slopes: Tensor,
    depths: Tensor,
    generator: torch.Generator,
) -> _DrawnDepth:
    """Draw one of the ``depths`` of each ray, (rays, places), by the agreement there."""
    agreement = _agreement(view, others, pixels, slopes, depths)
    weights = (agreement.double() + _FLOOR).pow(_SHARPNESS)  # of the floor alone 1e-96, which float32 takes for 0
    total = weights.cumsum(dim=1)
    draw = torch.rand(len(pixels), 1, generator=generator, dtype=torch.float64) * total[:, -1:]
    place = torch.searchsorted(total, draw).clamp_max(depths.shape[1] - 1)
    last = (weights[:, -1] / total[:, -1]).float()
    return _DrawnDepth(depths.gather(1, place)[:, 0], agreement.gather(1, place)[:, 0], last)


def _opaque_pixels(view: SweepView, count: int, generator: torch.Generator) -> Tensor:
    """Draw pixels that are more opaque than not, of a view that has some."""
    opaque = view.opaque
    if opaque is None:
        return torch.randint(view.camera.width * view.camera.height, (count,), generator=generator)
    return opaque[torch.randint(len(opaque), (count,), generator=generator)]


def _agreement(view: SweepView, others: Sequence[SweepView], pixels: Tensor, slopes: Tensor, depth: Tensor) -> Tensor:
    """Return the agreement of neighbours at each place, (rays, planes), as a share of all neighbours.

    A place that a neighbour sees as transparent has none. So has one that fewer than two neighbours see, if two see any
    of its ray.
    """
    agreement = torch.zeros(depth.shape)
    seen, refuted = torch.zeros(depth.shape, dtype=torch.int8), torch.zeros(depth.shape, dtype=torch.bool)
    own = view.features[pixels].float()[:, None]
    for other in others:
        rotation = turned(other.rotation, view.rotation)
        offset = other.translation - turned(view.translation, rotation)
        at, inside = other.pixels(turned(slopes, rotation)[:, None] * depth[..., None] + offset)
        difference = (other.features[at].float() - own).abs().mean(dim=-1) / 255
        agreement += torch.where(inside, (-((difference / _TOLERANCE) ** 2)).exp(), 0.0)
        refuted |= inside & other.is_transparent(at)
        seen += inside
    needed = seen.amax(dim=1, keepdim=True).clamp_max(2)
    return torch.where((seen >= needed) & ~refuted, agreement / max(1, len(others)), 0.0)
