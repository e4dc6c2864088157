"""From results to tables: which numbers stand where, and which is best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from splatopt.bench.groups import (
    GAUSSIANS,
    LPIPS,
    MEMORY,
    PSNR,
    SECONDS,
    SSIM,
    Group,
    Measure,
    last,
    mean_number,
    measured_rows,
)
from splatopt.bench.growth_tables import grows, growth_tables
from splatopt.bench.published_tables import published_tables
from splatopt.bench.records import CellRecord, Point, ViewScore
from splatopt.bench.statistics import (
    Comparison,
    area,
    at_seconds,
    at_step,
    best_point,
    paired_bootstrap,
    reach,
    summary,
    worst_drop,
)
from splatopt.bench.tables import Number, Table, bold_best

STEPS = (1, 10, 50, 100, 500, 1000, 2000, 3000, 7000, 30_000)
"""Steps at which runs are compared."""

MOMENTS = (1, 2, 5, 10, 20, 30, 50, 70, 100, 200, 500, 1000, 2000, 5000)
"""Seconds of training at which runs are compared."""


def tables(group: Group) -> list[Table]:
    """Return all tables of a group: qualities over scenes, the way to the reference's, each scene in full."""
    shown = [PSNR, SSIM, *(one for one in LPIPS.values() if any(one.of(cell) is not None for cell in group.cells))]
    shown += [GAUSSIANS] if grows(group.cells) else []
    found = [_over_scenes(group, measure) for measure in shown] + published_tables(group)
    if len(group.labels) > 1:
        found += [_to_reach(group, "steps"), _to_reach(group, "seconds"), _significance(group)]
    for scene in group.scenes:
        found += [_at_steps(group, scene), _at_seconds(group, scene), *growth_tables(group, scene)]
        found += [_of_scene(group, scene)]
    return [table for table in found if table.rows]


def view_tables(group: Group) -> list[Table]:
    """Return, for each scene, the PSNR of every scored view at the last step: views down, optimizers across."""
    found = []
    for scene in group.scenes:
        names = dict.fromkeys(
            view["name"] for label in group.labels for cell in group.of(label, scene) for view in _views(cell)
        )
        rows = [(name, [group.number(label, scene, _of_view(name)) for label in group.labels]) for name in names]
        note = "PSNR of each scored view at the last step, dB; mean ± standard deviation over seeds."
        if rows:
            found.append(Table(f"{scene}, each view ({group.name})", note, "view", group.labels, rows))
    return found


def _views(cell: CellRecord) -> Sequence[ViewScore]:
    return cell.get("views", [])


def _of_view(name: str) -> Measure:
    """PSNR of one view."""
    return Measure(name, ".2f", 1, lambda cell: next((v["psnr"] for v in _views(cell) if v["name"] == name), None))


def _over_scenes(group: Group, measure: Measure) -> Table:
    """One number: optimizers down, scenes across, and their mean."""
    several = len(group.scenes) > 1
    columns = [*group.scenes, *(["mean"] if several else [])]
    rows = []
    for label in group.labels:
        numbers = [group.number(label, scene, measure) for scene in group.scenes]
        if several:
            whole = all(number is not None for number in numbers)
            means = [number.mean for number in numbers if number is not None and number.mean is not None]
            complete = sum(number is not None and number.asked is None for number in numbers)
            asked = None if complete == len(numbers) else len(numbers)
            numbers.append(Number(statistics.fmean(means), measure.form, None, complete, asked) if whole else None)
        rows.append((label, numbers))
    bold_best(rows, [measure.better] * len(columns))
    note = "At the last step; mean ± standard deviation over seeds."
    return Table(f"{measure.name} ({group.name})", note, "optimizer", columns, rows)


def _to_reach(group: Group, unit: str) -> Table:
    """Steps or seconds until each optimizer first had what the reference has at its end."""
    rows = []
    form = ",.0f" if unit == "steps" else ",.1f"
    for label in group.labels:
        numbers = [_reached(group, label, scene, unit, form) for scene in group.scenes]
        rows.append((f"{label} (whole run)" if label == group.reference else label, numbers))
    bold_best(rows, [-1] * len(group.scenes))
    heads = [f"{scene} ({target:.2f} dB)" for scene in group.scenes if (target := group.target(scene)) is not None]
    columns = heads if len(heads) == len(group.scenes) else group.scenes
    note = (
        f"Until the PSNR that {group.reference} has at its end, the mean of its seeds, was first reached: linear "
        f"between scored points; k of n where not all seeds came there, and the mean is over those that did."
    )
    return Table(f"{unit.capitalize()} to reach {group.reference} ({group.name})", note, "optimizer", columns, rows)


def _reached(group: Group, label: str, scene: str, unit: str, form: str) -> Number | None:
    cells, target = group.of(label, scene), group.target(scene)
    if not cells or target is None:
        return None
    if label == group.reference:
        return mean_number(cells, Measure(unit, form, -1, last("step" if unit == "steps" else "seconds")))
    times = [getattr(found, unit) for cell in cells if (found := reach(cell["points"], target))]
    spread = summary(times)
    if spread is None:
        return Number(None, form, None, 0, len(cells))
    return Number(spread.mean, form, spread.sd, spread.count, len(cells))


