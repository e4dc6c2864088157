"""Photographs on a device: copied there by a thread of its own before they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._device = device
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[Tensor]] = OrderedDict()
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

    def __getitem__(self, index: int) -> Tensor:
        """Return photograph ``index`` on the device, (H, W, 3), uint8; waits where it is still under way.

        Raises:
            InputError: The file is missing, truncated or corrupt, and is named.
        """
        future = self._fetch(index)
        try:
            image = future.result()
        except BaseException:
            with self._lock:
                self._kept.pop(index, None)
            raise
        if self._stream is not None:
            # The copy has ended; to wait for its stream would be to wait for the photographs that follow.
            image.record_stream(torch.cuda.current_stream(self._device))
        return image

    def close(self) -> None:
        """End the thread; what is under way is finished, what waits is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, view: int) -> Future[Tensor]:
        with self._lock:
            future = self._kept.get(view)
            if future is None:
                future = self._kept[view] = self._thread.submit(self._copy, view)
            self._kept.move_to_end(view)
        return future

    def _copy(self, view: int) -> Tensor:
        """Decode one photograph, make room for it, and put it on the device."""
        image = self._images[view]
        with self._lock:
            self._sizes[view] = image.numel()
            self._make_room(view)
        if self._stream is None:
            return image.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = image.pin_memory().to(self._device, non_blocking=True)
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
