"""Levels of coarse to fine, as ``4:300,2:900`` says: by how much photographs are shrunk, and until which step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from splatopt.core.checks import InputError, quoted

_WHOLE = re.compile(r"[0-9]{1,18}")

_MAX_FACTOR = 1024
"""By which photographs are shrunk at most; those of 12 megapixels have 4 x 3 pixels then."""


@dataclass(frozen=True)
class Level:
    """A part of a run on smaller photographs.

    Attributes:
        factor: How many times shorter their sides are.
        end: Steps of the run after it.
    """

    factor: int
    end: int


def parse_levels(text: str) -> tuple[Level, ...]:
    """Return the levels that ``text`` names, as FACTOR:UNTIL_STEP,FACTOR:UNTIL_STEP; none for an empty text.

    Raises:
        InputError: A part has another form, a factor is below 2, or factors do not fall or steps not rise.
    """
    levels: list[Level] = []
    for number, part in enumerate(text.split(",") if text.strip() else (), start=1):
        factor, colon, end = (word.strip() for word in part.partition(":"))
        if not (colon and _WHOLE.fullmatch(factor) and _WHOLE.fullmatch(end)):
            raise InputError(
                f"level {number} of --levels must be FACTOR:UNTIL_STEP, got {quoted(part.strip())}; write for example "
                "4:300,2:900"
            )
        level, before = Level(int(factor), int(end)), levels[-1] if levels else None
        if not 2 <= level.factor <= _MAX_FACTOR:
            raise InputError(f"factors of --levels must lie between 2 and {_MAX_FACTOR}, got {quoted(text)}")
        if level.end <= (before.end if before else 0) or (before and level.factor >= before.factor):
            raise InputError(
                f"the factors of --levels must fall and its steps rise, got {quoted(text)}; write for example "
                "4:300,2:900"
            )
        levels.append(level)
    return tuple(levels)


def written_levels(levels: Sequence[Level]) -> str:
    """Return the text that :func:`parse_levels` reads."""
    return ",".join(f"{level.factor}:{level.end}" for level in levels)


def factor_at(levels: tuple[Level, ...], step: int) -> int:
    """Return by how much photographs are shrunk in the step after ``step`` steps; 1 for not at all."""
    return next((level.factor for level in levels if step < level.end), 1)
