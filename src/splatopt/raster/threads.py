"""What keeps PyTorch's threads from those of a renderer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from splatopt.raster.renderer import Renderer


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let PyTorch work on one thread; many small operations take longer on several.

    The setting is the process's, so it is put back at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def quiet_torch(renderer: Renderer) -> Iterator[None]:
    """Let PyTorch work on one thread while a renderer with threads of its own is at work.

    PyTorch's threads spin for milliseconds after each small operation and keep the renderer's from
    their cores: a step on two cores takes several times as long.
    """
    with one_torch_thread() if renderer.name == "native" else contextlib.nullcontext():
        yield
