r"""Where the images lie that a file of poses names: under those names, or under such as another system would write.

Windows writes ``\`` for ``/`` and sees no difference between ``.JPG`` and ``.jpg``; macOS may store ``é`` as two
characters; tools copy folders elsewhere and convert images. A file under such another name is taken where it alone
fits, and that is said.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splatopt.core.checks import cut, quoted, short
from splatopt.data.source import IMAGE_SUFFIXES, Finding, PosedImage

_ENDINGS = frozenset(suffix.lower() for suffix in IMAGE_SUFFIXES)
_MAX_NAMES = 3
_MAX_PARTS = 32
"""Folders and file at the end of a name that are looked at, should it not lead to a file as it is."""

_LATIN = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}
"""Python's surrogates of bytes that are no UTF-8, see os.fsdecode, and the characters of Latin-1."""


@dataclass(frozen=True)
class NamedImage:
    """What a file of poses calls an image, and where it lies.

    Attributes:
        name: With ``/`` between folders, where no file has the name as it was given.
        path: Where the image is, or should be.
        is_exact: Whether it is there under the name that was given.
    """

    name: str
    path: Path
    is_exact: bool


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as images' names do."""
    return os.path.splitext(name)[1].lower() in _ENDINGS


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, as ``._x.jpg`` is, which macOS writes beside ``x.jpg`` on disks of other systems."""
    return name.startswith(".")


def name_key(name: str) -> str:
    """Return what two names have in common that differ by separators, case, Unicode form or a leading ``./``.

    Bytes that are no UTF-8 are taken for Latin-1, as older systems wrote names.
    """
    text = unicodedata.normalize("NFD", "/".join(_parts(name)).translate(_LATIN)).casefold()
    return unicodedata.normalize("NFD", text)


def without_ending(name: str) -> str:
    """Return a name without the ending of an image, if it has one."""
    return os.path.splitext(name)[0] if is_image_name(name) else name


def with_slashes(name: str) -> str:
    r"""Return a name with ``/`` for ``\``, and without a leading ``./``."""
    return name.replace("\\", "/").removeprefix("./")


def first_names(names: Sequence[str]) -> str:
    """Return the first few of some names, for a message."""
    return ", ".join(cut(name) for name in names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")


def find_images(
    folder: Path, names: Sequence[str], warnings: list[str], what: str = "images", taken: Sequence[Path] = ()
) -> list[NamedImage]:
    """Return where the images of these names lie, those that are not there included.

    A name is taken as it is, with or without an ending. Where there is no such file, one whose name differs by
    separators, case, Unicode form, leading folders or the ending is taken, but only if a single file fits, and no
    other name means that file. Such a file always lies below ``folder``, wherever the name may lead.

    Args:
        folder: What the names are relative to.
        names: As the file of poses gives them.
        warnings: Gets one sentence where images lie under other names.
        what: What they are, for that sentence.
        taken: Files that are something else, and are meant by no other name than their own.
    """
    exact = [_exactly(folder, name) for name in names]
    tidy = [name.removeprefix("./") if path else with_slashes(name) for name, path in zip(names, exact, strict=True)]
    found = list(exact)
    if None in exact:
        listings = _Listings()
        similar = [path or listings.similar(folder, name) for name, path in zip(names, exact, strict=True)]
        others = {os.path.normpath(path) for path in taken}
        similar = [None if path and os.path.normpath(path) in others else path for path in similar]
        found = [path or guess for path, guess in zip(exact, _unshared(tidy, exact, similar), strict=True)]
        other = [(name, path) for name, sure, path in zip(names, exact, found, strict=True) if path and not sure]
        if other:
            name, path = other[0]
            warnings.append(
                f"{len(other)} of {len(names)} {what} lie under other names than the capture gives them, such as "
                f"{quoted(name)} at {quoted(path.relative_to(folder))}; they are used"
            )
    return [
        NamedImage(name, path or _expected(folder, given), sure is not None)
        for given, name, sure, path in zip(names, tidy, exact, found, strict=True)
    ]


def _unshared(names: Sequence[str], exact: Sequence[Path | None], found: Sequence[Path | None]) -> list[Path | None]:
    """Return the files that were found, without those that another name has, or means as well."""
    meant: dict[str, set[str]] = defaultdict(set)
    owned: dict[str, set[str]] = defaultdict(set)
    for name, sure, path in zip(names, exact, found, strict=True):
        if path:
            (owned if sure else meant)[os.path.normpath(path)].add(name)
    meant |= owned
    return [
        path if path and meant[os.path.normpath(path)] == {name} else None
        for name, path in zip(names, found, strict=True)
    ]


def unregistered(folder: Path, used: Sequence[Path], others: Sequence[Path] = ()) -> list[Finding]:
    """Return what is said of the images in the folders of a capture's views that no view uses, one finding for all.

    Looked at are the folder that holds all views, with its subfolders, or, where that is the capture's own, those in
    which views lie. Masks are left aside.

    Args:
        folder: The capture.
        used: The images of its views.
        others: Files that the capture names for something else.
    """
    views = {os.path.abspath(one) for one in used}
    known = views | {os.path.abspath(one) for one in others}
    root = os.path.abspath(folder)
    places = {os.path.dirname(one) for one in views}
    places = {place for place in places if place == root or place.startswith(os.path.join(root, ""))}
    common = os.path.commonpath(list(places)) if places else root
    there: set[str] = set()
    for place in sorted(places) if common == root else [common]:
        for below, folders, files in os.walk(place):
            folders[:] = [name for name in folders if not _is_aside(name)] if place != root else []
            there |= {os.path.join(below, name) for name in files if is_image_name(name) and not _is_aside(name)}
    left = sorted(os.path.relpath(path, root) for path in there - known)
    if not left:
        return []
    what = f"{len(left)} of {len(there)} images beside those of the views ({first_names(left)})"
    return [Finding(what, False, "the capture has no pose for them")]


def _is_aside(name: str) -> bool:
    """Whether a file or folder among the images is hidden, or says that it is a mask."""
    return is_hidden(name) or "mask" in name.lower()


def none_there(folder: Path, images: Sequence[PosedImage]) -> str:
    """Return the sentence that says that a capture of which no image is there has none."""
    first = images[0].path
    places = {image.path.parent for image in images}
    where = short(first.parent) if len(places) == 1 else short(folder)
    what = f"none of the {len(images)} images that the capture names is" if len(images) > 1 else "its one image is not"
    return f"{what} in {where}; looked for {quoted(images[0].name)} at {short(first)}; put the images there"


def _exactly(folder: Path, name: str) -> Path | None:
    """The file of this name, or of this name and an ending where it has none."""
    path = folder / name
    if not path.name:
        return None
    if os.path.isfile(path):  # which is False of a name that no file can have
        return path
    if is_image_name(name):
        return None
    candidates = (path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES)
    return next((one for one in candidates if os.path.isfile(one)), None)


def _expected(folder: Path, name: str) -> Path:
    """Where an image that is not there should lie; one with Windows' separators in any case below ``folder``."""
    path = folder.joinpath(*_parts(name)) if "\\" in name else folder / name
    return path if not path.name or is_image_name(path.name) else path.with_name(path.name + IMAGE_SUFFIXES[0])