def compare(group: Group, label: str, measure: Measure) -> Comparison | None:
    """Compare a label with the reference, paired over scenes and seeds."""
    there = {(cell["scene"], cell["seed"]): measure.of(cell) for cell in group.of(group.reference)}
    differences = []
    for cell in group.of(label):
        other, value = there.get((cell["scene"], cell["seed"])), measure.of(cell)
        if other is not None and value is not None:
            differences.append(value - other)
    return paired_bootstrap(differences)


def _significance(group: Group) -> Table:
    """How far each optimizer is from the reference, and how sure that is."""
    rows: list[tuple[str, list[Number | None]]] = []
    for label in group.labels:
        found = compare(group, label, PSNR) if label != group.reference else None
        if found:
            numbers: list[Number | None] = [
                Number(found.difference, "+.2f"),
                Number(found.low, "+.2f"),
                Number(found.high, "+.2f"),
                Number(found.p, ".4f"),
                Number(float(found.pairs), ".0f"),
            ]
            rows.append((label, numbers))
    note = (
        "Paired bootstrap over scenes and seeds, 10,000 draws: mean difference of PSNR at the last step, the middle "
        "95 % of the drawn means, and a two-sided p, never below 2^(1-n) for n pairs."
    )
    columns = ["difference, dB", "from", "to", "p", "pairs"]
    return Table(f"PSNR against {group.reference} ({group.name})", note, "optimizer", columns, rows)


def _at_seconds(group: Group, scene: str) -> Table:
    """PSNR at equal seconds."""
    after = "so many seconds of training, evaluation not counted"
    return _at_moments(group, scene, "seconds", MOMENTS, after, lambda moment: f"{moment} s", at_seconds)


def _at_steps(group: Group, scene: str) -> Table:
    """PSNR at equal steps."""
    return _at_moments(group, scene, "step", STEPS, "so many steps", lambda moment: f"{moment:,}", at_step)


def _at_moments(
    group: Group,
    scene: str,
    unit: Literal["step", "seconds"],
    moments: Sequence[int],
    after: str,
    head: Callable[[int], str],
    psnr: Callable[[Sequence[Point], int], float],
) -> Table:
    """PSNR on a scene at each of ``moments`` that any run lasted to, read by ``psnr`` off a cell's points."""
    longest = max((cell["points"][-1][unit] for cell in group.cells if cell["scene"] == scene), default=0)
    measures = [
        Measure(head(moment), ".2f", 1, lambda cell, moment=moment: psnr(cell["points"], moment))  # type: ignore[misc]
        for moment in moments
        if moment <= longest
    ]
    rows = measured_rows(group, scene, measures)
    note = (
        f"PSNR after {after}, dB: linear between scored points, and the last value once a run has ended; mean ± "
        "standard deviation over seeds."
    )
    title = f"{scene}, at equal {unit.removesuffix('s')}s ({group.name})"
    return Table(title, note, "optimizer", [one.name for one in measures], rows if measures else [])


def _of_scene(group: Group, scene: str) -> Table:
    """Everything about one scene."""
    start, end = group.span(scene)
    measures = [
        PSNR,
        SSIM,
        Measure("best PSNR, dB", ".2f", 1, lambda cell: best_point(cell["points"])["psnr"]),
        Measure("at step", ",.0f", 0, lambda cell: best_point(cell["points"])["step"]),
        Measure("worst drop after, dB", ".2f", -1, lambda cell: worst_drop(cell["points"])),
        Measure(f"area to {end:,}, dB", ".2f", 1, lambda cell: area(cell["points"], start, end)),
        Measure("steps", ",.0f", 0, last("step")),
        Measure("seconds", ",.1f", 0, last("seconds")),
        Measure("ms a step", ",.1f", 0, lambda cell: _pace(cell["points"][-1])),
        Measure("peak memory, MB", ",.0f", -1, last("peak_memory_mb")),
        GAUSSIANS,
    ]
    rows = measured_rows(group, scene, measures)
    note = (
        f"Mean ± standard deviation over seeds. Area: mean PSNR over log(steps) from {start:,} to {end:,}, which all "
        f"reach. Seconds are of training, evaluation not counted. Memory is the whole process's, evaluation included."
    )
    return Table(f"{scene} ({group.name})", note, "optimizer", [measure.name for measure in measures], rows)


def _pace(point: Point) -> float | None:
    return 1000 * point["seconds"] / point["step"] if point["step"] else None


KINDS: Mapping[str, Callable[[Group], Table]] = {
    **{
        name: lambda group, measure=measure: _over_scenes(group, measure)  # type: ignore[misc]
        for name, measure in (
            ("psnr", PSNR),
            ("ssim", SSIM),
            ("lpips-vgg", LPIPS["vgg"]),
            ("lpips-alex", LPIPS["alex"]),
            ("gaussians", GAUSSIANS),
            ("seconds", SECONDS),
            ("memory", MEMORY),
        )
    },
    "steps-to-reach": lambda group: _to_reach(group, "steps"),
    "seconds-to-reach": lambda group: _to_reach(group, "seconds"),
    "significance": _significance,
}
"""Tables over all scenes, by the word that asks for them."""


def table_of_kind(group: Group, kind: str) -> Table:
    """Return one of the tables of KINDS."""
    return KINDS[kind](group)
