"""When a strategy edits: gates in steps, which shrink with runs that are shorter than what they were published for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from splatopt.core.checks import InputError, check_max_count

_START_SHARE = 10
"""Editing starts at a tenth of where it ends, at the latest."""


@dataclass(frozen=True)
class EditSchedule:
    """After which steps a strategy edits: every ``every`` steps, after ``start`` and before ``until``."""

    start: int = 500
    """No edit up to this step; in short runs none up to a tenth of until. Unit: steps. Source: 3DGS."""

    until: int = 15_000
    """No edit from this step on. Unit: steps of a run of ``horizon`` steps. Source: 3DGS."""

    every: int = 100
    """Steps from one edit to the next. Unit: steps. Source: 3DGS."""

    horizon: int = 30_000
    """Steps of the run that until is meant for: a shorter one ends its edits at the same share of its steps, a longer
    one at the same step. 0 takes until as it is. Unit: steps. Source: 3DGS."""

    def __post_init__(self) -> None:
        """Refuse gates that are none."""
        for name, minimum in (("start", 0), ("until", 0), ("every", 1), ("horizon", 0)):
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
            check_max_count(name, value)

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of a run of at most ``horizon`` steps between which it edits; of all of it where horizon is 0."""
        until = min(1.0, self.until / self.horizon) if self.horizon else 1.0
        return until / _START_SHARE, until

    def of_run(self, steps: int) -> EditSchedule:
        """Return the schedule of a run of so many steps, whose ``horizon`` is 0."""
        if not 0 < steps < self.horizon:
            return self._with(self.start, self.until)
        until = round(self.until * steps / self.horizon)
        return self._with(min(self.start, until // _START_SHARE), until)

    def _with(self, start: int, until: int) -> EditSchedule:
        own = {field.name: getattr(self, field.name) for field in fields(EditSchedule)}
        return replace(EditSchedule(**own), start=start, until=until, horizon=0)

    @property
    def first(self) -> int | None:
        """Steps before the first edit; None where there is none at all."""
        step = (self.start // self.every + 1) * self.every
        return step if step < self.until else None

    def is_due(self, step: int) -> bool:
        """Whether there is an edit after ``step`` steps."""
        return self.start < step < self.until and step % self.every == 0
