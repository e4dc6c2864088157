"""Which device a run computes on: names, and what may be wrong with them."""

from __future__ import annotations

import importlib.util
import re

import psutil  # type: ignore[import-untyped]
import torch

from splatopt.core.checks import InputError, quoted

OLDEST_CAPABILITY = (7, 0)
"""Compute capability (major, minor) below which Triton compiles nothing; 7.0 is Volta."""

_NAME = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def check_device_name(name: str) -> None:
    """Raise InputError unless ``name`` is auto, cpu, cuda or cuda:N."""
    if not _NAME.fullmatch(name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N with the number of a GPU, got {quoted(name)}")


def cuda_problem(name: str = "cuda") -> str | None:
    """Return why the device ``name`` cannot be used, as the end of a sentence; None where it can.

    Args:
        name: cuda for the current one, or cuda:N.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        return "PyTorch finds no GPU here" if built else f"this PyTorch ({torch.__version__}) was built without CUDA"
    count = torch.cuda.device_count()
    index = torch.device(name).index
    if index is not None and index >= count:
        return f"there is no GPU {index}, only {count} (cuda:0 to cuda:{count - 1})"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        found, oldest = (".".join(str(part) for part in pair) for pair in (capability, OLDEST_CAPABILITY))
        return f"{torch.cuda.get_device_name(index)} has compute capability {found}, and Triton needs {oldest} or more"
    return None


def find_device(name: str) -> torch.device:
    """Return the device ``name``.

    Args:
        name: cpu, cuda or cuda:N.

    Raises:
        InputError: It cannot be used here; says why.
    """
    check_device_name(name)
    problem = None if name == "cpu" else cuda_problem(name)
    if problem:
        raise InputError(f"--device {name} cannot be used: {problem}; use --device cpu")
    return torch.device(name)


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported, found out without importing what lies in it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is absent
        return False


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free for tensors on ``device``: its own on CUDA, else what this process may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # the system has no such limit
        return free
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    return free if limit == psutil.RLIM_INFINITY else max(0, min(free, limit - process.memory_info().vms))


def gibibytes(size: int) -> str:
    """Write a size in GiB with as many digits as tell something."""
    value = size / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"
