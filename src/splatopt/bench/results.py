"""results.json: everything that the cells of one or more suites came to, as data that can be merged and checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatopt.bench.cells import LOOSE
from splatopt.bench.runner import Outcome
from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder

FORMAT = "splatopt-results"
VERSION = 1
"""Raised when a file can no longer be read by older code."""

_MOST_BYTES = 256 << 20
_MOST_CELLS = 100_000
_MOST_POINTS = 100_000
_MOST_LETTERS = 100_000
_LARGEST = 1e15
"""No number of a result is larger; sums and squares of such numbers are still finite."""


@dataclass(frozen=True)
class Results:
    """Cells and where they come from.

    Attributes:
        title: Heading of the report.
        reference: Label that others are compared with.
        sources: Each suite: its title, command, date and description.
        cells: Each cell's record, as JSON values.
    """

    title: str
    reference: str
    sources: tuple[dict[str, Any], ...]
    cells: tuple[dict[str, Any], ...]

    @property
    def done(self) -> list[dict[str, Any]]:
        """Cells that came to their end."""
        return [cell for cell in self.cells if cell["status"] == "done"]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Cells that did not."""
        return [cell for cell in self.cells if cell["status"] == "failed"]


def result_cell(outcome: Outcome) -> dict[str, Any]:
    """Return what a result says of a cell: its record without places on this machine."""
    cell, record = outcome.cell, dict(outcome.record)
    config = {name: value for name, value in cell.to_json()["config"].items() if name not in LOOSE}
    identity = cell.to_json() | {"config": config, "name": cell.name}
    failed = {"status": "failed", "failure": outcome.failure} if outcome.failure is not None else {}
    return {"points": [], "warnings": []} | record | identity | failed


def save_results(path: Path, results: Results) -> None:
    """Write ``results`` to ``path`` in one move."""
    values = {
        "format": FORMAT,
        "version": VERSION,
        "title": results.title,
        "reference": results.reference,
        "sources": list(results.sources),
        "cells": list(results.cells),
    }
    make_folder(path.parent)
    replace_file(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def load_results(path: Path) -> Results:
    """Read a results file; it may come from anywhere, and is checked before anything uses it.

    Args:
        path: A results.json, or a suite's folder that holds one.

    Raises:
        InputError: It cannot be read, comes from a newer version, or is not of this form.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path} holds {size >> 20} MiB, more than the {_MOST_BYTES >> 20} that results may have")
        values = json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise InputError(f"the results {path} cannot be read ({error.strerror}); give a results.json") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a results file ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path} is not a results file of splatopt; give a results.json that splatopt bench wrote")
    version = values.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{path} names no version of its form; it was changed since it was written")
    if version > VERSION:
        raise InputError(
            f"{path} was written by a newer splatopt (form {version}, and this one reads up to {VERSION}); "
            f"update splatopt to read it"
        )
    return _checked(values, str(path))


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number that results hold")


def _checked(values: Mapping[str, Any], where: str) -> Results:
    cells = _list(values, "cells", where, _MOST_CELLS)
    for number, cell in enumerate(cells, start=1):
        _check_cell(cell, f"{where}: cell {number}")
    sources = _list(values, "sources", where, _MOST_CELLS)
    for number, source in enumerate(sources, start=1):
        _object(source, f"{where}: source {number}")
    return Results(_text(values, "title", where), _text(values, "reference", where), tuple(sources), tuple(cells))


def _check_cell(cell: Any, where: str) -> None:
    _object(cell, where)
    for name in ("name", "scene", "setting", "label", "source"):
        _text(cell, name, where)
    if cell.get("status") not in ("done", "failed"):
        raise InputError(f"{where}: status must be done or failed, got {str(cell.get('status'))[:50]!r}")
    if cell["status"] == "failed":
        _text(cell, "failure", where)
    for name in ("protocol", "config", *(("environment",) if cell["status"] == "done" else ())):
        _object(cell.get(name), f"{where}: {name}")
    _text(cell["protocol"], "name", where)
    _text(cell["config"], "optimizer", where)
    _number(cell, "seed", where)
    _check_points(cell, where)
    for name in ("warnings", "lpips_left_out"):
        for text in _list({name: cell.get(name, [])}, name, where, _MOST_POINTS):
            _text({name: text}, name, where)
    for view in _list({"views": cell.get("views", [])}, "views", where, _MOST_POINTS):
        _text(_object(view, where), "name", where)
        for name in ("psnr", "ssim"):
            _number(view, name, where)
    for name, value in _object(cell.get("lpips", {}), f"{where}: lpips").items():
        _number({name: value}, name, where)


def _check_points(cell: Mapping[str, Any], where: str) -> None:
    points = _list(cell, "points", where, _MOST_POINTS)
    if cell["status"] == "done" and not points:
        raise InputError(f"{where}: a cell that is done has no points")
    for point in points:
        _object(point, where)
        for name in ("step", "seconds", "psnr", "ssim", "gaussians", "peak_memory_mb"):
            _number(point, name, where)
    if any(point["step"] > later["step"] for point, later in itertools.pairwise(points)):
        raise InputError(f"{where}: its points are not in the order of their steps")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object; the file was changed since it was written")
    return value


def _list(values: Mapping[str, Any], name: str, where: str, most: int) -> list[Any]:
    value = values.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise InputError(
            f"{where}: {name} must be a list of at most {most:,}; the file was changed since it was written"
        )
    return value


def _text(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or len(value) > _MOST_LETTERS:
        raise InputError(f"{where}: {name} must be a text; the file was changed since it was written")
    return value


def _number(values: Mapping[str, Any], name: str, where: str) -> None:
    value = values.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST <= value <= _LARGEST:
        raise InputError(
            f"{where}: {name} must be a number of a reasonable size; the file was changed since it was written"
        )


def merge(parts: Sequence[Results]) -> Results:
    """Join results; title and reference are those of the first.

    Args:
        parts: At least one.

    Raises:
        InputError: Two of them hold the same cell with different numbers.
    """
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for part in parts:
        for cell in part.cells:
            key = (cell["protocol"]["name"], cell["scene"], cell["setting"], cell["label"], cell["seed"])
            other = cells.setdefault(key, cell)
            if other is not cell and other != cell:
                raise InputError(
                    f"two of the results hold {cell['scene']}, {cell['label']}, seed {cell['seed']} under protocol "
                    f"{cell['protocol']['name']}, and differ; give one of the entries another label and run it again"
                )
    sources: list[dict[str, Any]] = []
    for part in parts:
        sources += [source for source in part.sources if source not in sources]
    return Results(parts[0].title, parts[0].reference, tuple(sources), tuple(cells.values()))
