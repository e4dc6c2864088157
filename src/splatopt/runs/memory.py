"""How much memory this process uses."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from splatopt.core.devices import gibibytes

_STATUS = Path("/proc/self/status")

GIBIBYTE = 1 << 30

SCORING = 320
"""Bytes a pixel that scoring holds at once: an image and a photograph in float64, and SSIM's five blurred maps."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What training takes beside what the process holds before it.

    Attributes:
        parts: Bytes by what they are for.
        verb: What is done.
        row_bytes: What one Gaussian more takes, of a scene.
    """

    parts: dict[str, int]
    verb: str = "training"
    row_bytes: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    @property
    def sentence(self) -> str:
        """What is needed, and for what."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {gibibytes(size)}" for name, size in largest if size)
        return f"{self.verb} needs about {gibibytes(self.total)} GiB of memory ({listed})"


def resident_megabytes() -> float:
    """Return the memory this process holds now, MB (10⁶ bytes)."""
    return psutil.Process().memory_info().rss / 1e6


def peak_megabytes() -> float:
    """Return the most memory this process has held, MB (10⁶ bytes)."""
    # What getrusage tells on Linux may be the peak of the process that started this one.
    with contextlib.suppress(OSError, StopIteration, IndexError, ValueError):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
