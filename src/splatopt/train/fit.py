"""Training in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from splatopt.core.checks import InputError, nearest_names
from splatopt.train.config import TrainConfig
from splatopt.train.events import Callback
from splatopt.train.loop import TrainResult, train
from splatopt.train.progress import ProgressLine


def fit(
    capture: Path | str,
    *,
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a scene from a capture and leave a run's folder.

    Args:
        capture: Folder of the capture.
        callbacks: Called with every event of the run; a line of progress when None.
        **settings: Fields of :class:`TrainConfig`, such as ``steps``, ``optimizer``, ``downscale`` and ``out``.

    Returns:
        The trained scene, its scores before and after, and where it lies.

    Raises:
        InputError: Something that was given cannot be used.
    """
    known = {item.name for item in fields(TrainConfig)} - {"capture"}
    for name in settings:
        if name not in known:
            raise InputError(f"there is no setting {name!r}; {nearest_names(name, known)}")
    if settings.get("out") is not None:
        settings["out"] = Path(settings["out"])
    callbacks = (ProgressLine(),) if callbacks is None else callbacks
    return train(TrainConfig(capture=str(capture), **settings), callbacks)
