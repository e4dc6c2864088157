"""What runs of any kind tell those who listen: one dataclass per kind of event."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
