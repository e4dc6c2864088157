"""Running a suite's cells on Ray: on this machine's processors or on a cluster's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from types import ModuleType

from splatopt.bench.cells import Cell, load_plugins_of
from splatopt.bench.records import CellRecord
from splatopt.bench.runner import Outcome, Say, SuiteFolder, describe, run_process, said_of, split_finished
from splatopt.core.checks import InputError
from splatopt.core.stop_signals import stop_requests

_LOCAL = re.compile(r"local(?::(\d{1,4}))?")


def run_cells_on_ray(
    suite_folder: SuiteFolder, cells: Sequence[Cell], say: Say, address: str, *, lpips_weights: str | None = None
) -> list[Outcome]:
    """Run what is left of ``cells`` as tasks of Ray; one that fails does not stop the others.

    Each takes as many processors as it has threads. All nodes must see the suite's folder and the scenes at the
    same paths, and have this version installed.

    Args:
        suite_folder: The suite's folder, absolute.
        cells: All of them; those that are done, or failed before, are kept.
        say: Takes a line for each.
        address: A cluster's address, ``auto`` for the one at hand, ``local`` for one on this machine, ``local:2``
            for one of two processors.
        lpips_weights: Folder of LPIPS backbones.

    Raises:
        InputError: Ray is not installed or cannot be reached, or a folder or scene cannot be used.
        KeyboardInterrupt: We were asked to stop; cells go on from their last checkpoints.
    """
    ray = _connect(address)
    try:
        kept, left = split_finished(suite_folder, cells, say)
        task = ray.remote(_run)
        running = {}
        for cell in left:
            reference = task.options(num_cpus=max(1, cell.config.processes.threads), max_retries=0).remote(
                str(suite_folder.out), cell.to_json(), lpips_weights
            )
            running[reference] = cell
        outcomes = dict(kept)
        while running:
            # A request to stop ends the wait, so that Ray can be shut down.
            with stop_requests([], _interrupt):
                (reference, *_), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(reference)
            outcomes[cell.name] = _outcome(ray, suite_folder, cell, reference)
            say(f"{len(outcomes)}/{len(cells)}  {describe(cell)}: {said_of(outcomes[cell.name])}")
        return [outcomes[cell.name] for cell in cells]
    finally:
        # Ends the tasks' processes, and those the cells of an unfinished suite.
        ray.shutdown()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _run(out: str, cell: CellRecord, lpips_weights: str | None) -> None:
    """What a node does: the cell in a process of its own, which leaves everything in the suite's folder."""
    from pathlib import Path

    load_plugins_of(cell, "the task")
    run_process(SuiteFolder(Path(out)), Cell.from_json(cell, "the task"), lpips_weights)


def _outcome(ray: ModuleType, suite_folder: SuiteFolder, cell: Cell, reference: object) -> Outcome:
    """How a task's cell ended; one whose node was lost has failed."""
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(cell, {}, f"its task was lost: {' '.join(str(error).split())[:300]}")
    return suite_folder.outcome(cell) or Outcome(
        cell, {}, "its node left nothing in the suite's folder; is the folder shared?"
    )


def _connect(address: str) -> ModuleType:
    """Start or join Ray."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed; install splatopt[ray]") from None
    local = _LOCAL.fullmatch(address)
    settings: dict[str, object] = {"log_to_driver": False, "logging_level": "error"}
    if local:
        settings |= {"address": "local", "num_cpus": int(local[1] or 0) or os.cpu_count(), "include_dashboard": False}
    else:
        settings["address"] = address
    try:
        ray.init(**settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"no Ray answers at {address} ({reason}); give its address, or --ray local") from error
    return ray
