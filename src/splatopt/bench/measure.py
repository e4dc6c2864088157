"""Running one cell: a normal run whose scores are kept at every point."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import filelock

from splatopt.bench.cells import Cell
from splatopt.bench.environment import environment
from splatopt.bench.records import CellRecord, Point, ViewScore, read_record
from splatopt.core.checks import InputError
from splatopt.core.files import append_only, make_folder
from splatopt.raster.renderer import Renderer
from splatopt.runs.events import Warned
from splatopt.runs.folder import RunFolder, write_json
from splatopt.runs.memory import peak_megabytes
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import PROTOCOL as SCORING
from splatopt.train.evaluate import Scores
from splatopt.train.events import Evaluated, Event, Started
from splatopt.train.loop import train
from splatopt.train.result import TrainResult

RECORD = "cell.json"
"""What a cell leaves in its run folder beside the run's own files."""

_LOCK_SECONDS = 10.0

_CHOSEN = ("device", "instructions", "density", "view_batch", "sh_interval", "max_side")
"""Settings that a run spells out where they were left to be chosen."""

_PLANNED = (
    *("optimizer", "optimizer_options", "stages", "steps", "levels", "density", "density_options"),
    *("max_gaussians", "view_batch", "sh_interval"),
)
"""Settings that a run that plans itself spells out besides."""

Finisher = Callable[[TrainResult], CellRecord]
"""Adds to a cell's record what is measured once, at its end."""


class Recorder:
    """A callback that keeps a cell's record up to date: a point for every evaluation."""

    def __init__(self, cell: Cell) -> None:
        """Keep the record of ``cell``, going on with what its folder holds."""
        self._cell = cell
        self._config = cell.config
        self._path = cell.config.folder / RECORD
        # Warnings of the start come before it is told.
        self.record: CellRecord = {"warnings": []}

    def __call__(self, event: Event) -> None:
        """Note what ``event`` tells."""
        match event:
            case Started():
                self._start(event)
            case Evaluated():
                self._add(event)
            case Warned():
                self.record["warnings"].append(event.message)

    def _start(self, event: Started) -> None:
        # As the run resolved it, with everything spelt out.
        self._config = event.config
        before = read_record(self._path)
        # A run that begins at step 0 scores that step again.
        points = [point for point in before.get("points", []) if event.step and point["step"] <= event.step]
        self.record = {
            **self._cell.to_json(),
            "name": self._cell.name,
            "status": "running",
            "scoring": SCORING,
            "environment": environment(event.config, event.renderer),
            "resumed": before.get("resumed", 0) + 1 if before else 0,
            "views_trained": event.views,
            "warnings": list(dict.fromkeys([*before.get("warnings", []), *self.record["warnings"]])),
            "points": points,
            "best_views": before.get("best_views") if points else None,
        }

    def _add(self, event: Evaluated) -> None:
        """Add a point; those of steps that a run went back behind are dropped."""
        points = [point for point in self.record["points"] if point["step"] < event.step]
        peak = max([peak_megabytes(), *(point["peak_memory_mb"] for point in points)])
        point: Point = {
            "step": event.step,
            "seconds": event.seconds,
            "psnr": event.scores.psnr,
            "ssim": event.scores.ssim,
            "gaussians": len(event.cloud),
            "peak_memory_mb": round(peak, 1),
            "planned": self._is_planned(event.step),
        }
        if all(point["psnr"] > other["psnr"] for other in points):
            self.record["best_views"] = _views(event.scores)
        self.record["points"] = [*points, point]
        self.record["split"] = event.scores.split
        self.record["subset"] = event.scores.subset
        self.record["scoring"] = event.scores.protocol
        write_json(self._path, self.record)

    def _is_planned(self, step: int) -> bool:
        """Whether every run of this cell is scored after ``step`` steps, however quick the machine is."""
        config = self._config
        every = config.scoring.eval_every or 0
        return step in (0, config.schedule.steps) or step in config.scoring.eval_at or (every > 0 and step % every == 0)

    def finish(self, result: TrainResult, measured: CellRecord) -> None:
        """Mark the cell as done."""
        self.record |= {"status": "done", "views": _views(result.after), "views_tested": len(result.after.views)}
        self.record |= measured
        write_json(self._path, self.record)


def _views(scores: Scores) -> list[ViewScore]:
    return [{"name": view.name, "psnr": view.psnr, "ssim": view.ssim} for view in scores.views]


def run_cell(cell: Cell, *, renderer: Renderer | None = None, finish: Finisher | None = None) -> CellRecord:
    """Run a cell, or go on with it, and return its record.

    Args:
        cell: Whose folder is empty, absent, or a run of this cell.
        renderer: Used in place of the one that the configuration names.
        finish: Measures what is measured once, at the end.

    Raises:
        InputError: It cannot run, or another process runs it.
        KeyboardInterrupt: It was stopped; a checkpoint was written.
    """
    folder = cell.config.folder
    make_folder(folder.parent)
    with locked(folder.parent.parent / "state" / f"{cell.name}.lock", f"the cell {cell.name}", _LOCK_SECONDS):
        done = finished_record(cell)
        if done:
            return done
        recorder = Recorder(cell)
        config = cell.config.changed(resume=True) if RunFolder(folder).is_run else cell.config
        result = train(config, [recorder], renderer=renderer)
        recorder.finish(result, finish(result) if finish else {})
        return recorder.record


def finished_record(cell: Cell) -> CellRecord | None:
    """Return the record of a cell that is done, else None.

    Raises:
        InputError: The folder is the run of another cell.
    """
    folder = cell.config.folder
    if os.path.lexists(RunFolder(folder).config):
        saved = TrainConfig.read(RunFolder(folder))
        record = read_record(folder / RECORD)
        if not record:
            # Killed before its first score; the run has spelt out what the cell leaves to be chosen.
            asked = cell.config.settings()
            chosen = {name: asked[name] for name in _CHOSEN if asked[name] in ("auto", None)}
            if cell.config.schedule.is_planned:
                chosen |= {name: asked[name] for name in _PLANNED}
            kept = replace(cell, config=saved.changed(background=asked["background"], **chosen))
        else:
            kept = Cell.from_json(record, str(folder / RECORD))
        difference = cell.differs_from(kept)
        if difference:
            raise InputError(
                f"the cell {cell.name} in {folder.parent.parent} was run with {difference}; nothing is overwritten: "
                f"give another folder with --out, or another label"
            )
        if record.get("status") == "done":
            return record
    return None


@contextlib.contextmanager
def locked(path: Path, what: str, patience: float = 0.0) -> Iterator[TextIO]:
    """Hold a lock that ends with this process, however it ends.

    Args:
        path: The lock's file; its folder is made if absent.
        what: What it guards, for the message.
        patience: Seconds to wait for whoever holds it.

    Raises:
        InputError: Another process holds it.
    """
    make_folder(path.parent)
    with os.fdopen(append_only(path), "a", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while not filelock.lock_descriptor(file.fileno(), blocking=False):
            if time.monotonic() >= deadline:
                raise InputError(
                    f"another process is at work on {what}; wait for it, stop it, or give another folder with --out"
                )
            time.sleep(0.05)
        yield file
