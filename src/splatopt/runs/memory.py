"""How much memory this process uses."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_megabytes() -> float:
    """Return the memory this process holds now, MB (10⁶ bytes); its peak where the system tells no more."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES / 1e6
    except (OSError, IndexError, ValueError):
        return peak_megabytes()


def peak_megabytes() -> float:
    """Return the most memory this process has held, MB (10⁶ bytes)."""
    # What getrusage tells on Linux may be the peak of the process that started this one.
    with contextlib.suppress(OSError, StopIteration, IndexError, ValueError):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
