"""Folders with other copies of a capture's photographs: ``images_2``, ``images_4``, … beside ``images``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_lookup import find_images, is_image_name


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
    """Return where the copy of each image lies in ``folder``.

    A copy has the image's own name, or that name with another ending, as a PNG of a JPEG has. Where no copy has
    either, as in the smaller copies of LLFF's captures (``image000.png``, …), and the folder holds as many files as
    ``images`` beside it, the n-th image by name is the n-th file by name. An image without a copy keeps its
    place under its own name, where it is missed later.

    Args:
        folder: The folder of the copies.
        names: What the capture calls its images.
        warnings: Gets a sentence where copies were found by their order, or lie under other names.
    """
    said: list[str] = []
    found = find_images(folder, names, said)
    originals, here = _files(folder.parent / "images"), _files(folder)
    if not any(os.path.isfile(one.path) for one in found) and len(originals) == len(here):
        by_order = dict(zip(originals, here, strict=True))
        if all(name in by_order for name in names):
            warnings.append(
                f"the files in {folder.name} have other names than those in images; they are taken in the same order, "
                f"{quoted(names[0])} being {quoted(by_order[names[0]])}"
            )
            return {name: folder / by_order[name] for name in names}
    warnings += said
    return {name: one.path for name, one in zip(names, found, strict=True)}


def has_images(folder: Path) -> bool:
    """Whether image files lie directly in a folder."""
    return bool(_files(folder))


def _files(folder: Path) -> list[str]:
    """Names of the image files directly in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(one.name for one in folder.iterdir() if is_image_name(one.name))
