"""Levels of resolution, as ``4:300,2:900`` says: photographs and cameras shrunk by 4 until step 300, by 2 until 900."""

from __future__ import annotations

import re
from dataclasses import dataclass

from splatopt.core.checks import InputError, quoted

_LEVEL = re.compile(r"([0-9]{1,4}):([0-9]{1,18})")


@dataclass(frozen=True)
class Level:
    """A stretch of a run that sees smaller photographs.

    Attributes:
        factor: How many times smaller they are, at least 2.
        until: Steps of the run after which it ends.
    """

    factor: int
    until: int


def parse_levels(text: str) -> tuple[Level, ...]:
    """Return the levels that ``text`` names, as FACTOR:UNTIL_STEP,…; none for an empty text.

    Raises:
        InputError: A part has another form, or factors do not fall and steps rise from one to the next.
    """
    levels: list[Level] = []
    for part in text.split(",") if text else ():
        found = _LEVEL.fullmatch(part.strip())
        level = Level(int(found[1]), int(found[2])) if found else None
        before = levels[-1] if levels else None
        if (
            level is None
            or min(level.factor - 1, level.until) < 1
            or (before and not (level.factor < before.factor and level.until > before.until))
        ):
            raise InputError(
                f"--levels must be FACTOR:UNTIL_STEP,… with factors of at least 2 that fall and steps that rise, got "
                f"{quoted(part.strip())} in {quoted(text)}; write for example 4:300,2:900"
            )
        levels.append(level)
    return tuple(levels)


def written_levels(levels: tuple[Level, ...]) -> str:
    """Return the text that :func:`parse_levels` reads."""
    return ",".join(f"{level.factor}:{level.until}" for level in levels)


def factor_at(levels: tuple[Level, ...], step: int) -> int:
    """Return how many times smaller the photographs of the step after ``step`` steps are."""
    return next((level.factor for level in levels if step < level.until), 1)
