"""One measured number, with what is needed to judge it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One number with what is needed to judge it.

    Attributes:
        name: Stable key.
        value: The number.
        unit: Its unit.
        better: "lower" or "higher".
        bar: What it must reach, or None where it is only recorded.
        gated: Whether it is a ratio within one run, to be compared with the committed baseline.
    """

    name: str
    value: float
    unit: str
    better: str
    bar: float | None = None
    gated: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar
