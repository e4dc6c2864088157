"""The one way in which kernels are made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """Return ``triton.jit`` of a function as it was written, with products and sums fused.

    Triton reads a function's source and the names around it. Whatever has been wrapped around it before, as the
    tests wrap every function of the package to check shapes, would hide those names.
    """
    kernel = triton.jit(inspect.unwrap(function))
    # Said at every launch: versions of Triton differ in what they take for granted.
    kernel.run = functools.partial(kernel.run, enable_fp_fusion=True)
    return kernel
