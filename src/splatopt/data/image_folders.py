"""Folders with other copies of a capture's photographs: ``images_2``, ``images_4``, … beside ``images``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.source import IMAGE_SUFFIXES

_ENDINGS = frozenset(suffix.lower() for suffix in IMAGE_SUFFIXES)


def named_folder(path: Path, name: str) -> Path:
    """Return the folder ``name`` of the capture ``path``, from which photographs are to be read.

    Raises:
        InputError: There is none; the message names the folders with photographs that there are.
    """
    folder = path / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"--images must name a folder inside the capture, such as images_4, got {quoted(name)}")
    if folder.is_dir():
        return folder
    there = sorted(one.name for one in path.iterdir() if one.is_dir() and _files(one))
    found = f"; there {'is' if len(there) == 1 else 'are'} {', '.join(there)}" if there else ""
    raise InputError(f"capture {short(path)} has no folder {quoted(name)} of photographs, as --images asks for{found}")


def copies(folder: Path, names: Sequence[str], warnings: list[str]) -> dict[str, Path]:
    """Return where the copy of each photograph lies in ``folder``.

    A copy has the photograph's own name, or that name with another ending, as a PNG of a JPEG has. Where no copy has
    either, as in the smaller copies of LLFF's captures (``image000.png``, …), and the folder holds as many files as
    ``images`` beside it, the n-th photograph by name is the n-th file by name. A photograph without a copy keeps its
    place under its own name, where it is missed later.

    Args:
        folder: The folder of the copies.
        names: What the capture calls its photographs.
        warnings: Gets a sentence where copies were found by their order.
    """
    found = {name: _copy(folder / name) for name in names}
    originals, here = _files(folder.parent / "images"), _files(folder)
    if not any(found.values()) and len(originals) == len(here):
        by_order = dict(zip(originals, here, strict=True))
        if all(name in by_order for name in names):
            warnings.append(
                f"the files in {folder.name} have other names than those in images; they are taken in the same order, "
                f"{quoted(names[0])} being {quoted(by_order[names[0]])}"
            )
            return {name: folder / by_order[name] for name in names}
    return {name: file or folder / name for name, file in found.items()}


def _copy(path: Path) -> Path | None:
    """The file at ``path``, or beside it with another ending of an image; None where there is neither."""
    endings = ("", *IMAGE_SUFFIXES)
    places = (path if not ending else path.with_suffix(ending) for ending in endings)
    return next((place for place in places if os.path.isfile(place)), None) if path.name else None


def _files(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(one.name for one in folder.iterdir() if one.suffix.lower() in _ENDINGS)
