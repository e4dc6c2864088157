"""Fitting neural fields: configuration, the loop, scores; ``splatopt.fit(target, …)`` does it in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from splatopt.core.verbs import make_callable


def _load() -> Callable[..., Any]:
    from splatopt.fit.verb import fit

    return fit


make_callable(__name__, _load)
