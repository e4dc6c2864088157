"""Running a cell again, and comparing every number that must be the same."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splatopt.bench.cells import Cell, load_plugins_of
from splatopt.bench.environment import REPRODUCING
from splatopt.bench.measure import RECORD
from splatopt.bench.records import CellRecord, read_record
from splatopt.bench.runner import Launch, Say, SuiteFolder, describe, run_process
from splatopt.core.checks import InputError
from splatopt.runs.folder import RunFolder


@dataclass(frozen=True)
class Verification:
    """What came of running a cell again.

    Attributes:
        points: Points that both runs were scored at.
        differences: One sentence for each number that differs.
        changes: What else is not as it was: versions, machine.
    """

    points: int
    differences: tuple[str, ...]
    changes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether all numbers are the same to the bit."""
        return not self.differences


def verify(
    run: Path,
    say: Say,
    *,
    data: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    launch: Launch = run_process,
) -> Verification:
    """Run a cell again, in a folder that is deleted afterwards, and compare.

    Scores at the steps that every run of the cell is scored at, numbers of Gaussians and the trained scene must be
    the same to the bit; seconds and memory need not.

    Args:
        run: The cell's run folder.
        say: Takes a line.
        data: Folder that holds the scene, where it is no longer where it was.
        overrides: Settings in place of the cell's own that another machine may ask for: threads and instructions.
        launch: Runs a cell.

    Raises:
        InputError: The folder is no cell that is done, or it cannot be run again.
    """
    record = read_record(run / RECORD)
    if record.get("status") != "done" or not RunFolder(run).is_run:
        raise InputError(f"{run} is no cell of a suite that came to its end; give a folder below a suite's cells/")
    plugins = load_plugins_of(record, str(run / RECORD))
    cell = Cell.from_json(record, str(run / RECORD))
    cell = replace(cell, config=cell.config.changed(plugins=plugins))
    with tempfile.TemporaryDirectory(prefix="splatopt-verify-") as folder:
        again = _again(cell, Path(folder), data, overrides or {})
        say(f"running again: {describe(again)} …")
        outcome = launch(SuiteFolder(Path(folder)), again, None)
        if outcome.failure is not None:
            raise InputError(f"the cell could not be run again: {outcome.failure}")
        return _compared(record, outcome.record, run, again.config.folder)


def _again(cell: Cell, folder: Path, data: Path | None, overrides: Mapping[str, Any]) -> Cell:
    config = cell.config.changed(out=folder / "cells" / cell.name, **overrides)
    if data is not None:
        config = config.changed(capture=str(data / Path(cell.source).name))
    return replace(cell, config=config)


def _compared(before: CellRecord, now: CellRecord, run: Path, again: Path) -> Verification:
    differences = []
    old, new = (
        {point["step"]: point for point in record["points"] if point.get("planned")} for record in (before, now)
    )
    # Of runs that end by the clock, only as many steps can be compared as both took.
    steps = [step for step in old if step in new]
    for step in steps:
        for name in ("psnr", "ssim", "gaussians"):
            was, came = old[step][name], new[step][name]
            if was != came:
                differences.append(f"step {step}: {name} was {was!r} and came to {came!r}")
    told = before["config"]
    ends_by_steps = told.get("max_seconds") in (None, 0) and told.get("minutes") is None
    if ends_by_steps and set(old) != set(new):
        differences.append(f"it was scored at steps {sorted(old)} and is now at {sorted(new)}")
    if ends_by_steps and _digest(run) != _digest(again):
        differences.append("the trained scenes differ")
    ran_on, runs_on = before["environment"], now["environment"]
    changes = [
        f"{name} was {ran_on.get(name)} and is {runs_on.get(name)}"
        for name in REPRODUCING
        if ran_on.get(name) != runs_on.get(name)
    ]
    return Verification(len(steps), tuple(differences), tuple(changes))


def _digest(run: Path) -> str:
    scene = RunFolder(run).scene
    return hashlib.sha256(scene.read_bytes()).hexdigest() if scene.is_file() else "none"
