"""Where the native passes run: as many threads as PyTorch has, and rasterizers that wait to be used again."""

from __future__ import annotations

import atexit
import weakref
from types import ModuleType

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.raster.cpu import native_constants

_MAX_IDLE = 8
_idle: dict[int, list[native.Native]] = {}
"""Rasterizers that wait, by their number of threads."""
_drawings: weakref.WeakSet[Drawing] = weakref.WeakSet()
_held: weakref.WeakSet[HeldViews] = weakref.WeakSet()


def uses_native(tensor: Tensor) -> bool:
    """Whether a tensor's passes are native ones: float32 where there is the native module, else PyTorch's."""
    return tensor.dtype == torch.float32 and native.available()


def native_module() -> ModuleType:
    """Return the native module, which :func:`uses_native` has found."""
    module = native.load()
    assert module is not None
    return module


def torch_workers() -> native.Native:
    """Return the pool of ``torch.get_num_threads()`` threads."""
    return native.workers(torch.get_num_threads())


class HeldViews:
    """Cameras as the native module takes them, which a graph keeps for its backward pass."""

    def __init__(self, views: list[native.Native]) -> None:
        self.views = views
        _held.add(self)


class Drawing:
    """A rasterizer that holds one view's lists, for as long as a graph may ask for their derivatives.

    When nothing refers to it any more its buffers serve another view.
    """

    def __init__(self) -> None:
        self._waiting = _idle.setdefault(torch.get_num_threads(), [])
        try:
            self.rasterizer: native.Native = self._waiting.pop()
        except IndexError:
            self.rasterizer = native_module().Rasterizer(native_constants(), torch_workers())
        _drawings.add(self)

    def __del__(self) -> None:
        if len(self._waiting) < _MAX_IDLE:
            self._waiting.append(self.rasterizer)


@atexit.register
def _let_go() -> None:
    # PyTorch keeps graphs that are alive when the interpreter ends, and all that they hold.
    for drawing in _drawings:
        drawing.rasterizer = None
    for held in _held:
        held.views.clear()
    for waiting in _idle.values():
        waiting.clear()
