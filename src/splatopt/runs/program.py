"""How this program is called here, so that commands which are shown can be typed as they stand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return what to type for ``splatopt``.

    The bare name where the search path leads to this environment's command, else the command's path,
    else the interpreter's with ``-m splatopt``; paths below the working folder are written from there.
    """
    command = Path(sys.executable).with_name("splatopt")
    found = shutil.which("splatopt")
    if found and Path(found) == command:
        return "splatopt"
    if command.is_file():
        return _from_here(command)
    return f"{_from_here(Path(sys.executable))} -m splatopt"


def _from_here(path: Path) -> str:
    """Write a path from the working folder where it lies below."""
    try:
        short = path.relative_to(Path.cwd())
    except ValueError:
        return str(path)
    # A shell looks for a bare name on the search path alone.
    return str(short) if len(short.parts) > 1 else f"./{short}"
