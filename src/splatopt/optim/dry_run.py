"""What an optimizer takes, found out by letting it work: bytes of all tensors that it makes, and no more than allowed.

Of an optimizer that others wrote nobody says what it keeps, and what it holds for a while. A few steps on parameters of
the true shapes tell. Each operation is asked for the size of its result before it is done, so that what does not fit is
never asked of the machine.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from splatopt.core.checks import InputError
from splatopt.core.devices import gibibytes

STEPS = 3
"""Steps that are tried: the first makes the state, and those after it show what is held beside it."""

SECONDS = 60.0
"""For how long they may take."""


class TooCostlyError(RuntimeError):
    """What is counted takes more than it may; the message is the end of a sentence that begins with its name."""


class CountedMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered.

    Attributes:
        peak: The most bytes that lived at once.
    """

    def __init__(self, max_bytes: int, seconds: float = math.inf, largest: tuple[int, str] | None = None) -> None:
        """Begin with nothing.

        Args:
            max_bytes: Bytes that may live at once.
            seconds: For how long it may go on, looked at between operations.
            largest: Bytes that no single tensor may reach, and why, as the end of a sentence.
        """
        super().__init__()
        self.max_bytes, self.largest = max_bytes, largest
        self.live = self.peak = 0
        self._seconds, self._until = seconds, time.perf_counter() + seconds
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do one operation, unless its result is too large."""
        kwargs = kwargs or {}
        if time.perf_counter() > self._until:
            raise TooCostlyError(f"takes longer than {self._seconds:g} s for its first steps")
        given = _storages((args, kwargs))
        self._look_ahead(func, args, kwargs)
        result = func(*args, **kwargs)
        for key, storage in _storages(result).items():
            if key not in given:  # what is written in place may have been there before
                self._note(key, storage)
        return result

    def _note(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if key in self._known or not size:
            return

        def forget(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _look_ahead(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raise TooCostlyError where the results of an operation are too large; some tell only when it is done."""
        leaves, layout = tree_flatten((args, kwargs))
        shapes = {leaf.shape for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
        if func._schema.is_mutable or (torch.Tag.pointwise in func.tags and len(shapes) < 2):
            return
        bound = math.prod(sorted(_numbers(leaf) for leaf in leaves if not isinstance(leaf, int))[-2:])
        bound *= math.prod(max(1, abs(leaf)) for leaf in leaves if isinstance(leaf, int))
        if 16 * bound < min(self.max_bytes - self.live, self.largest[0] if self.largest else self.max_bytes):
            return
        empty = [_without_numbers(leaf) for leaf in leaves]
        given = _storages(empty)
        own_args, own_kwargs = tree_unflatten(empty, layout)
        own_kwargs.pop("generator", None)
        try:
            results = _storages(func(*own_args, **own_kwargs))
        except (RuntimeError, TypeError, ValueError):  # its result depends on numbers
            return
        sizes = [storage.nbytes() for key, storage in results.items() if key not in given]
        if self.largest and max(sizes, default=0) >= self.largest[0]:
            raise TooCostlyError(self.largest[1])
        needed = self.live + sum(sizes)
        if needed > self.max_bytes:
            asked, free = gibibytes(needed), gibibytes(self.max_bytes)
            raise TooCostlyError(f"needs {asked} GiB of memory at once in its first steps, and may take {free}")


def _storages(value: object) -> dict[int, torch.UntypedStorage]:
    """The memory of all tensors in ``value``, each once."""
    found = (leaf.untyped_storage() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in found}


def _numbers(leaf: object) -> int:
    """How many numbers an argument holds."""
    return leaf.numel() if isinstance(leaf, Tensor) else 1


def _without_numbers(leaf: object) -> Any:
    """An argument of the same shape that takes no memory."""
    if isinstance(leaf, Tensor):
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def count_memory(name: str, work: Callable[[], object], memory: CountedMemory, remedies: str) -> int:
    """Return the bytes that ``work`` takes at its peak, what is left of it included.

    Args:
        name: Whose work it is, for messages.
        work: A few steps.
        memory: What it may take.
        remedies: What to do where it takes more, as the end of a sentence.

    Raises:
        InputError: It takes more.
    """
    try:
        with memory:
            work()
    except TooCostlyError as error:
        raise InputError(f"{name} {error}; {remedies}") from None
    return memory.peak
