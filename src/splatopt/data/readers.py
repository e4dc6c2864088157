"""Readers of captures by name: which one recognises a folder, and what it finds there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from splatopt.core.checks import InputError, short
from splatopt.core.plugins import Origin, Registry, calling_place, guarded
from splatopt.data.blender import TRAIN_FILE, read_blender
from splatopt.data.colmap import MODEL_FOLDERS, find_model, has_model, incomplete_model, read_colmap
from splatopt.data.nerfstudio import TRANSFORMS_FILE, read_nerfstudio
from splatopt.data.source import Source

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Reader:
    """One registered reader.

    Attributes:
        recognises: Whether a folder holds a capture of its format; looks at names of files, not into all of them.
        read: Reads views and points from a folder that it recognises; raises InputError where they are malformed.
        read_images: The same, with the photographs of the capture's folder of this name; None where the capture itself
            says where each photograph lies.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Source]
    read_images: Callable[[Path, str], Source] | None = None

    def reading(self, path: Path, images: str | None) -> Callable[[Path], Source]:
        """Return what reads the capture ``path`` with the photographs of its folder ``images``, if one is named.

        Raises:
            InputError: Its format knows no such folders.
        """
        if images is None:
            return self.read
        read_images = self.read_images
        if read_images is None:
            raise InputError(
                f"--images {images} is for captures with a COLMAP model, whose photographs lie in a folder; "
                f"{short(path)} itself names the place of each one, leave --images out"
            )
        return lambda path: read_images(path, images)


READERS: Registry[Reader] = Registry("reader", "splatopt.readers", ())


def register_reader(
    name: str,
    recognises: Callable[[Path], bool],
    read: Callable[[Path], Source],
    read_images: Callable[[Path, str], Source] | None = None,
) -> None:
    """Make a reader of captures known.

    Args:
        name: The word for its format.
        recognises: See :class:`Reader`.
        read: See :class:`Reader`.
        read_images: See :class:`Reader`.

    Raises:
        InputError: The name is taken; says where.
    """
    READERS.add(name, Reader(recognises, read, read_images), calling_place())


def read_source(path: Path, images: str | None = None) -> Source:
    """Find out what kind of capture ``path`` is and read its poses, without opening images.

    Readers that were given (plug-in files, and what the program at work registered) are asked first, as somebody means
    them; then splatopt's own; then those of installed packages.

    Args:
        path: The folder.
        images: Name of the folder in it whose photographs are used; None for those that the capture itself names.

    Raises:
        InputError: Nothing was found (the message lists the paths tried), or what was found is malformed.
    """
    if not path.is_dir():
        raise InputError(f"no capture at {path}: expected a folder with images and their camera poses")
    for origin in (Origin.GIVEN, Origin.OWN):
        if source := _read_by(READERS.names(origin), path, images):
            return source
    unusable = ""
    names = list(READERS.names(Origin.INSTALLED))
    for name in READERS.offered():
        try:
            READERS.find(name)
            names.append(name)
        except InputError as error:
            unusable = f"; {error}"
    if source := _read_by(tuple(dict.fromkeys(names)), path, images):
        return source
    if lacking := incomplete_model(path):
        raise InputError(lacking)
    tried = ", ".join(str(path / name) for name in (*MODEL_FOLDERS, TRAIN_FILE, TRANSFORMS_FILE))
    others = "".join(f", the reader {name}" for name in (*READERS.names(Origin.GIVEN), *names))
    raise InputError(
        f"no model found in {path}; tried {tried}{others}; give a folder with a COLMAP model (cameras, images and "
        f"points3D as .bin or .txt) or a transforms.json, or the plug-in of a reader with --plugin{unusable}"
    )


def _read_by(names: tuple[str, ...], path: Path, images: str | None) -> Source | None:
    """Return what the one of these readers that recognises the folder reads; None where none does."""
    own = [name for name in names if READERS.origin(name) is Origin.OWN]
    if own:
        fitting = next((name for name in own if READERS.find(name).recognises(path)), None)
        if fitting is None:
            return None
        source = READERS.find(fitting).reading(path, images)(path)
        if fitting != "colmap" and (lacking := incomplete_model(path)):
            return replace(source, warnings=(*source.warnings, lacking))
        return source
    recognising = [name for name in names if _asked(name, "recognises", lambda one: bool(one.recognises(path)))]
    if len(recognising) > 1:
        raise InputError(
            f"the readers {' and '.join(recognising)} both recognise {short(path)}; give the plug-in of one alone"
        )
    for name in recognising:
        source = _asked(name, "read", lambda one: one.reading(path, images)(path))
        if not isinstance(source, Source):
            raise InputError(
                f"the reader {name!r} of {READERS.place(name)} must return a splatopt.data.source.Source, got a "
                f"{type(source).__name__}"
            )
        return source
    return None


def _asked(name: str, what: str, call: Callable[[Reader], Answer]) -> Answer:
    """Return what another's reader answers, or say in a sentence how it failed."""
    place = READERS.place(name)
    return guarded(f"{what}() of the reader {name!r}", place.file, lambda: call(READERS.find(name)))


def _read_colmap(path: Path, images: str | None = None) -> Source:
    warnings: list[str] = []
    model = find_model(path, warnings)
    assert model is not None  # it was recognised
    return read_colmap(path, model, warnings, images)


register_reader("colmap", has_model, _read_colmap, _read_colmap)
register_reader("blender", lambda path: (path / TRAIN_FILE).is_file(), read_blender)
register_reader("nerfstudio", lambda path: (path / TRANSFORMS_FILE).is_file(), read_nerfstudio)
