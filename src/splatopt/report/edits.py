"""The edits that a run tells of in ``density.jsonl``, for looking at: what is damaged is left out and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.reading import AbsentFileError, DamagedFileError, read_bounded
from splatopt.runs.records import edit_line

MAX_EDITS = 100_000
"""Lines that are read at most."""

MAX_POSITIONS = 64
"""Positions of added and of removed Gaussians that are taken of a line, at most."""

_MAX_BYTES = 256 << 20

Position = tuple[float, float, float]


@dataclass(frozen=True)
class Edit:
    """One edit of a scene's rows by its density strategy.

    Attributes:
        step: Optimizer steps that were done. Unit: steps.
        added: Gaussians that it added.
        removed: Gaussians that it removed.
        gaussians: How many there are after it.
        added_at: Where some of the added ones are, in the capture's own frame.
        removed_at: Where some of the removed ones were, likewise.
    """

    step: int
    added: int
    removed: int
    gaussians: int
    added_at: tuple[Position, ...] = ()
    removed_at: tuple[Position, ...] = ()


@dataclass(frozen=True)
class Edits:
    """What ``density.jsonl`` holds.

    Attributes:
        edits: Those that could be read, in their order.
        unread: What could not be, in a sentence; empty where all was.
    """

    edits: tuple[Edit, ...] = ()
    unread: str = ""


def told_edits(path: Path) -> Edits:
    """Return the edits that a run tells of; none where there is no file, or none that can be read.

    A last line without an end was cut short by a kill, which is no damage.
    """
    try:
        *lines, _ = read_bounded(path, _MAX_BYTES).split(b"\n")
    except AbsentFileError:
        return Edits()
    except DamagedFileError as error:
        return Edits(unread=str(error))
    edits, first = [], ""
    for number, line in enumerate(lines[:MAX_EDITS], start=1):
        try:
            edits.append(_edit(line, f"{path.name}, line {number}"))
        except InputError as error:
            first = first or f": {error}"
    left_out = len(lines) - len(edits)
    unread = f"{left_out} of {len(lines)} lines of {path.name} are left out" if left_out else ""
    return Edits(tuple(edits), f"{unread}{first}")


def _edit(line: bytes, where: str) -> Edit:
    values = edit_line(line, where)
    counts = {name: values[name] for name in ("step", "added", "removed", "gaussians")}
    added, removed = ([(x, y, z) for x, y, z in values[name][:MAX_POSITIONS]] for name in ("added_at", "removed_at"))
    return Edit(**counts, added_at=_floats(added), removed_at=_floats(removed))


def _floats(positions: list[Position]) -> tuple[Position, ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in positions)
