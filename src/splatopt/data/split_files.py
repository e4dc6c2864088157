"""A capture's own split in text files: ``test.txt`` and ``train.txt``, one view a line, as 3DGS reads the former."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_lookup import first_names, name_key, without_ending
from splatopt.data.source import Finding
from splatopt.data.text_files import text_lines


@dataclass(frozen=True)
class SplitFiles:
    """What the files of a split say.

    Attributes:
        name: What the split is called; empty where there is none.
        parts: ``train`` or ``test`` for each view that has a side; empty where there is no split.
        found: The files, used or not.
    """

    name: str
    parts: Mapping[str, str]
    found: tuple[Finding, ...]


def read_split(path: Path, model: Path, names: Sequence[str], warnings: list[str]) -> SplitFiles:
    """Return what ``test.txt`` and ``train.txt`` beside the model, or in the capture, say of the views.

    Where there is one of them alone, the other views are on the other side; where there are both, a view that neither
    names has none.

    Args:
        path: The capture.
        model: The folder of its model.
        names: Its views.
        warnings: Gets a sentence where a file names images that are no views.

    Raises:
        InputError: A view is named by both, or a file cannot be read.
    """
    parts: dict[str, str] = {}
    found: list[Finding] = []
    used: list[str] = []
    places = [place for place in dict.fromkeys((model, model.parent, path)) if place == path or path in place.parents]
    for part in ("test", "train"):
        file = next((one for place in places if (one := place / f"{part}.txt").is_file()), None)
        if file is None:
            continue
        where = str(file.relative_to(path))
        lines = list(dict.fromkeys(line for one in text_lines(file) if (line := one.strip()) and line[0] != "#"))
        fitting = named_views(lines, names)
        if not fitting:
            found.append(Finding(where, False, "it names no view of the capture"))
            continue
        if lacking := [line for line in lines if line not in fitting]:
            warnings.append(f"{where} names {len(lacking)} images that are no views: {first_names(lacking)}")
        views = set(fitting.values())
        if both := views & parts.keys():
            raise InputError(f"{short(file)} and test.txt both name {quoted(min(both))}; remove it from one of them")
        parts |= dict.fromkeys(sorted(views), part)
        used.append(file.name)
        what = "held out" if part == "test" else "trained on"
        found.append(
            Finding(where, True, f"{'its view is' if len(views) == 1 else f'its {len(views)} views are'} {what}")
        )
    if len(used) == 1:
        other = "train" if used == ["test.txt"] else "test"
        parts = {name: parts.get(name, other) for name in names}
    return SplitFiles(" and ".join(used), parts, tuple(found))


def named_views(lines: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the view that each line means, by its line; a line that means none or several is left out.

    It means the view of this name, else the one whose name differs by separators, case, Unicode form or the ending,
    else the one whose file is called so.
    """
    keys: tuple[Callable[[str], str], ...] = (
        str,
        lambda name: name_key(without_ending(name)),
        lambda name: name_key(without_ending(name)).split("/")[-1],
    )
    found: dict[str, str] = {}
    for key in keys:
        views: dict[str, set[str]] = {}
        for name in names:
            views.setdefault(key(name), set()).add(name)
        for line in lines:
            if line not in found and len(fitting := views.get(key(line), set())) == 1:
                found[line] = next(iter(fitting))
    return found
