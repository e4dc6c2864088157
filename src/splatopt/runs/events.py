"""What runs of any kind tell those who listen: one dataclass per kind of event."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.runs.config import RunConfig


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on.

    Attributes:
        config: What it was told, resolved.
        step: Steps done already; 0 for a new run.
    """

    config: RunConfig
    step: int


@dataclass(frozen=True)
class RunStepped:
    """One step was taken.

    Attributes:
        step: Steps done, this one included.
        steps: Steps planned.
        seconds: Seconds of training so far, without evaluation.
        loss: Loss where the step started.
    """

    step: int
    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint of ``step`` was written to ``folder``."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Warned:
    """Something went wrong that the run survives; one sentence."""

    message: str


@dataclass(frozen=True)
class Ended:
    """The run takes no more steps: it is finished, was stopped or failed."""
