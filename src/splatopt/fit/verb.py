"""``splatopt.fit(…)``: fitting a field in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from splatopt.fit.config import FitConfig
from splatopt.fit.events import FitCallback, FitProgress
from splatopt.fit.loop import FitResult, fit_field
from splatopt.fit.settings import FitSettings


def fit(
    target: Path | str, *, callbacks: Sequence[FitCallback] | None = None, **settings: Unpack[FitSettings]
) -> FitResult:
    """Fit a neural field to an image, a mesh or a capture, and leave a run's folder.

    Args:
        target: A picture's file, a mesh's file, or the folder of a capture.
        callbacks: Called with every event of the run; a line of progress when None.
        **settings: Settings of :class:`FitConfig`, such as ``field``, ``optimizer``, ``epochs`` and ``out``.

    Returns:
        The field, its scores before and after, and where it lies.

    Raises:
        InputError: Something that was given cannot be used.
    """
    callbacks = (FitProgress(),) if callbacks is None else callbacks
    return fit_field(FitConfig.of(target, **settings), callbacks)
