"""How much memory this process uses."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_megabytes() -> float:
    """Return the memory this process holds now, MB (10⁶ bytes); its peak where the system tells no more."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES / 1e6
    except (OSError, IndexError, ValueError):
        return peak_megabytes()


def peak_megabytes() -> float:
    """Return the most memory this process has held, MB (10⁶ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
