"""``splatopt.train(…)``: training in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from splatopt.train import loop
from splatopt.train.config import TrainConfig
from splatopt.train.events import Callback
from splatopt.train.progress import ProgressLine
from splatopt.train.result import TrainResult
from splatopt.train.settings import TrainSettings


def train(
    capture: Path | str,
    *,
    callbacks: Sequence[Callback] | None = None,
    **settings: Unpack[TrainSettings],
) -> TrainResult:
    """Train a scene from a capture and leave a run's folder.

    Args:
        capture: Folder of the capture.
        callbacks: Called with every event of the run; a line of progress when None.
        **settings: Settings of :class:`TrainConfig`, such as ``minutes`` or ``steps``, ``optimizer`` and ``out``.

    Returns:
        The trained scene, its scores before and after, and where it lies.

    Raises:
        InputError: Something that was given cannot be used.
    """
    callbacks = (ProgressLine(),) if callbacks is None else callbacks
    return loop.train(TrainConfig.of(capture, **settings), callbacks)