def _parts(name: str) -> list[str]:
    """Folders and file of a name, from the first that does not lead upward."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    upward = [index for index, part in enumerate(parts) if part == ".."]
    return parts[upward[-1] + 1 :] if upward else parts


@dataclass
class _Names:
    """What lies directly in a folder: names by what they have in common with others."""

    folders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    stems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class _Listings:
    """Folders that were looked into, each once."""

    def __init__(self) -> None:
        self._names: dict[Path, _Names] = {}

    def similar(self, folder: Path, name: str) -> Path | None:
        """Return the one file below ``folder`` that ``name`` can mean; None where there is none, or more than one."""
        parts = _parts(name)[-_MAX_PARTS:]
        for start in range(len(parts)):
            fitting = self._fitting(folder, parts[start:])
            if fitting:
                return fitting[0] if len(fitting) == 1 else None
        return None

    def _fitting(self, folder: Path, parts: list[str]) -> list[Path]:
        """Return the files that these folders and this file's name can mean."""
        names = self._listed(folder)
        key = name_key(parts[0])
        if len(parts) > 1:
            inner = names.folders.get(key, [])
            inner = [parts[0]] if parts[0] in inner else inner
            return [path for one in inner for path in self._fitting(folder / one, parts[1:])]
        files = names.files.get(key, [])
        files = [parts[0]] if parts[0] in files else files
        return [folder / one for one in files or names.stems.get(name_key(without_ending(parts[0])), [])]

    def _listed(self, folder: Path) -> _Names:
        if folder not in self._names:
            names = self._names[folder] = _Names()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                entries = []
            for entry in entries:
                if entry.is_dir():
                    names.folders[name_key(entry.name)].append(entry.name)
                elif entry.is_file():
                    names.files[name_key(entry.name)].append(entry.name)
                    if is_image_name(entry.name):
                        names.stems[name_key(without_ending(entry.name))].append(entry.name)
        return self._names[folder]
