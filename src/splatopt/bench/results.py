"""results.json: everything that the cells of one or more suites came to, as data that can be merged and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.bench.cells import LOOSE, comparable
from splatopt.bench.records import CellRecord, check_cell
from splatopt.bench.runner import Outcome
from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder
from splatopt.core.reading import AbsentFileError, DamagedFileError, read_json
from splatopt.core.typed import Fields

FORMAT = "splatopt-results"
VERSION = 1
"""Raised when a file can no longer be read by older code."""

_MAX_BYTES = 256 << 20


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
    sources: tuple[dict[str, object], ...]
    cells: tuple[CellRecord, ...]

    @property
    def done(self) -> list[CellRecord]:
        """Cells that came to their end."""
        return [cell for cell in self.cells if cell["status"] == "done"]

    @property
    def failed(self) -> list[CellRecord]:
        """Cells that did not."""
        return [cell for cell in self.cells if cell["status"] == "failed"]


def result_cell(outcome: Outcome) -> CellRecord:
    """Return what a result says of a cell: its record without places on this machine."""
    cell = outcome.cell
    made: CellRecord = {"points": [], "warnings": []}
    made |= outcome.record
    made |= cell.to_json()
    made["config"] = {name: comparable(name, value) for name, value in made["config"].items() if name not in LOOSE}
    made["name"] = cell.name
    if outcome.failure is not None:
        made |= {"status": "failed", "failure": outcome.failure}
    return made


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
        values = read_json(path, _MAX_BYTES)
    except AbsentFileError as error:
        raise InputError(f"the results {error}; give a results.json") from error
    except DamagedFileError as error:
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
    return _checked(Fields(values, str(path)))


def _checked(results: Fields) -> Results:
    cells, sources = results.entries("cells"), results.entries("sources")
    for number, cell in enumerate(cells, start=1):
        check_cell(Fields(cell, f"{results.where}: cell {number}"))
    for number, source in enumerate(sources, start=1):
        Fields(source, f"{results.where}: source {number}")
    return Results(results.text("title"), results.text("reference"), tuple(sources), tuple(cells))


def cell_key(cell: CellRecord) -> tuple[str | int, ...]:
    """Return what tells a cell from all others."""
    return (cell["protocol"]["name"], cell["scene"], cell["setting"], cell["label"], cell["seed"])


def merge(parts: Sequence[Results]) -> Results:
    """Join results; title and reference are those of the first.

    Args:
        parts: At least one.

    Raises:
        InputError: Two of them hold the same cell with different numbers.
    """
    cells: dict[tuple[str | int, ...], CellRecord] = {}
    for part in parts:
        for cell in part.cells:
            other = cells.setdefault(cell_key(cell), cell)
            if other is not cell and other != cell:
                raise InputError(
                    f"two of the results hold {cell['scene']}, {cell['label']}, seed {cell['seed']} under protocol "
                    f"{cell['protocol']['name']}, and differ; give one of the entries another label and run it again"
                )
    sources: list[dict[str, object]] = []
    for part in parts:
        sources += [source for source in part.sources if source not in sources]
    return Results(parts[0].title, parts[0].reference, tuple(sources), tuple(cells.values()))
