"""Photographs before they are asked for: decoded by threads of their own, and copied to the device that renders."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from splatopt.data.image_store import ImageStore

DEVICE_BYTES = 256 << 20
"""Photographs that are kept on the device at most, beside the one that was asked for last."""


@runtime_checkable
class HostImages(Protocol):
    """Photographs on the host by view index; ``splatopt.data.ImageStore`` is one."""

    def __getitem__(self, index: int) -> Tensor:
        """Return photograph ``index``, (H, W, 3), uint8."""
        ...


@dataclass(frozen=True)
class _Fetched:
    """A photograph and its pixels' weights, (H, W) float32, on one device; without weights where all count alike."""

    image: Tensor
    weights: Tensor | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.image.nbytes + (0 if self.weights is None else self.weights.nbytes)

    def moved(self, move: Callable[[Tensor], Tensor]) -> _Fetched:
        """Return both where ``move`` takes them."""
        return _Fetched(move(self.image), None if self.weights is None else move(self.weights))


class DeviceWeights:
    """The weights of photographs' pixels by view index, fetched with the photographs."""

    def __init__(self, images: DeviceImages) -> None:
        """Read them from ``images``."""
        self._images = images

    def __getitem__(self, index: int) -> Tensor | None:
        """Return the weights of view ``index``, (H, W) float32; None where all pixels count alike.

        Raises:
            InputError: The file is missing, truncated or corrupt, and is named.
        """
        return self._images.fetched(index).weights


class DeviceImages:
    """Photographs by view index, on a device, as bytes.

    :meth:`expect` names those that come next; one background thread decodes them and copies them, to CUDA from
    pinned memory on a stream of its own, while the views before are rendered. The least recently used leave
    when ``budget_bytes`` are spent.
    """

    def __init__(self, images: HostImages, device: torch.device, budget_bytes: int = DEVICE_BYTES) -> None:
        """Take photographs from ``images``, which must be safe to use from several threads.

        Args:
            images: On the host.
            device: Where they shall lie.
            budget_bytes: Bytes that are kept there at most; one photograph is always kept.
        """
        self._images = images
        self._weights = getattr(images, "weights", None)
        self._device = device
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[_Fetched]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="photographs")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def expect(self, views: Sequence[int]) -> None:
        """Begin to fetch ``views``, in that order; those that would push out others of them are left for later."""
        room = self._budget
        for view in dict.fromkeys(views):
            room -= self._sizes.get(view, max(self._sizes.values(), default=0))
            if room < 0:
                return
            self._fetch(view)

    @property
    def weights(self) -> DeviceWeights | None:
        """How much each pixel counts, on the device; None where all count alike."""
        return None if self._weights is None else DeviceWeights(self)

    def __getitem__(self, index: int) -> Tensor:
        """Return photograph ``index`` on the device, (H, W, 3), uint8; waits where it is still under way.

        Raises:
            InputError: The file is missing, truncated or corrupt, and is named.
        """
        return self.fetched(index).image

    def fetched(self, index: int) -> _Fetched:
        """Return photograph ``index`` with its weights, both on the device; see :meth:`__getitem__`."""
        future = self._fetch(index)
        try:
            both = future.result()
        except BaseException:
            with self._lock:
                self._kept.pop(index, None)
            raise
        if self._stream is not None:
            # The copy has ended; to wait for its stream would be to wait for the photographs that follow.
            for tensor in (both.image, *(() if both.weights is None else (both.weights,))):
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return both

    def close(self) -> None:
        """End the thread; what is under way is finished, what waits is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, view: int) -> Future[_Fetched]:
        with self._lock:
            future = self._kept.get(view)
            if future is None:
                future = self._kept[view] = self._thread.submit(self._copy, view)
            self._kept.move_to_end(view)
        return future

    def _copy(self, view: int) -> _Fetched:
        """Decode one photograph, make room for it, and put it on the device."""
        both = _Fetched(self._images[view], None if self._weights is None else self._weights[view])
        with self._lock:
            self._sizes[view] = both.size
            self._make_room(view)
        if self._stream is None:
            return both.moved(lambda tensor: tensor.to(self._device))
        with torch.cuda.stream(self._stream):
            copied = both.moved(lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
        # The pinned bytes must outlive the copy, and whoever gets it has nothing to wait for.
        self._stream.synchronize()
        return copied

    def _make_room(self, coming: int) -> None:
        """Drop the least recently used that are done, until those that are left fit."""
        held = sum(self._sizes.get(view, 0) for view in self._kept)
        for view in [view for view, future in self._kept.items() if view != coming and future.done()]:
            if held <= self._budget:
                return
            del self._kept[view]
            held -= self._sizes.get(view, 0)


class ReadAhead:
    """Decodes photographs into the cache of their store, in the order in which they will be asked for.

    Threads begin with the first view that there is something to do for. Of a capture that the cache holds whole all
    views are read; of a larger one as many as half the cache takes, so that none pushes out one that comes before it.
    What cannot be read is left for whoever asks for it.
    """

    def __init__(self, store: ImageStore, threads: int = 2) -> None:
        """Read nothing yet.

        Args:
            store: Where photographs are decoded and kept.
            threads: How many decode side by side.
        """
        self._store, self._count = store, threads
        whole = sum(source.decoded_bytes for source in store.sources)
        self._room = store.budget_bytes if whole <= store.budget_bytes else store.budget_bytes // 2
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._pending: list[int] = []
        self._closed = False

    def expect(self, views: Sequence[int]) -> None:
        """Read ``views`` next, in that order, and nothing else; waits for nothing."""
        room, pending = self._room, []
        for view in dict.fromkeys(views):
            room -= self._store.sources[view].decoded_bytes
            if room < 0:
                break
            if not self._store.has(view):
                pending.append(view)
        with self._changed:
            self._pending = pending[::-1]
            self._changed.notify_all()
        if pending and not self._threads:
            for number in range(self._count):
                self._threads.append(threading.Thread(target=self._work, name=f"reading-{number}", daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        """End the threads; what is under way is finished, what waits is dropped."""
        with self._changed:
            self._closed = True
            self._pending = []
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if self._closed:
                    return
                view = self._pending.pop()
            with contextlib.suppress(Exception):  # whoever asks for it is told
                self._store[view]


class ImagesAhead:
    """A store's photographs where they are rendered, read ahead.

    Attributes:
        images: The store itself on the CPU; for another device, those that are fetched to it.
    """

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        """Begin with nothing read.

        Args:
            store: On the host.
            device: Where they are rendered.
        """
        self._ahead = ReadAhead(store)
        self._fetched = DeviceImages(store, device) if device.type != "cpu" else None
        self.images: ImageStore | DeviceImages = self._fetched or store

    def expect(self, views: Sequence[int], later: Sequence[int] = ()) -> None:
        """Begin to fetch what comes next.

        Args:
            views: Taken to the device, where there is one.
            later: What follows, of which as much as there is room for is decoded.
        """
        if self._fetched is not None:
            self._fetched.expect(views)
        self._ahead.expect((*views, *later))

    def close(self) -> None:
        """Stop fetching and reading."""
        if self._fetched is not None:
            self._fetched.close()
        self._ahead.close()
