"""The one way in which kernels are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """Return ``triton.jit`` of a function as it was written.

    Triton reads a function's source and the names around it. Whatever has been wrapped around it before, as the
    tests wrap every function of the package to check shapes, would hide those names.
    """
    return triton.jit(inspect.unwrap(function))
