"""One start of a suite, from its cells to its results."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from splatopt.bench.cells import Cell, check_overrides, make_cells, make_timing_cells
from splatopt.bench.cluster import run_cells_on_ray
from splatopt.bench.measure import locked
from splatopt.bench.pictures import FOLDER as PICTURES
from splatopt.bench.pictures import INDEX, draw_pictures
from splatopt.bench.results import Results, cell_key, load_results, merge, result_cell, save_results
from splatopt.bench.runner import Launch, Outcome, Say, SuiteFolder, run_cells, run_process, with_times
from splatopt.bench.suite import Suite
from splatopt.core.checks import InputError
from splatopt.core.files import partial_path, sweep
from splatopt.core.stop_signals import resume_hint
from splatopt.runs.folder import RunFolder, read_json, write_json

_FORMAT = "splatopt-suite-1"


@dataclass(frozen=True)
class Start:
    """One start of a suite.

    Attributes:
        command: What was typed.
        data: Folder in which scenes are looked for by the last part of their path.
        overrides: Settings of this start, such as ``threads``, that change no number, and ``instructions``.
        retry: Whether cells that failed are run once more.
        lpips_weights: Folder of LPIPS backbones.
        views: Views of each scene that are kept as pictures.
        ray: Address of Ray, on which cells run side by side; None to run one at a time, here.
    """

    command: str
    data: Path | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    retry: bool = False
    lpips_weights: Path | None = None
    views: int = 0
    ray: str | None = None


@dataclass(frozen=True)
class _Plan:
    """All runs of a suite: its cells, and those whose seconds are everyone's time."""

    suite_folder: SuiteFolder
    cells: list[Cell]
    clocks: dict[tuple[str, str], Cell]


def run_suite(suite: Suite, out: Path, start: Start, *, say: Say, launch: Launch = run_process) -> Results:
    """Run what is left of a suite and write its results.json.

    Args:
        suite: What is compared.
        out: The suite's folder; a new or empty one, or one in which a suite was begun.
        start: How it is run.
        say: Takes a line for each cell.
        launch: Runs one cell.

    Raises:
        InputError: The folder is in use or something else, a scene cannot be read, or the suite says otherwise
            than what was run there.
        KeyboardInterrupt: It was stopped; the message says how to go on.
    """
    check_suite_folder(out)
    plan = _plan(suite, out, start)
    suite_folder = plan.suite_folder
    with contextlib.ExitStack() as alone:
        lock = alone.enter_context(locked(suite_folder.state / "suite.lock", f"a suite in {out}"))
        _sweep(suite_folder, [*plan.clocks.values(), *plan.cells])
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        described = {"format": _FORMAT, "command": start.command, **suite.to_json()}
        if not (suite_folder.out / "suite.json").exists():
            write_json(suite_folder.out / "suite.json", described)
        told = f"what is done is kept, go on with: {start.command}"
        alone.enter_context(resume_hint(lambda: told))
        try:
            outcomes = _run(plan, start, say, launch)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {told}") from None
        results = gather(suite, start.command, outcomes, side_by_side=start.ray is not None)
        results = _with_earlier(results, suite_folder.out / "results.json", say)
        write_json(suite_folder.out / "suite.json", described)
        save_results(suite_folder.out / "results.json", results)
        draw_pictures(suite_folder.out, [outcome.cell for outcome in outcomes if outcome.failure is None], start.views)
    return results


def _with_earlier(results: Results, path: Path, say: Say) -> Results:
    """Return results with the finished cells of ``path`` that another suite, or more of this one, left there."""
    if not path.is_file():
        return results
    before = load_results(path)
    known = {cell_key(cell) for cell in results.cells}
    kept = tuple(cell for cell in before.done if cell_key(cell) not in known)
    if not kept:
        return results
    say(f"{len(kept)} cells of earlier starts stay in {path}; give another --out for results of their own")
    return merge([results, replace(before, cells=kept)])


def _plan(suite: Suite, out: Path, start: Start) -> _Plan:
    """Return what is to be run; raises InputError where a cell could not be."""
    settings = check_overrides(start.overrides)
    if start.ray is not None:
        if suite.protocol.budget_steps:
            raise InputError("fixed-time measures one machine's clock and cannot run on Ray; leave out --ray")
        # Nodes have other working folders, and cells share a node's processors.
        out, settings = out.resolve(), settings | {"threads": settings.get("threads") or 1}
    cells = make_cells(suite, out, settings, start.data)
    clocks = make_timing_cells(suite, out, settings, start.data) if suite.protocol.budget_steps else {}
    return _Plan(SuiteFolder(out), cells, clocks)


def _run(plan: _Plan, start: Start, say: Say, launch: Launch) -> list[Outcome]:
    """Run what is left of a plan."""
    suite_folder, cells = plan.suite_folder, plan.cells
    if start.retry:
        _set_failures_aside(suite_folder, [*plan.clocks.values(), *cells], say)
    if plan.clocks:
        cells = with_times(suite_folder, cells, plan.clocks, say, launch=launch)
    weights = str(start.lpips_weights.resolve()) if start.lpips_weights else None
    if start.ray is not None:
        return run_cells_on_ray(suite_folder, cells, say, start.ray, lpips_weights=weights)
    return run_cells(suite_folder, cells, say, lpips_weights=weights, launch=launch)


def check_suite_folder(out: Path) -> None:
    """Make sure that a suite may be run in ``out``; raises InputError where something else is there."""
    if not out.exists():
        return
    begun = read_json(out / "suite.json").get("format") == _FORMAT
    ours = {"state", "cells", "times", partial_path(out / "suite.json").name}
    if not out.is_dir() or not (begun or all(path.name in ours for path in out.iterdir())):
        raise InputError(
            f"{out} exists and is no folder of a suite, and nothing in it is overwritten; give another --out"
        )


def _sweep(suite_folder: SuiteFolder, cells: list[Cell]) -> None:
    """Remove what a kill left half written, in the suite's folder and in its cells'."""
    written = ("suite.json", "results.json", "tables.md", "tables.tex", "tables.csv", "report.html")
    files = [suite_folder.out / name for name in written]
    files += [suite_folder.state / "times.json", suite_folder.out / PICTURES / INDEX]
    for cell in cells:
        files += [suite_folder.request(cell), suite_folder.request(cell).with_suffix(".failed")]
        RunFolder(cell.config.folder).sweep_if_idle()
    sweep([*(partial_path(file) for file in files), *(suite_folder.out / PICTURES).glob(".*.webp.partial")])


def _set_failures_aside(suite_folder: SuiteFolder, cells: list[Cell], say: Say) -> None:
    """Make room for cells that failed; what they left is renamed."""
    for cell in cells:
        if suite_folder.failure(cell) is None:
            continue
        number = 1
        while (kept := suite_folder.out / "failed" / f"{cell.name}.{number}").exists():
            number += 1
        kept.mkdir(parents=True)
        request = suite_folder.request(cell)
        for path in (cell.config.folder, request.with_suffix(".log"), request.with_suffix(".failed")):
            if path.exists():
                path.rename(kept / path.name)
        say(f"{cell.name} is run once more; what it left is in {kept}")


def gather(suite: Suite, command: str, outcomes: list[Outcome], *, side_by_side: bool = False) -> Results:
    """Return the results of a suite's cells; ``side_by_side`` says that they shared machines."""
    source = {
        "title": suite.title,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "side_by_side": side_by_side,
        "suite": suite.to_json(),
    }
    return Results(suite.title, suite.reference, (source,), tuple(result_cell(outcome) for outcome in outcomes))
