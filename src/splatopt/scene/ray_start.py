"""Rows over what cameras see, for a capture without points.

Twice as many places as rows are drawn on camera rays by a plane sweep (:mod:`splatopt.scene.plane_sweep`). All training
views then judge each: its score is its agreement with its neighbours times the share of the views that see it whose
pixel has its colour, cᵢ against c, by exp(-(|cᵢ-c|/τ)²). A place that hangs before a surface is seen by many views, in
many colours; one on a surface is seen in one colour by those from which it is not hidden. Rows are drawn by score,
without replacement (Efraimidis and Spirakis 2006), and take the mean colour of the views, weighted by their agreement.

Alpha masks carve: a place that more than 5 % of the views that see it see as transparent is refuted, and so is one that
hardly any view sees. Without masks, a tenth of the rows lie on a far sphere, on rays whose photographs agree in
infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from splatopt.data import Capture
from splatopt.raster.threads import one_torch_thread
from splatopt.scene.plane_sweep import RayPlaces, SweepView, sweep, sweep_views, turned

FAR_SHARE = 0.1
"""Rows on the far sphere, as a share of all; none where photographs have alpha masks."""

MAX_REFUTED = 0.05
"""Views that may see a row as transparent, as a share of those that see it."""

_MIN_SEEN = 0.25
"""Views that see a row where there are masks, at least, as a share of those that see the median place."""
_CANDIDATES = 2
"""Places drawn for each row."""
_ROUNDS = 4
"""How often places are drawn at most, where too few are left of those drawn before."""
_TOLERANCE = 0.1
"""τ of the judgement by all views, of colours in [0, 1]."""
_FAR = 3.0
"""Radius of the far sphere, in distances from the cameras' middle within which all cameras and nine of ten rows lie."""
_MAX_SIZE = 4.0
"""Largest standard deviation of a row in any photograph, in spacings of all rows spread evenly over it."""
_FLOOR = 1e-3

BYTES_OF_A_ROW = 700
"""Memory that is needed at most for each row while rows are drawn."""


@dataclass(frozen=True)
class Rows:
    """Where rows begin, and what they look like.

    Attributes:
        positions: (N, 3) float64.
        colors: (N, 3) float32 in [0, 1].
        max_sizes: (N,) float64, the largest standard deviation that a row may have, in units of the positions.
        is_far: (N,) which rows lie on the far sphere.
    """

    positions: Float[Tensor, "rows 3"]
    colors: Float[Tensor, "rows 3"]
    max_sizes: Float[Tensor, " rows"]
    is_far: Bool[Tensor, " rows"]


@dataclass(frozen=True)
class _Judgement:
    """What all views say of places.

    Attributes:
        seen: (M,) number of views that see a place.
        score: (M,) share of the views that see it that agree with its colour.
        refuted: (M,) share of the views that see it that see it as transparent.
        colors: (M, 3) mean colour over the views, by agreement.
        footprints: (M,) length at the place that is as long as the longer side of a photograph that sees it, in the
            one where that is least.
    """

    seen: Tensor
    score: Tensor
    refuted: Tensor
    colors: Tensor
    footprints: Tensor


