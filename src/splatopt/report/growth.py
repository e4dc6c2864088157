"""What a density strategy did, on a run's page: how many Gaussians there were, and where they came and went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.report.charts import Mark, Series, line_chart
from splatopt.report.edits import Edit, Edits
from splatopt.report.page import chart_card, escape, pairs
from splatopt.report.pictures import ViewPictures, data_uri

MAX_DRAWN = 1500
"""Positions of each kind that are drawn over a picture, so that they can be told apart."""

_NEAR = 1e-6
"""Depth below which a position is not in front of a camera, in units of its distance from it."""

_FADING = 0.55
"""Share of white in the grey picture below the marks."""


def growth_section(
    told: Edits, lines: Sequence[Mapping[str, object]], pictures: Sequence[ViewPictures], max_drawn: int = MAX_DRAWN
) -> str:
    """Return the part of a run's page on its edits; empty where no density strategy was at work.

    Args:
        told: What ``density.jsonl`` holds.
        lines: What ``metrics.jsonl`` holds, for the number of Gaussians between edits.
        pictures: Views of the page; positions are drawn over the one that has most of them.
        max_drawn: Positions of each kind that are drawn at most.
    """
    if not told.edits and not told.unread:
        return ""
    parts = ["<h2>Growth</h2>"]
    if told.unread:
        parts.append(f'<p class="quiet small">{escape(told.unread)}.</p>')
    if told.edits:
        parts.append(f'<section class="charts">{_counts(told.edits, lines)}{_changes(told.edits)}</section>')
        parts.append(_places(told.edits, pictures, max_drawn))
    return "\n".join(part for part in parts if part)


def _counts(edits: Sequence[Edit], lines: Sequence[Mapping[str, object]]) -> str:
    """The number of Gaussians over steps: a staircase through the edits, which begins where the first one did."""
    before = edits[0].gaussians - edits[0].added + edits[0].removed
    steps: list[float] = [0]
    counts: list[float] = [before]
    for edit in edits:
        steps += [edit.step, edit.step]
        counts += [counts[-1], edit.gaussians]
    logged = pairs([(line.get("step"), line.get("gaussians")) for line in lines])
    if logged and logged[-1][0] > steps[-1]:
        steps.append(logged[-1][0])
        counts.append(logged[-1][1])
    heading = "Gaussians, against steps"
    return chart_card(heading, line_chart(heading, "steps", [Series("", steps, counts)]))


def _changes(edits: Sequence[Edit]) -> str:
    """How many each edit added and removed."""
    steps = [edit.step for edit in edits]
    added = Series(f"added, {sum(edit.added for edit in edits):,} in all", steps, [edit.added for edit in edits])
    gone = sum(edit.removed for edit in edits)
    removed = Series(f"removed, {gone:,} in all", steps, [edit.removed for edit in edits], Mark.SECOND)
    heading = "Added and removed by each edit"
    return chart_card(heading, line_chart(heading, "steps", [added, removed]))


# ---------------------------------------------------------------------- where


def _places(edits: Sequence[Edit], pictures: Sequence[ViewPictures], max_drawn: int) -> str:
    """Where Gaussians were added and removed, over the view that sees most of them."""
    added = _stacked([at for edit in edits for at in edit.added_at])
    removed = _stacked([at for edit in edits for at in edit.removed_at])
    if not len(added) + len(removed):
        return ""
    seen = [
        (one, seen_at(one.camera, added), seen_at(one.camera, removed)) for one in pictures if one.camera is not None
    ]
    if not seen:
        return '<p class="quiet small">With pictures of views, this page shows where they were.</p>'
    view, new, gone = max(seen, key=lambda found: len(found[1]) + len(found[2]))
    shown = [_thinned(new, max_drawn), _thinned(gone, max_drawn)]
    counts = f"{_of(shown[0], new, added)} added and {_of(shown[1], gone, removed)} removed Gaussians"
    note = f"Places of {counts} that the run noted, some of each edit, over this view; hidden ones too."
    legend = f'<p class="legend">{_key(_dot(6, 6, 4), "added")}{_key(_cross(6, 6, 4), "removed")}</p>'
    return (
        f'<h3 class="below">Where they were, in view {escape(view.name)}</h3>\n'
        f'<div class="card">{_drawing(view, *shown)}{legend}</div>\n<p class="quiet small">{note}</p>'
    )


def _of(drawn: Tensor, seen: Tensor, noted: Tensor) -> str:
    """How many are drawn, of how many that the view sees and the run noted."""
    every = f" (of {len(seen):,})" if len(drawn) < len(seen) else ""
    return f"{len(drawn):,}{every} of {len(noted):,}"


def _stacked(positions: Sequence[tuple[float, float, float]]) -> Float[Tensor, "positions 3"]:
    return torch.tensor(positions, dtype=torch.float64).reshape(-1, 3)


def seen_at(camera: Camera, positions: Float[Tensor, "positions 3"]) -> Float[Tensor, "seen 2"]:
    """Return where a camera sees those of ``positions`` that are in front of it and inside its image.

    (x, y) = (fx X/Z + cx, fy Y/Z + cy) with (X, Y, Z) = R p + t.

    Args:
        camera: The camera.
        positions: World units, in the camera's frame of the world; float64.

    Returns:
        Pixels, (n, 2), pixel centres at +0.5.
    """
    pose = camera.world_to_camera.double().cpu()
    local = positions @ pose[:3, :3].T + pose[:3, 3]
    local = local[torch.isfinite(local).all(dim=1) & (local[:, 2] > _NEAR * local.norm(dim=1))]
    x = camera.fx * local[:, 0] / local[:, 2] + camera.cx
    y = camera.fy * local[:, 1] / local[:, 2] + camera.cy
    inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    return torch.stack([x[inside], y[inside]], dim=1)


def _thinned(places: Tensor, count: int) -> Tensor:
    """At most ``count`` of ``places``, evenly chosen."""
    return places[torch.linspace(0, len(places) - 1, min(count, len(places))).round().long()]


def _drawing(view: ViewPictures, added: Tensor, removed: Tensor) -> str:
    """The trained view in light grey, with marks over it."""
    height, width = view.trained.shape[:2]
    grey = view.trained.float().mean(dim=2, keepdim=True).expand(-1, -1, 3)
    light = (_FADING * 255 + (1 - _FADING) * grey).round().to(torch.uint8)
    size = max(width, height) / 180
    marks = [_cross(x, y, size) for x, y in removed.tolist()] + [_dot(x, y, size) for x, y in added.tolist()]
    said = f"{len(added)} added and {len(removed)} removed Gaussians in view {view.name}"
    return (
        f'<svg class="places" viewBox="0 0 {width} {height}" preserveAspectRatio="xMinYMid" '
        f'role="img" aria-label="{escape(said)}">'
        f'<image href="{data_uri(light)}" width="{width}" height="{height}"/>{"".join(marks)}</svg>'
    )


def _dot(x: float, y: float, size: float) -> str:
    return f'<circle class="added" cx="{x:.1f}" cy="{y:.1f}" r="{0.8 * size:.2g}" stroke-width="{0.25 * size:.2g}"/>'


def _cross(x: float, y: float, size: float) -> str:
    left, top, right, bottom = (f"{at:.1f}" for at in (x - 0.9 * size, y - 0.9 * size, x + 0.9 * size, y + 0.9 * size))
    lines = f"M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}"
    return f'<path class="removed" d="{lines}" stroke-width="{0.5 * size:.2g}"/>'


def _key(mark: str, label: str) -> str:
    """A mark of the legend and what it means."""
    return f'<span><svg viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>{label}</span>'
