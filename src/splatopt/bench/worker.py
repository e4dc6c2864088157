"""A process that runs one cell, so that its memory and its end are its own: ``python -m splatopt.bench.worker``."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

from splatopt.bench.cells import Cell, load_plugins_of
from splatopt.bench.lpips_scores import measure_lpips
from splatopt.bench.measure import run_cell
from splatopt.core.checks import InputError
from splatopt.core.stop_signals import ENDED, handled_stop_signals
from splatopt.runs.folder import read_json, write_json

DONE, FAILED, STOPPED = 0, 1, ENDED
"""How the process ends."""


def main(request: Path) -> int:
    """Run the cell that ``request`` describes.

    Args:
        request: A file that the suite wrote: a cell, and the folder of LPIPS weights.

    Returns:
        DONE; STOPPED where it was asked to stop; FAILED where it cannot be run, with the reason beside the request.
    """
    try:
        values = read_json(request)
        load_plugins_of(values.get("cell"), str(request))
        cell, weights = Cell.from_json(values.get("cell"), str(request)), values.get("lpips_weights")
        run_cell(cell, finish=lambda result: measure_lpips(result, weights))
    except KeyboardInterrupt:
        return STOPPED
    except InputError as error:
        reason = str(error)
    except Exception as error:
        # Whatever breaks in one cell must not stop the others; the log has the details.
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    else:
        return DONE
    write_json(request.with_suffix(".failed"), {"reason": " ".join(reason.split())})
    return FAILED


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone: its end closes our standard input."""
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 1024):
        pass
    os._exit(STOPPED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with handled_stop_signals(for_good=True):
        CODE = main(Path(sys.argv[1]))
    sys.exit(CODE)
