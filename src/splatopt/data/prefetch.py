"""Photographs on a device: copied there by a thread of its own before they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

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
