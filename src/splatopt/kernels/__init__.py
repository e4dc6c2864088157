"""Triton kernels: compiled on first use, for the GPU that is there; nothing here is imported where there is none.

This module alone needs no Triton. The others are imported where :func:`takes` has said that they will serve.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import Tensor


def available() -> bool:
    """Whether Triton is installed; the extra ``splatopt[gpu]`` brings it where torch does not."""
    return find_spec("triton") is not None


def takes(tensors: Iterable[Tensor]) -> bool:
    """Whether the kernels take these tensors: float32, contiguous, on one GPU, with Triton installed."""
    devices = set()
    for tensor in tensors:
        if tensor.device.type != "cuda" or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return False
        devices.add(tensor.device)
    return len(devices) == 1 and available()
