"""Running a suite: its cells one after the other, each in a process of its own, and what they came to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.bench.cells import Cell, timed
from splatopt.bench.environment import environment
from splatopt.bench.measure import RECORD, finished_record
from splatopt.bench.records import CellRecord, read_failure, read_record
from splatopt.bench.worker import FAILED, STOPPED
from splatopt.core.checks import InputError, quoted
from splatopt.core.files import append_only, make_folder
from splatopt.core.stop_signals import stop_requests
from splatopt.core.typed import Fields
from splatopt.runs.folder import read_json, write_json
from splatopt.scene.initialization import FromPoints, has_points
from splatopt.train.config import TrainConfig
from splatopt.train.setup import open_capture

Say = Callable[[str], None]
"""Takes a line for the person who waits."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: The cell.
        record: What it left; empty where it failed before its first score.
        failure: Why it failed; None where it is done.
    """

    cell: Cell
    record: CellRecord
    failure: str | None


@dataclass(frozen=True)
class SuiteFolder:
    """A suite's folder.

    Attributes:
        out: The folder.
    """

    out: Path

    @property
    def state(self) -> Path:
        """What is needed to go on: requests, logs, reasons, locks, times."""
        return self.out / "state"

    def request(self, cell: Cell) -> Path:
        """What the cell's process is told."""
        return self.state / f"{cell.name}.json"

    def failure(self, cell: Cell) -> str | None:
        """Why the cell failed; None where it did not."""
        return read_failure(self.request(cell).with_suffix(".failed"))

    def outcome(self, cell: Cell) -> Outcome | None:
        """How the cell ended; None where it has not. Raises InputError where its folder is another cell's."""
        record = finished_record(cell)
        if record:
            return Outcome(cell, record, None)
        failure = self.failure(cell)
        return None if failure is None else Outcome(cell, read_record(cell.config.folder / RECORD), failure)


def run_process(suite_folder: SuiteFolder, cell: Cell, lpips_weights: str | None) -> Outcome:
    """Run one cell in a process of its own.

    Args:
        suite_folder: The suite's folder.
        cell: What to run.
        lpips_weights: Folder of LPIPS backbones.

    Raises:
        KeyboardInterrupt: We were asked to stop; the cell has written a checkpoint.
    """
    request = suite_folder.request(cell)
    make_folder(request.parent)
    write_json(request, {"cell": cell.to_json(), "lpips_weights": lpips_weights})
    command = [sys.executable, "-m", "splatopt.bench.worker", str(request)]
    with (
        os.fdopen(append_only(request.with_suffix(".log")), "ab") as log,
        # Its standard input is never written to: that it closes is how the cell learns that we are gone. In a session
        # of its own it hears of Ctrl-C from us alone, once.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True) as process,
        _forwarding(process) as requests,
    ):
        code = process.wait()
    record = finished_record(cell)
    if code == STOPPED or requests:
        raise KeyboardInterrupt
    if record:
        return Outcome(cell, record, None)
    if code != FAILED or suite_folder.failure(cell) is None:
        write_json(request.with_suffix(".failed"), {"reason": _death(code, request.with_suffix(".log"))})
    return Outcome(cell, read_record(cell.config.folder / RECORD), suite_folder.failure(cell))


def _death(code: int, log: Path) -> str:
    """What is known of a process that left no reason."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as a system does that runs out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"its process ended with code {code}: {lines[-1] if lines else 'it said nothing'}"


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Hand requests to stop on to ``process``, which keeps its work; yields what was handed on."""
    requests: list[int] = []

    def forward() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    with stop_requests(requests, forward):
        yield requests


Launch = Callable[[SuiteFolder, Cell, str | None], Outcome]


def run_cells(
    suite_folder: SuiteFolder,
    cells: Sequence[Cell],
    say: Say,
    *,
    lpips_weights: str | None = None,
    launch: Launch = run_process,
) -> list[Outcome]:
    """Run what is left of ``cells``, one after the other; one that fails does not stop the others.

    Args:
        suite_folder: The suite's folder.
        cells: All of them; those that are done, or failed before, are kept.
        say: Takes a line for each.
        lpips_weights: Folder of LPIPS backbones.
        launch: Runs one cell.

    Raises:
        InputError: A folder is another cell's, or a scene cannot be read; nothing has been run then.
        KeyboardInterrupt: We were asked to stop.
    """
    kept, _ = split_finished(suite_folder, cells, say)
    outcomes, began, ran = [], time.monotonic(), 0
    for number, cell in enumerate(cells, start=1):
        outcome = kept.get(cell.name)
        if outcome is None:
            left = len([one for one in cells[number - 1 :] if one.name not in kept])
            ahead = f", about {_clock((time.monotonic() - began) / ran * left)} left" if ran else ""
            say(f"{number}/{len(cells)}  {describe(cell)} …{ahead}")
            outcome = launch(suite_folder, cell, lpips_weights)
            ran += 1
            say(f"{' ' * len(f'{number}/{len(cells)}')}  {said_of(outcome)}")
        outcomes.append(outcome)
    return outcomes


