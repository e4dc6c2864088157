"""What a suite's folder holds of its cells, read again: checked before anything uses it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NotRequired, Required, TypedDict, cast

from splatopt.core.checks import InputError
from splatopt.core.reading import read_object
from splatopt.core.typed import Fields

_MAX_RECORD_BYTES = 256 << 20


class Point(TypedDict):
    """What a cell had come to when it was scored."""

    step: int
    seconds: float
    psnr: float
    ssim: float
    gaussians: int
    peak_memory_mb: float
    planned: NotRequired[bool]


class ViewScore(TypedDict):
    """What one view scored."""

    name: str
    psnr: float
    ssim: float


class ProtocolRecord(TypedDict, total=False):
    """What a result says of its protocol."""

    name: Required[str]
    rule: str
    fixed: dict[str, object]
    usual: dict[str, object]
    inputs: list[int]
    budget_steps: int


class PublishedPlace(TypedDict):
    """Which published numbers a cell may be shown beside."""

    sets: list[str]
    scene: str


class CellRecord(TypedDict, total=False):
    """What a cell leaves, as :func:`check_cell` knows it: see the page on benchmarks for each entry."""

    name: str
    scene: str
    setting: str
    label: str
    seed: int
    source: str
    protocol: ProtocolRecord
    config: dict[str, object]
    status: str
    failure: str
    scoring: str
    environment: dict[str, object]
    resumed: int
    warnings: list[str]
    points: list[Point]
    views: list[ViewScore]
    best_views: list[ViewScore] | None
    views_trained: int
    views_tested: int
    split: str
    subset: str
    lpips: dict[str, float]
    lpips_views: dict[str, list[float]]
    lpips_left_out: list[str]
    lpips_range: str
    published: PublishedPlace


def read_record(path: Path) -> CellRecord:
    """Return the record that a cell left in its run's folder; empty where there is none.

    Raises:
        InputError: It is damaged.
    """
    values = read_object(path, _MAX_RECORD_BYTES)
    if values is None:
        return {}
    cell = Fields(values, str(path))
    if values.get("status") not in ("running", "done"):
        raise cell.refusal("status", "running or done")
    cell.text("name")
    cell.count("resumed")
    cell.texts("warnings")
    check_points(cell)
    check_views(cell, "views")
    if "best_views" in cell:
        check_views(cell, "best_views")
    if values["status"] == "done":
        check_cell(cell)
    return cast(CellRecord, values)


def read_failure(path: Path) -> str | None:
    """Return why a cell failed; None where it did not. Raises InputError where the file that says so is damaged."""
    values = read_object(path)
    return None if values is None else Fields(values, str(path)).text("reason")


def check_cell(cell: Fields) -> None:
    """Make sure that a cell is of the form that tables and pages are made from.

    Raises:
        InputError: It is not.
    """
    for name in ("name", "scene", "setting", "label", "source"):
        cell.text(name)
    status = cell.values.get("status")
    if status not in ("done", "failed"):
        raise cell.refusal("status", "done or failed")
    if status == "failed":
        cell.text("failure")
    else:
        cell.object("environment")
    cell.object("protocol").text("name")
    cell.object("config").text("optimizer")
    cell.number("seed")
    check_points(cell)
    if status == "done" and not cell.values["points"]:
        raise InputError(f"{cell.where}: a cell that is done has no points")
    for name in ("warnings", "lpips_left_out"):
        if name in cell.values:
            cell.texts(name)
    check_views(cell, "views")
    if "published" in cell.values:
        check_published(cell.object("published"))
    if "lpips" in cell.values:
        networks = cell.object("lpips")
        for name in networks.values:
            networks.number(name)


def check_published(place: Fields) -> PublishedPlace:
    """Return which published numbers a cell names; raises InputError where it is not of that form."""
    return {"sets": place.texts("sets"), "scene": place.text("scene")}


def check_views(cell: Fields, name: str) -> None:
    """Make sure that the scores of a cell's views are such, where it names any."""
    for view in cell.objects(name) if name in cell.values else ():
        view.text("name")
        view.number("psnr")
        view.number("ssim")


def check_points(cell: Fields) -> None:
    """Make sure that a cell's points are in the order of their steps, and name what each must name."""
    points = cell.objects("points")
    for point in points:
        for name in ("step", "seconds", "psnr", "ssim", "gaussians", "peak_memory_mb"):
            point.number(name)
    steps = [point.values["step"] for point in points]
    if any(step > later for step, later in itertools.pairwise(steps)):
        raise InputError(f"{cell.where}: its points are not in the order of their steps")
