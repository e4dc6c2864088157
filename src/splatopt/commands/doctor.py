"""What this machine has that matters to training."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch

from splatopt.commands.parsing import run_command
from splatopt.core import native
from splatopt.core.checks import say
from splatopt.core.devices import cuda_problem
from splatopt.core.version import __version__
from splatopt.raster.render import renderer_in_use


def findings() -> dict[str, str]:
    """Return one line per thing worth knowing, by name."""
    name, why = renderer_in_use()
    memory = psutil.virtual_memory()
    return {
        "splatopt": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}, {native.default_threads()} processors",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "native": _native(),
        "renderer": f"{name}: {why}",
        "gpu": _gpu(),
        "ffmpeg": shutil.which("ffmpeg") or "not on the search path; no video is read, or made of camera paths",
        "memory": f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB",
    }


def _native() -> str:
    if not native.available():
        return "not installed; run `make install` (it needs a C++20 compiler)"
    workers = native.workers()
    here = ", ".join(native.instruction_sets())
    return f"{workers.isa}, {workers.threads} threads; --instructions takes one of: {here}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return f"none: {cuda_problem()}; training runs on the CPU"
    problem = cuda_problem()
    capability = ".".join(str(part) for part in torch.cuda.get_device_capability())
    used = f"it cannot be used: {problem}" if problem else f"{torch.cuda.device_count()} to choose from with --device"
    return f"{torch.cuda.get_device_name()}, compute capability {capability}; {used}"


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine has, and which renderer will be used and why."""


def _doctor(_: DoctorOptions) -> int:
    for name, value in findings().items():
        say(f"{name:<10}{value}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(DoctorOptions, _doctor, "doctor", words)