def split_finished(suite_folder: SuiteFolder, cells: Sequence[Cell], say: Say) -> tuple[dict[str, Outcome], list[Cell]]:
    """Return the cells that ended before, by name, and those that are left, whose scenes can be read."""
    kept = {cell.name: outcome for cell in cells if (outcome := suite_folder.outcome(cell))}
    left = [cell for cell in cells if cell.name not in kept]
    check_scenes(left)
    if kept:
        say(f"{len(kept)} of {len(cells)} cells are kept from before")
    return kept, left


def describe(cell: Cell) -> str:
    """A cell in words."""
    return ", ".join(part for part in (cell.scene, cell.setting, cell.label, f"seed {cell.seed}") if part)


def said_of(outcome: Outcome) -> str:
    """What a cell came to, in words."""
    if outcome.failure is not None:
        return f"failed: {outcome.failure}"
    last = outcome.record["points"][-1]
    return (
        f"{last['psnr']:.2f} dB, SSIM {last['ssim']:.4f} after {last['step']:,} steps in {last['seconds']:.1f} s, "
        f"{last['gaussians']:,} Gaussians, {last['peak_memory_mb']:,.0f} MB"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def check_scenes(cells: Sequence[Cell]) -> None:
    """Open every scene as the cells will, so that one that cannot be read is known before anything runs."""
    seen = set()
    for cell in cells:
        config = cell.config
        key = (config.data, config.scene.init)
        if key not in seen:
            seen.add(key)
            capture = open_capture(config)
            if isinstance(config.scene.initialization, FromPoints) and not has_points(capture):
                raise InputError(f'scene {cell.scene!r} has no points to start from; give it init = "random"')


def with_times(
    suite_folder: SuiteFolder,
    cells: Sequence[Cell],
    clocks: Mapping[tuple[str, str], Cell],
    say: Say,
    *,
    launch: Launch = run_process,
) -> list[Cell]:
    """Return ``fixed-time`` cells with their time: the seconds of so many Adam steps on each scene and setting.

    What was measured is stored in the suite's folder and used again when it goes on.

    Args:
        suite_folder: The suite's folder.
        cells: Without times.
        clocks: By scene and setting, the run whose seconds are everyone's time.
        say: Takes a line for each measurement.
        launch: Runs one cell.

    Raises:
        InputError: A measurement failed, or the stored ones come from another machine.
    """
    path = suite_folder.state / "times.json"
    machine, times = _stored_times(path)
    here = _machine(cells[0].config)
    if machine not in (None, here):
        raise InputError(
            f"the times in {path} were measured on another machine ({quoted(machine)}), and this is {here}; "
            f"start again with another --out"
        )
    check_scenes([clock for key, clock in clocks.items() if "/".join(key) not in times])
    for key, clock in clocks.items():
        if "/".join(key) in times:
            suite_folder.outcome(clock)  # refuses a time that was measured with other settings
        else:
            say(f"measuring the time of {clock.config.schedule.steps:,} Adam steps: {describe(clock)} …")
            outcome = suite_folder.outcome(clock) or launch(suite_folder, clock, None)
            if outcome.failure is not None:
                raise InputError(f"the time on scene {clock.scene!r} could not be measured: {outcome.failure}")
            times["/".join(key)] = round(float(outcome.record["points"][-1]["seconds"]), 3)
            write_json(path, {"machine": here, "seconds": times})
    return [timed(cell, times[f"{cell.scene}/{cell.setting}"]) for cell in cells]


def _stored_times(path: Path) -> tuple[str | None, dict[str, float]]:
    """The machine on which times were measured, and the seconds by scene and setting; None where there are none."""
    values = read_json(path)
    if not values:
        return None, {}
    stored = Fields(values, str(path))
    seconds = stored.object("seconds")
    return stored.text("machine"), {name: seconds.number(name, minimum=0) for name in seconds.values}


def _machine(config: TrainConfig) -> str:
    found = environment(config, config.processes.renderer)
    return f"{found['processor']}, {found['threads']} threads, {found['instructions']}"
