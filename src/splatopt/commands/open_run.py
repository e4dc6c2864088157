"""A finished run, as commands open it."""

from __future__ import annotations

import sys
from pathlib import Path

from splatopt.core.checks import say
from splatopt.train.run import Run, open_run


def open_with_warnings(folder: Path, renderer: str | None = None, device: str | None = None) -> Run:
    """Open the run in ``folder``, and print its warnings; see :func:`~splatopt.train.run.open_run`."""
    run = open_run(folder, renderer, device)
    for warning in run.warnings:
        say(f"splatopt: warning: {warning}", file=sys.stderr)
    return run
