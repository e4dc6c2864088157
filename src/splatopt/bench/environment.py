"""What a cell ran on: versions, machine, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy
import psutil  # type: ignore[import-untyped]
import torch

from splatopt.core import native
from splatopt.core.version import __version__
from splatopt.train.config import TrainConfig


def environment(config: TrainConfig, renderer: str) -> dict[str, object]:
    """Return what a result says of where it was made; no name of a person, a machine or a place.

    Args:
        config: The run's, for its threads and instructions.
        renderer: What renders.
    """
    return {
        "splatopt": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": psutil.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "renderer": renderer,
        "instructions": native.find_instructions(config.processes.instructions) if native.available() else "none",
        "threads": config.processes.threads or native.default_threads(),
    }


def commit() -> str:
    """Return the commit of the source that runs, marked where files differ from it; ``unknown`` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision}{' with changes' if changed else ''}" if tracked else "unknown"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


REPRODUCING = ("splatopt", "commit", "torch", "numpy", "python", "processor", "instructions", "renderer")
"""What must be the same for numbers to be the same to the bit; threads need not."""
