"""What a run writes beside its checkpoints, read again and checked: eval.json and metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.reading import AbsentFileError, DamagedFileError, parse_json, read_bounded, read_object
from splatopt.core.typed import Fields, Json

_MAX_METRICS_BYTES = 1 << 30
_MAX_POSITIONS = 1000
_TEXTS = ("protocol", "split", "subset", "task", "optimizer")
_COUNTS = ("step", "steps", "gaussians")
_NON_NEGATIVE = ("seconds", "epoch", "memory_mb")
_OF_VIEW = ("name", "psnr", "ssim")
_OF_RIGHT_HALF = ("name", "psnr", "plain_psnr")
_NUMBERS = ("psnr", "plain_psnr", "ssim", "iou", "loss", "test_psnr", "test_ssim")


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
                _check_views(scores, _OF_VIEW)
            if "fitted" in scores:
                _check_entries(scores.object("fitted"))
                _check_views(scores.object("fitted"), _OF_RIGHT_HALF)
    except InputError as error:
        raise DamagedFileError(
            f"{error}; have the scores written anew with splatopt eval or, of a fit, delete the file"
        ) from error
    return {name: value for name, value in values.items() if value is not None}


def _check_views(record: Fields, names: tuple[str, ...]) -> None:
    for view in record.objects("views"):
        if set(view.values) - {"counted"} != set(names):
            raise record.refusal("views", f"{', '.join(names[:-1])} and {names[-1]} of each")
        view.text("name")
        for name in (*names[1:], *(("counted",) if "counted" in view else ())):
            view.number(name)


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
    return _whole_lines(path, _metrics_line)


def _whole_lines(path: Path, read: Callable[[bytes, str], dict[str, Json]]) -> list[dict[str, Json]]:
    try:
        *lines, _ = read_bounded(path, _MAX_METRICS_BYTES).split(b"\n")
    except AbsentFileError:
        return []
    return [read(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def read_edits(path: Path) -> list[dict[str, Json]]:
    """Return the whole lines of ``density.jsonl`` in order; none where there is no file.

    Each has ``step``, ``added``, ``removed`` and ``gaussians``, and the positions of some that were added and removed,
    ``added_at`` and ``removed_at``, in the capture's own frame. A last line that was cut short is left out.

    Raises:
        InputError: A line is damaged; names it.
    """
    return _whole_lines(path, edit_line)


def edit_line(line: bytes, where: str) -> dict[str, Json]:
    """Return what a line of ``density.jsonl`` holds; raises InputError where it is damaged."""
    try:
        record = Fields(parse_json(line, where), where)
        for name in ("step", "added", "removed", "gaussians"):
            record.count(name)
        for name in ("added_at", "removed_at"):
            for position in record.entries(name, _MAX_POSITIONS):
                if len(Fields({name: position}, where).entries(name, 3)) != 3:
                    raise record.refusal(name, "positions of three numbers")
                for number in position:
                    Fields({name: number}, where).any_number(name)
    except InputError as error:
        raise DamagedFileError(f"{error}; delete this line to leave it out") from error
    return record.values


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
