"""Training a scene: configuration, the loop, evaluation; ``splatopt.train(capture, …)`` does it in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from splatopt.core.verbs import make_callable


def _load() -> Callable[..., Any]:
    from splatopt.train.verb import train

    return train


make_callable(__name__, _load)
