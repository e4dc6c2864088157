"""What a run writes beside its checkpoints, read again and checked: eval.json, metrics.jsonl, density.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.reading import AbsentFileError, DamagedFileError, parse_json, read_bounded, read_object
from splatopt.core.typed import Fields, Json

_MAX_METRICS_BYTES = 1 << 30
_MAX_DENSITY_BYTES = 256 << 20
MAX_EDITS = 100_000
"""Lines of ``density.jsonl`` that are read at most."""

MAX_POSITIONS = 64
"""Positions of added and of removed Gaussians that are read of a line, at most."""

_TEXTS = ("protocol", "split", "subset", "task", "optimizer")
_COUNTS = ("step", "steps", "gaussians")
_NON_NEGATIVE = ("seconds", "epoch", "memory_mb")
_OF_VIEW = {"name", "psnr", "ssim"}
_NUMBERS = ("psnr", "ssim", "iou", "loss", "test_psnr", "test_ssim")


def read_evaluation(path: Path) -> dict[str, Json]:
    """Return what ``eval.json`` holds, of a scene or of a field; empty where there is none.

    Raises:
        InputError: It is damaged; says how to have it written anew.
    """
    try:
        values = read_object(path)
        if values is None:
            return {}
        record = Fields(values, str(path))
        for scores in (record, record.object("before")) if "before" in record else (record,):
            _check_entries(scores)
            # A scene's are of views, a field's of all at once.
            if "views" in scores.values or (scores is not record and "task" not in record):
                _check_views(scores)
    except InputError as error:
        raise DamagedFileError(
            f"{error}; have the scores written anew with splatopt eval or, of a fit, delete the file"
        ) from error
    return {name: value for name, value in values.items() if value is not None}


def _check_views(record: Fields) -> None:
    for view in record.objects("views"):
        if set(view.values) != _OF_VIEW:
            raise record.refusal("views", "name, psnr and ssim of each")
        view.text("name")
        view.number("psnr")
        view.number("ssim")


def _check_entries(record: Fields) -> None:
    """Check what is there, by its name; what has no value has none."""
    for name in record.values:
        if name not in record:
            continue
        if name in _TEXTS:
            record.text(name)
        elif name in _COUNTS:
            record.count(name)
        elif name in _NON_NEGATIVE:
            record.number(name, minimum=0)
        elif name in _NUMBERS or name.startswith("score_"):
            record.any_number(name)


def read_metrics(path: Path) -> list[dict[str, Json]]:
    """Return the whole lines of a metrics file in order; none where there is no file.

    A last line without an end was cut short by a kill, and is left out.

    Raises:
        InputError: A line is damaged; names it.
    """
    try:
        *lines, _ = read_bounded(path, _MAX_METRICS_BYTES).split(b"\n")
    except AbsentFileError:
        return []
    return [_metrics_line(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _metrics_line(line: bytes, where: str) -> dict[str, Json]:
    try:
        record = Fields(parse_json(line, where), where)
        record.count("step")
        for name, value in record.values.items():
            if not isinstance(value, str | int | float):
                raise record.refusal(name, "a number or a text")
        _check_entries(record)
    except InputError as error:
        raise DamagedFileError(f"{error}; delete this line to leave it out") from error
    return record.values


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
    added_at: tuple[tuple[float, float, float], ...] = ()
    removed_at: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Edits:
    """What ``density.jsonl`` holds.

    Attributes:
        edits: Those that could be read, in their order.
        unread: What could not be, in a sentence; empty where all was.
    """

    edits: tuple[Edit, ...] = ()
    unread: str = ""


def read_edits(path: Path) -> Edits:
    """Return the edits that a run's ``density.jsonl`` tells of; none where there is no file.

    The file is for looking at alone, so that lines that are damaged are left out and counted. A last line without an
    end was cut short by a kill.
    """
    try:
        *lines, _ = read_bounded(path, _MAX_DENSITY_BYTES).split(b"\n")
    except AbsentFileError:
        return Edits()
    except DamagedFileError as error:
        return Edits(unread=str(error))
    edits, first = [], ""
    for number, line in enumerate(lines[:MAX_EDITS], start=1):
        try:
            edits.append(_edit(line, f"{path.name}, line {number}"))
        except InputError as error:
            first = first or str(error)
    left_out = len(lines) - len(edits)
    unread = f"{left_out} of {len(lines)} lines of {path.name} are left out" if left_out else ""
    return Edits(tuple(edits), f"{unread}: {first}" if unread and first else unread)


def _edit(line: bytes, where: str) -> Edit:
    record = Fields(parse_json(line, where), where)
    counts = {name: record.count(name) for name in ("step", "added", "removed", "gaussians")}
    return Edit(**counts, added_at=_positions(record, "added_at"), removed_at=_positions(record, "removed_at"))


def _positions(record: Fields, name: str) -> tuple[tuple[float, float, float], ...]:
    """The positions of an edit, those of them that a page draws."""
    found = []
    for entry in record.entries(name)[:MAX_POSITIONS] if name in record else ():
        if not isinstance(entry, list) or len(entry) != 3:
            raise record.refusal(name, "a list of positions of three numbers")
        x, y, z = (Fields({name: value}, record.where).any_number(name) for value in entry)
        found.append((x, y, z))
    return tuple(found)
