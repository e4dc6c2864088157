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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from splatopt.data import Capture
from splatopt.raster.threads import one_torch_thread
from splatopt.scene.plane_sweep import Columns, RayPlaces, SweepView, chosen_rows, joined, sweep, sweep_views, turned

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
_LOOKED_AT = 1_000_000
"""Rows by whose distances the far sphere is placed, at most, evenly chosen."""
_TOLERANCE = 0.1
"""τ of the judgement by all views, of colours in [0, 1]."""
_FAR = 3.0
"""Radius of the far sphere, in distances from the cameras' middle within which all cameras and nine of ten rows lie."""
_MAX_SIZE = 4.0
"""Largest standard deviation of a row in any photograph, in spacings of all rows spread evenly over it."""
_FLOOR = 1e-3

BYTES_OF_A_ROW = 1000
"""Memory that is needed at most for each row while rows are drawn, in however many rounds."""


@dataclass(frozen=True)
class Rows(Columns):
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
class _Judgement(Columns):
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


def _candidates(views: Sequence[SweepView], count: int, generator: torch.Generator) -> tuple[RayPlaces, _Judgement]:
    """Draw places for ``count`` rows, and have all views judge them."""
    places = sweep(views, _CANDIDATES * count, generator)
    return places, _judged(views, places.positions, places.colors)


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of the indices of ``weights``, without replacement; those of weight 0 come last."""
    draw = 1 - torch.rand(len(weights), generator=generator, dtype=torch.float64)
    return (draw.log() / weights.double().clamp_min(1e-30)).topk(min(count, len(weights))).indices


def _near_rows(views: Sequence[SweepView], count: int, generator: torch.Generator) -> tuple[RayPlaces, Rows]:
    """Draw rows by score; returns the places that they were drawn from as well."""
    places, found = _candidates(views, count, generator)
    usual = found.seen.median()
    for _ in range(_ROUNDS - 1):
        if int((found.refuted <= MAX_REFUTED).sum()) >= count:
            break
        # So that memory does not grow with the rounds; all that are not refuted are among them.
        best = found.refuted.argsort(stable=True)[:count]
        places, found = chosen_rows(places, best), chosen_rows(found, best)
        more, judged = _candidates(views, count, generator)
        places, found = joined([places, more]), joined([found, judged])
    allowed = found.refuted <= MAX_REFUTED
    if any(view.alpha is not None for view in views):
        # Where hardly any view looks, no mask can refute.
        allowed &= found.seen >= _MIN_SEEN * usual
    # Where masks contradict each other, those that the fewest views refute stand in.
    weights = torch.where(allowed, (places.agreement + 1e-4) * (found.score + 1e-4), 1e-20 * (1 - found.refuted))
    rows = _drawn(weights, count, generator)
    is_far = torch.zeros(len(rows), dtype=torch.bool)
    return places, Rows(places.positions[rows], found.colors[rows], found.footprints[rows], is_far)


def _reached(distances: Tensor) -> Tensor:
    """Return the distance within which nine of ten lie."""
    return distances[:: max(1, math.ceil(len(distances) / _LOOKED_AT))].quantile(0.9)


def _far_rows(
    views: Sequence[SweepView], places: RayPlaces, near: Rows, count: int, generator: torch.Generator
) -> Rows:
    """Draw rows on the far sphere, where rays that agree in infinity meet it."""
    centers = torch.stack([view.camera.center.double() for view in views])
    middle = centers.mean(dim=0)
    reached = _reached((near.positions - middle).norm(dim=1))
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
    rows = joined(parts)
    return replace(rows, max_sizes=_MAX_SIZE / count**0.5 * rows.max_sizes)
