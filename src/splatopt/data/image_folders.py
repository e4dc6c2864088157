"""Folders with other copies of a capture's photographs: ``images_2``, ``images_4``, … beside ``images``."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_formats import UNREAD_ENDINGS, unread_form
from splatopt.data.image_lookup import find_images, is_hidden, is_image_name
from splatopt.data.source import IMAGE_SUFFIXES, Finding, PosedImage

_UNUSED_FOLDERS = ("depth", "depths", "depth_maps", "confidence", "normal", "normals")


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
    there = sorted(one.name for one in path.iterdir() if one.is_dir() and image_files(one))
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
    originals, here = image_files(folder.parent / "images"), image_files(folder)
    if names and not any(os.path.isfile(one.path) for one in found) and len(originals) == len(here):
        by_order = dict(zip(originals, here, strict=True))
        if all(name in by_order for name in names):
            warnings.append(
                f"the files in {folder.name} have other names than those in images; they are taken in the same order, "
                f"{quoted(names[0])} being {quoted(by_order[names[0]])}"
            )
            return {name: folder / by_order[name] for name in names}
    warnings += said
    return {name: one.path for name, one in zip(names, found, strict=True)}


def in_named_folder(path: Path, views: Sequence[PosedImage], name: str, warnings: list[str]) -> list[PosedImage]:
    """Return the views of a capture that names each file, with their photographs in its folder ``name``.

    ``images/x.jpg`` lies in ``images_4/x.jpg`` then, below another ``images`` as well; where there is no such folder in
    its path, in ``images_4`` under its own name, or its whole path where photographs lie in several folders.

    Args:
        path: The capture.
        views: Its views, with the files that it names.
        name: The folder, see :func:`named_folder`.
        warnings: As of :func:`copies`.

    Raises:
        InputError: There is no such folder.
    """
    folder = named_folder(path, name)
    files = [Path(os.path.relpath(os.path.normpath(view.path), os.path.normpath(path))) for view in views]
    one_folder = len({file.parent for file in files}) == 1
    places = [_place(file, one_folder=one_folder) for file in files]
    if len(set(places)) < len(set(files)):
        raise InputError(
            f"--images {name}: two photographs of {short(path)} would be the same file in that folder; leave it out"
        )
    found = copies(folder, places, warnings)
    return [replace(view, path=found[place]) for view, place in zip(views, places, strict=True)]


def _place(file: Path, *, one_folder: bool) -> str:
    """Return where a photograph lies below the folder that stands for its own."""
    parts = file.parts
    if "images" in parts[:-1]:
        return str(Path(*parts[parts.index("images") + 1 :]))
    return file.name if one_folder or ".." in parts or file.is_absolute() else str(file)


def readable(path: Path) -> Path:
    """Return a photograph's file, or one beside it with another ending, where it is not there or not read here.

    So ``x.jpg`` or ``x.png`` stands for ``x.heic``; and ``x.heic`` for an ``x.jpg`` that is not there, to be named.
    """
    is_there = os.path.isfile(path)
    if not path.name or (is_there and (path.suffix.lower() not in UNREAD_ENDINGS or unread_form(path) is None)):
        return path
    endings = [ending for ending in IMAGE_SUFFIXES if not is_there or ending.lower() not in UNREAD_ENDINGS]
    places = (path.with_suffix(ending) for ending in endings)
    return next((place for place in places if os.path.isfile(place)), path)


def with_other_endings(views: Sequence[PosedImage], warnings: list[str]) -> list[PosedImage]:
    """Return the views with a :func:`readable` file each, so that photographs may be converted after the fact.

    A file is no other view's photograph: one that another view has, or means as well, is not taken.

    Args:
        views: Views of a capture.
        warnings: Gets a sentence where a file of another ending is taken.
    """
    own = [os.path.normpath(view.path) for view in views]
    files = [readable(view.path) for view in views]
    meant: dict[str, set[str]] = defaultdict(set)
    for file, path in zip(files, own, strict=True):
        meant[os.path.normpath(file)].add(path)
    for path in own:
        meant[path].add(path)
    files = [
        file if meant[os.path.normpath(file)] == {path} else view.path
        for view, file, path in zip(views, files, own, strict=True)
    ]
    others = [(view.path.name, file.name) for view, file in zip(views, files, strict=True) if view.path != file]
    if others:
        warnings.append(
            f"{len(others)} photographs are taken from files with another ending, such as {quoted(others[0][1])} for "
            f"{quoted(others[0][0])}"
        )
    return [replace(view, path=file) for view, file in zip(views, files, strict=True)]


def shrunk_folder(path: Path) -> str | None:
    """Return the name of that of ``images_2``, ``images_4``, … that shrinks photographs least; None without any."""
    found = [
        (int(sub.name[7:]), sub.name) for sub in path.glob("images_*") if sub.is_dir() and sub.name[7:].isdecimal()
    ]
    return min(found)[1] if found else None


def unused_folders(path: Path) -> list[Finding]:
    """Return what is said of folders of depth and the like in ``path``, one finding for all."""
    there = [name for name in _UNUSED_FOLDERS if (path / name).is_dir()]
    if not there:
        return []
    what = f"the folder{'' if len(there) == 1 else 's'} {', '.join(there)}"
    return [Finding(what, False, "splatopt trains on colours alone")]


def image_files(folder: Path) -> list[str]:
    """Return the names of the photographs directly in a folder, sorted, without hidden ones; none where it is none."""
    if not os.path.isdir(folder):  # which is False of a name that no folder can have
        return []
    return sorted(one.name for one in folder.iterdir() if has_image_ending(one.name) and not is_hidden(one.name))


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as photographs' do, those of formats that are not read everywhere included."""
    return is_image_name(name) or os.path.splitext(name)[1].lower() in UNREAD_ENDINGS
