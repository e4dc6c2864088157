"""Tables in which published numbers stand beside ours, marked as not run by us."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from splatopt.bench.groups import GAUSSIANS, LPIPS, PSNR, SECONDS, SSIM, Cells, Group, Measure, mean_number
from splatopt.bench.published import MARK, PublishedRow, PublishedSet
from splatopt.bench.records import CellRecord
from splatopt.bench.tables import Number, Row, Table

STEPS = 7000
"""Steps at which the literature scores beside the end. Unit: steps."""

_MEASURES = (PSNR, SSIM, *LPIPS.values(), GAUSSIANS, SECONDS)


def published_tables(group: Group) -> list[Table]:
    """Return, for each published set that cells of the group name, its numbers beside ours.

    One table for each scene that both have, and one of the mean where the group has all scenes of the set.
    """
    found = []
    for one in group.published:
        cells = {scene: _cells(group, one, scene) for scene in one.scenes}
        there = [scene for scene, ours in cells.items() if ours]
        if len(there) == len(one.scenes) and one.of(""):
            found.append(_table(group, one, "", [cells[scene] for scene in there]))
        found += [_table(group, one, scene, [cells[scene]]) for scene in there if one.of(scene)]
    return found


def _cells(group: Group, one: PublishedSet, scene: str) -> Cells:
    """Our cells of a scene of the set."""
    places = [(cell, cell["published"]) for cell in group.cells if "published" in cell]
    return [cell for cell, place in places if one.key in place["sets"] and place["scene"] == scene]


def _table(group: Group, one: PublishedSet, scene: str, scenes: Sequence[Cells]) -> Table:
    """Ours, then theirs; of one scene, or the mean over all."""
    theirs = one.of(scene)
    works = list(dict.fromkeys(row.source for row in theirs))
    rows: list[Row] = []
    for label in group.labels:
        ours = [[cell for cell in cells if cell["label"] == label] for cells in scenes]
        if not all(ours):
            continue
        early = [[then for cell in cells if (then := _until(cell, STEPS))] for cells in ours]
        if [len(cells) for cells in early] == [len(cells) for cells in ours]:
            rows.append((f"{label}, at {STEPS:,} steps", [_mean(early, measure) for measure in _MEASURES]))
        rows.append((label, [_mean(ours, measure) for measure in _MEASURES]))
    for row in theirs:
        steps = "" if row.steps is None else f", {row.steps:,} steps"
        rows.append((f"{row.method}{steps} [{works.index(row.source) + 1}], {MARK}", _numbers(row)))
    used = [column for column in range(len(_MEASURES)) if any(numbers[column] for _, numbers in rows)]
    columns = [_MEASURES[column].name for column in used]
    what = scene or f"Mean of {', '.join(one.scenes)}"
    tested = sum(max((cell.get("views_tested", 0) for cell in cells), default=0) for cells in scenes)
    views = f" of {tested} held-out views" if tested else ""
    rule = f"Ours: means{views} and over seeds, at the last step unless said"
    return Table(
        f"Published beside ours: {one.dataset}, {scene or 'mean'} ({group.name})",
        f"{what}: {one.protocol}. {rule}. {_references(one, theirs, works)}",
        "method",
        columns,
        [(name, [numbers[column] for column in used]) for name, numbers in rows],
    )


def _references(one: PublishedSet, rows: Sequence[PublishedRow], works: Sequence[str]) -> str:
    """The works of a table, each with what has to be known of its rows."""
    parts = []
    for number, key in enumerate(works, start=1):
        said = [text for row in rows if row.source == key for text in (row.hardware, row.note) if text]
        unnamed = any(row.source == key and row.lpips is not None and not row.lpips_net for row in rows)
        said += [_lpips_of_unknown(rows, key)] if unnamed else []
        parts.append("; ".join([f"[{number}] {one.works[key]}", *dict.fromkeys(said)]))
    return ". ".join(parts) + "."


def _lpips_of_unknown(rows: Sequence[PublishedRow], key: str) -> str:
    """LPIPS whose network is not said have no column, as they are comparable with none."""
    named = [f"{row.method} {row.lpips}" for row in rows if row.source == key and row.lpips and not row.lpips_net]
    return f"LPIPS by a network that is not said here: {', '.join(named)}"


def _numbers(row: PublishedRow) -> list[Number | None]:
    """The numbers of a published row in the order of the measures."""
    lpips = [row.lpips if row.lpips_net == network else None for network in LPIPS]
    values = (row.psnr, row.ssim, *lpips, row.gaussians, row.seconds)
    return [None if value is None else Number(value, one.form) for value, one in zip(values, _MEASURES, strict=True)]


def _mean(scenes: Sequence[Cells], measure: Measure) -> Number | None:
    """A number of ours: mean and deviation over seeds of one scene, or the mean over scenes of these means."""
    numbers = [mean_number(cells, measure) for cells in scenes]
    if len(numbers) == 1:
        return numbers[0]
    means = [one.mean for one in numbers if one is not None and one.mean is not None]
    return Number(statistics.fmean(means), measure.form) if len(means) == len(numbers) else None


def _until(cell: CellRecord, steps: int) -> CellRecord | None:
    """A cell as it was after so many steps; None where it was not scored then, or had ended."""
    points = cell["points"]
    if points[-1]["step"] <= steps or all(point["step"] != steps for point in points):
        return None
    return {**cell, "points": [point for point in points if point["step"] <= steps], "lpips": {}}
