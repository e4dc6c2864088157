"""Whether training still improves: the loss of the training views, in means over stretches of steps.

Single losses say little, since each step sees other views. A stretch sees every training view at least once, so that
stretches compare.
"""

from __future__ import annotations

import math

from splatopt.train.plan_memory import PlateauMemory

_PATIENCE = 6
"""Stretches that may pass without a new lowest mean."""

_GAIN = 0.003
"""A mean counts as lower where it is by this share."""

_MIN_STEPS = 50
"""Of a stretch."""

_MIN_SHARE = 0.15
"""The patience lasts for at least this share of the steps so far."""


class Plateau:
    """Takes in losses and says when they have stopped falling."""

    def __init__(self, epoch: int, memory: PlateauMemory | None = None) -> None:
        """Begin without a loss, or go on.

        Args:
            epoch: Steps in which every training view is seen once.
            memory: What was taken in before.
        """
        memory = memory or PlateauMemory()
        self._length = epoch * math.ceil(_MIN_STEPS / epoch)
        self._sum, self._count = memory.total, memory.count
        self._lowest, self._since = math.inf if memory.lowest is None else memory.lowest, memory.since

    @property
    def memory(self) -> PlateauMemory:
        """What was taken in so far."""
        lowest = self._lowest if math.isfinite(self._lowest) else None
        return PlateauMemory(self._sum, self._count, lowest, self._since)

    def add(self, loss: float) -> None:
        """Take in the loss of one step."""
        self._sum += loss
        self._count += 1
        if self._count < self._length:
            return
        mean, self._sum, self._count = self._sum / self._count, 0.0, 0
        if mean < (1 - _GAIN) * self._lowest:
            self._lowest, self._since = mean, 0
        else:
            self._since += 1

    def is_reached(self, step: int) -> bool:
        """Whether the loss has not fallen for long, after ``step`` steps of the run."""
        return self._since >= max(_PATIENCE, _MIN_SHARE * step / self._length)
