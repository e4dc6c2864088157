"""A process for COLMAP's stages, so that each long call can be ended: ``python -m …worker FOLDER``.

It tells what is done on its standard output, a line of JSON each time, and leaves COLMAP's own words on standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from splatopt.core.checks import InputError, cut, short
from splatopt.core.files import append_only
from splatopt.data.structure_from_motion.stages import (
    Job,
    Tell,
    extract_features,
    find_models,
    match_features,
    register_cameras,
)

LOG = "colmap.log"

Work = Callable[[Path, Tell], None]
"""Does what ``job.json`` in a folder asks for, and leaves ``model`` and ``models.json`` there."""


def work_in_process(folder: Path, tell: Tell) -> None:
    """Do the stages in a process of their own, which ends when this one does.

    Args:
        folder: Holds ``images`` and ``job.json``.
        tell: Called with what the process tells.

    Raises:
        InputError: The process ended before it was done.
    """
    log = folder / LOG
    command = [sys.executable, "-m", __name__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        os.fdopen(append_only(log), "ab") as said,
        # Its standard input is never written to: that it closes is how the process learns that we are gone.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                tell(*json.loads(line))
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if code:
        raise InputError(
            f"COLMAP ended {_how(code)}: {_last_line(log)}; the same command goes on, and {short(log)} has its words"
        )


def _how(code: int) -> str:
    if code > 0:
        return f"with code {code}"
    name = signal.Signals(-code).name
    return f"by {name}" + (", as a system does that runs out of memory" if name == "SIGKILL" else "")


def _last_line(log: Path) -> str:
    return cut((log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1])


def main(folder: Path, tell: Tell) -> None:
    """Do the stages in ``folder``."""
    job = Job.read(folder / "job.json")
    register_cameras(job, folder)
    extract_features(job, folder, tell)
    match_features(job, folder, tell)
    find_models(job, folder, tell)


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone: its end closes our standard input."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Nothing but what is told goes to standard output, whatever the libraries print.
    TOLD = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)

    def tell_parent(stage: str, done: int, total: int) -> None:
        """Write one line."""
        TOLD.write(json.dumps([stage, done, total]) + "\n")

    main(Path(sys.argv[1]), tell_parent)
