"""Tables of scenes that grow: how many Gaussians there are, and quality at equal numbers and at equal seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from splatopt.bench.groups import Cells, Group, Measure, measured_rows
from splatopt.bench.records import CellRecord
from splatopt.bench.statistics import at_seconds
from splatopt.bench.tables import Table, bold_best

PARTS = ((0.25, "a quarter"), (0.5, "half"), (1.0, "all"))
"""Parts of the reference's seconds at which runs are compared."""

EQUAL = 0.05
"""Numbers of Gaussians that differ by at most this fraction are called equal."""


def grows(cells: Cells) -> bool:
    """Return whether the number of Gaussians changes in any of ``cells``, or is not the same at all ends of a scene."""
    changed = any(point["gaussians"] != cell["points"][0]["gaussians"] for cell in cells for point in cell["points"])
    return changed or len({(cell["scene"], _end(cell)) for cell in cells}) > len({cell["scene"] for cell in cells})


def growth_tables(group: Group, scene: str) -> list[Table]:
    """Return the comparisons of a scene at equal seconds and at equal numbers of Gaussians.

    Args:
        group: Comparable cells; there are no tables unless there are two labels.
        scene: One of its scenes.
    """
    if len(group.labels) < 2 or not grows([cell for cell in group.cells if cell["scene"] == scene]):
        return []
    return [_at_parts(group, scene), _at_equal_gaussians(group, scene)]


def _at_parts(group: Group, scene: str) -> Table:
    """PSNR at a quarter, half and all of the reference's seconds."""
    reference = group.of(group.reference, scene)
    seconds = statistics.fmean(cell["points"][-1]["seconds"] for cell in reference) if reference else 0.0
    measures = [
        Measure(
            f"{name} ({part * seconds:,.1f} s)",
            ".2f",
            1,
            lambda cell, at=part * seconds: at_seconds(cell["points"], at),  # type: ignore[misc]
        )
        for part, name in PARTS
    ]
    rows = measured_rows(group, scene, measures)
    note = (
        f"PSNR at parts of the seconds that {group.reference} took, the mean of its seeds, dB: linear between scored "
        "points, and the last value once a run has ended; mean ± standard deviation over seeds."
    )
    title = f"{scene}, at equal seconds with {group.reference} ({group.name})"
    return Table(title, note, "optimizer", [one.name for one in measures], rows if seconds else [])


def _at_equal_gaussians(group: Group, scene: str) -> Table:
    """PSNR at the end, entries that end with as many Gaussians in one column."""
    ends = {
        label: statistics.fmean(_end(cell) for cell in cells)
        for label in group.labels
        if (cells := group.of(label, scene))
    }
    columns = [labels for labels in _equal(ends) if len(labels) > 1]
    psnr = Measure("PSNR, dB", ".2f", 1, lambda cell: cell["points"][-1]["psnr"])
    together = [label for label in ends if any(label in column for column in columns)]
    rows = [
        (label, [group.number(label, scene, psnr) if label in column else None for column in columns])
        for label in together
    ]
    bold_best(rows, [1] * len(columns))
    heads = [f"{round(statistics.fmean(ends[label] for label in column)):,} Gaussians" for column in columns]
    note = (
        f"PSNR at the last step, dB, of entries that end with equally many Gaussians, within {EQUAL:.0%} of the fewest "
        "of a column; mean ± standard deviation over seeds."
    )
    return Table(f"{scene}, at equal Gaussians ({group.name})", note, "optimizer", heads, rows)


def _equal(ends: dict[str, float]) -> Sequence[Sequence[str]]:
    """Labels in groups whose numbers are equal, the fewest first."""
    found: list[list[str]] = []
    for label in sorted(ends, key=lambda label: ends[label]):
        if found and ends[label] <= (1 + EQUAL) * ends[found[-1][0]]:
            found[-1].append(label)
        else:
            found.append([label])
    return found


def _end(cell: CellRecord) -> int:
    return cell["points"][-1]["gaussians"]
