"""What people at the page ask for, and which image is to be rendered next."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from splatopt.core.camera import Camera
from splatopt.viewer.eyes import Eye
from splatopt.viewer.splats import Thresholds

HEIGHTS = (120, 360)
"""Of the image for the viewed camera, pixels: first a small one, then this once the camera rests."""


@dataclass(frozen=True)
class Order:
    """An image that is to be rendered.

    Attributes:
        camera: Through which.
        view: The capture's view that it is compared with; None for the viewed camera.
        eye: The viewed camera; None for a view of the capture.
    """

    camera: Camera
    view: int | None = None
    eye: Eye | None = None


class Orders:
    """Set by clicks and moves on the page's threads, looked at by whoever renders.

    Attributes:
        paused: Whether training is to wait.
        stopped: Whether it is to end.
    """

    def __init__(self) -> None:
        self.paused = self.stopped = False
        self._lock = threading.Lock()
        self._eye: Eye | None = None
        self._stage = len(HEIGHTS)
        self._view: Order | None = None
        self._thresholds, self._new_thresholds = Thresholds(), False

    def look(self, eye: Eye) -> None:
        """Somebody moved: what is seen from there is asked for."""
        with self._lock:
            if eye.is_usable and eye != self._eye:
                self._eye, self._stage = eye, 0

    def look_again(self) -> None:
        """What is seen from the same place is asked for once more, unless it is to be rendered anyway."""
        with self._lock:
            self._stage = min(self._stage, len(HEIGHTS) - 1)

    def compare(self, view: int, camera: Camera) -> None:
        """A view of the capture is asked for."""
        with self._lock:
            self._view = Order(camera, view)

    def show(self, thresholds: Thresholds) -> None:
        """Other Gaussians are to be shown."""
        with self._lock:
            self._new_thresholds |= thresholds != self._thresholds
            self._thresholds = thresholds

    @property
    def thresholds(self) -> Thresholds:
        """Which Gaussians are shown."""
        return self._thresholds

    def take_new_thresholds(self) -> bool:
        """Return whether these have changed since this was asked last."""
        with self._lock:
            changed, self._new_thresholds = self._new_thresholds, False
            return changed

    def next(self) -> Order | None:
        """Return what is to be rendered now: a view that was clicked, then the viewed camera, small and then larger."""
        with self._lock:
            if self._view is not None:
                return self._view
            if self._eye is None or self._stage >= len(HEIGHTS):
                return None
            return Order(self._eye.camera(HEIGHTS[self._stage]), eye=self._eye)

    def done(self, order: Order) -> None:
        """Take an order off, unless something else was asked for meanwhile."""
        with self._lock:
            if order is self._view:
                self._view = None
            elif order.eye is not None and order.eye == self._eye and self._stage < len(HEIGHTS):
                self._stage += order.camera.height == HEIGHTS[self._stage]