def _judged(views: Sequence[SweepView], positions: Tensor, colors: Tensor) -> _Judgement:
    count = len(positions)
    seen, agreed, refuted = torch.zeros(count), torch.zeros(count), torch.zeros(count)
    mean = torch.zeros(count, 3)
    sizes = torch.full((count,), torch.inf, dtype=torch.float64)
    for view in views:
        local = turned(positions, view.rotation) + view.translation
        at, inside = view.pixels(local)
        found = view.colors(at)
        agreement = torch.where(inside, (-(((found - colors).abs().mean(dim=1) / _TOLERANCE) ** 2)).exp(), 0.0)
        seen += inside
        agreed += agreement
        refuted += inside & view.is_transparent(at)
        mean += agreement[:, None] * found
        camera = view.camera
        size = local[:, 2] * max(camera.width, camera.height) / max(camera.fx, camera.fy)
        sizes = torch.where(inside, torch.minimum(sizes, size), sizes)
    some = seen.clamp_min(1)
    mean = (mean + _FLOOR * colors) / (agreed + _FLOOR)[:, None]
    return _Judgement(seen, agreed / some, refuted / some, mean, sizes)


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of the indices of ``weights``, without replacement; those of weight 0 come last."""
    draw = 1 - torch.rand(len(weights), generator=generator, dtype=torch.float64)
    return (draw.log() / weights.double().clamp_min(1e-30)).topk(min(count, len(weights))).indices


def _near_rows(views: Sequence[SweepView], count: int, generator: torch.Generator) -> tuple[RayPlaces, Rows]:
    """Draw rows by score; returns the places that they were drawn from as well."""
    parts: list[RayPlaces] = []
    found: list[_Judgement] = []
    kept = 0
    while kept < count and len(parts) < _ROUNDS:
        parts.append(sweep(views, _CANDIDATES * count, generator))
        found.append(_judged(views, parts[-1].positions, parts[-1].colors))
        kept += int((found[-1].refuted <= MAX_REFUTED).sum())
    places = RayPlaces.joined(parts)
    seen, score, refuted, colors, footprints = (
        torch.cat([getattr(one, item.name) for one in found]) for item in fields(_Judgement)
    )
    allowed = refuted <= MAX_REFUTED
    if any(view.alpha is not None for view in views):
        # Where hardly any view looks, no mask can refute.
        allowed &= seen >= _MIN_SEEN * seen.median()
    # Where masks contradict each other, those that the fewest views refute stand in.
    weights = torch.where(allowed, (places.agreement + 1e-4) * (score + 1e-4), 1e-20 * (1 - refuted))
    rows = _drawn(weights, count, generator)
    is_far = torch.zeros(len(rows), dtype=torch.bool)
    return places, Rows(places.positions[rows], colors[rows], footprints[rows], is_far)


def _far_rows(
    views: Sequence[SweepView], places: RayPlaces, near: Rows, count: int, generator: torch.Generator
) -> Rows:
    """Draw rows on the far sphere, where rays that agree in infinity meet it."""
    centers = torch.stack([view.camera.center.double() for view in views])
    middle = centers.mean(dim=0)
    reached = (near.positions - middle).norm(dim=1).quantile(0.9)
    radius = _FAR * float(torch.maximum(reached, (centers - middle).norm(dim=1).max()))
    rays = _drawn(places.far_share + _FLOOR, count, generator)
    origins, directions = places.origins[rays], places.directions[rays]
    apart = origins - middle
    along = (apart * directions).sum(dim=1)
    reach = (along.square() - apart.square().sum(dim=1) + radius**2).clamp_min(0).sqrt() - along
    positions = origins + directions * reach[:, None]
    judged = _judged(views, positions, places.colors[rays])
    return Rows(positions, judged.colors, judged.footprints, torch.ones(len(rays), dtype=torch.bool))


def rows_on_rays(capture: Capture, count: int, generator: torch.Generator) -> Rows:
    """Draw rows over what the training views see; see the module.

    Args:
        capture: Cameras, photographs and split; nothing of its held-out views is used.
        count: Number of rows.
        generator: Source of randomness, on the CPU.

    Raises:
        InputError: A photograph cannot be read, or nothing is seen in any.
    """
    views = sweep_views(capture)
    far = 0 if any(view.alpha is not None for view in views) else round(FAR_SHARE * count)
    with one_torch_thread():
        places, near = _near_rows(views, count - far, generator)
        parts = [near, _far_rows(views, places, near, far, generator)] if far else [near]
    rows = Rows(**{one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Rows)})
    return replace(rows, max_sizes=_MAX_SIZE / count**0.5 * rows.max_sizes)
