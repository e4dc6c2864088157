"""Readers of captures by name: which one recognises a folder, and what it finds there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from splatopt.core.checks import InputError, short
from splatopt.core.plugins import Origin, Registry, calling_place, guarded
from splatopt.data.blender import HELD_OUT_FILES, TRAIN_FILE, read_blender
from splatopt.data.colmap import MODEL_FOLDERS, find_model, has_model, incomplete_model, read_colmap
from splatopt.data.image_folders import image_files, with_other_endings
from splatopt.data.image_formats import form_name, unread_form
from splatopt.data.llff import POSES_FILE, read_llff
from splatopt.data.nerfstudio import TRANSFORMS_FILE, read_nerfstudio
from splatopt.data.polycam import KEYFRAMES, find_keyframes, read_polycam
from splatopt.data.record3d import METADATA_FILES, find_metadata, read_record3d
from splatopt.data.source import Finding, Source
from splatopt.data.structure_from_motion.input_images import offered_command

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Reader:
    """One registered reader.

    Attributes:
        recognises: Whether a folder holds a capture of its format; looks at names of files, not into all of them.
        read: Reads views and points from a folder that it recognises; raises InputError where they are malformed.
        read_images: The same, with the photographs of the capture's folder of this name; None where its format knows no
            other folders of photographs.
        marks: Files and folders that it looks for, for messages.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Source]
    read_images: Callable[[Path, str], Source] | None = None
    marks: tuple[str, ...] = ()

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
                f"--images {images} is for captures whose photographs may lie in another folder, as beside a COLMAP "
                f"model or a transforms.json; the format of {short(path)} says where they lie, leave --images out"
            )
        return lambda path: read_images(path, images)


READERS: Registry[Reader] = Registry("reader", "splatopt.readers", ())


def register_reader(
    name: str,
    recognises: Callable[[Path], bool],
    read: Callable[[Path], Source],
    read_images: Callable[[Path, str], Source] | None = None,
    marks: tuple[str, ...] = (),
) -> None:
    """Make a reader of captures known.

    Args:
        name: The word for its format.
        recognises: See :class:`Reader`.
        read: See :class:`Reader`.
        read_images: See :class:`Reader`.
        marks: See :class:`Reader`.

    Raises:
        InputError: The name is taken; says where.
    """
    READERS.add(name, Reader(recognises, read, read_images, marks), calling_place())


def read_source(path: Path, images: str | None = None) -> Source:
    """Find out what kind of capture ``path`` is and read its poses, without opening images.

    Readers that were given (plug-in files, and what the program at work registered) are asked first, as somebody means
    them; then splatopt's own; then those of installed packages.

    Args:
        path: The folder, or the file of poses in it.
        images: Name of the folder in it whose photographs are used; None for those that the capture itself names.

    Raises:
        InputError: Nothing was found (the message lists the paths tried), or what was found is malformed.
    """
    source = _read_file(path, images) if path.is_file() else _read_folder(path, images)
    warnings = list(source.warnings)
    views = with_other_endings(source.images, warnings)
    return replace(source, images=tuple(views), warnings=tuple(warnings))


def _read_file(path: Path, images: str | None) -> Source:
    """Read the capture whose file of poses was given in place of its folder."""
    folder = path.parent
    if path.name in (TRAIN_FILE, *HELD_OUT_FILES) and (folder / TRAIN_FILE).is_file():
        return read_blender(folder, images)
    if path.name == POSES_FILE:
        return read_llff(folder, images)
    if path.name in METADATA_FILES and find_metadata(folder):
        return READERS.find("record3d").reading(folder, images)(folder)
    if path.suffix.lower() == ".json":
        return read_nerfstudio(path, images)
    form = unread_form(path)
    what = form_name(form) if form else "a file"
    raise InputError(
        f"no capture at {path}, which is {what}; give the folder with the photographs and their camera poses, or its "
        f"{TRANSFORMS_FILE}{_offer(path)}"
    )


def _read_folder(path: Path, images: str | None) -> Source:
    if not path.is_dir():
        raise InputError(f"no capture at {path}: expected a folder with images and their camera poses{_offer(path)}")
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
    own = [READERS.find(name) for name in READERS.names(Origin.OWN)]
    tried = ", ".join(mark for reader in own for mark in reader.marks)
    others = "".join(f", the reader {name}" for name in (*READERS.names(Origin.GIVEN), *names))
    count = sum(len(image_files(folder)) for folder in (path, path / "images"))
    held = f" beside its {count} photograph{'' if count == 1 else 's'}" if count else ""
    raise InputError(
        f"no model found in {path}{held}; looked there for {tried}{others}; give a folder with a COLMAP model "
        "(cameras, images and points3D as .bin or .txt) or a transforms.json, or the plug-in of a reader with "
        f"--plugin{unusable}{_offer(path)}"
    )


def _offer(path: Path) -> str:
    """Name the command that finds poses, where ``path`` holds photographs or a video."""
    command = offered_command(path)
    return f"; to find the poses of what is there, type {command}" if command else ""


def _read_by(names: tuple[str, ...], path: Path, images: str | None) -> Source | None:
    """Return what the one of these readers that recognises the folder reads; None where none does."""
    own = [name for name in names if READERS.origin(name) is Origin.OWN]
    if own:
        fitting = [name for name in own if READERS.find(name).recognises(path)]
        if not fitting:
            return None
        source = READERS.find(fitting[0]).reading(path, images)(path)
        beside = tuple(_beside(name, path, f"the {fitting[0]} capture beside it") for name in fitting[1:])
        lacking = "" if "colmap" in fitting else incomplete_model(path)
        warnings = (*source.warnings, lacking) if lacking else source.warnings
        return replace(source, found=(*source.found, *beside), warnings=warnings)
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


def _beside(name: str, path: Path, used: str) -> Finding:
    """Return what is said of another capture in the same folder that is not read."""
    mark = next((mark for mark in READERS.find(name).marks if (path / mark).exists()), name)
    instead = f"; give {short(path / mark)} to use it" if (path / mark).is_file() else ""
    return Finding(f"{mark} ({name})", False, f"{used} is{instead}")


def _asked(name: str, what: str, call: Callable[[Reader], Answer]) -> Answer:
    """Return what another's reader answers, or say in a sentence how it failed."""
    place = READERS.place(name)
    return guarded(f"{what}() of the reader {name!r}", place.file, lambda: call(READERS.find(name)))


def _read_colmap(path: Path, images: str | None = None) -> Source:
    warnings: list[str] = []
    model = find_model(path, warnings)
    assert model is not None  # it was recognised
    return read_colmap(path, model, warnings, images)


register_reader("colmap", has_model, _read_colmap, _read_colmap, MODEL_FOLDERS)
register_reader("blender", lambda path: (path / TRAIN_FILE).is_file(), read_blender, read_blender, (TRAIN_FILE,))
register_reader(
    "nerfstudio",
    lambda path: (path / TRANSFORMS_FILE).is_file(),
    read_nerfstudio,
    read_nerfstudio,
    (TRANSFORMS_FILE,),
)
register_reader("llff", lambda path: (path / POSES_FILE).is_file(), read_llff, read_llff, (POSES_FILE,))
register_reader("polycam", lambda path: find_keyframes(path) is not None, read_polycam, None, (KEYFRAMES,))
register_reader("record3d", lambda path: find_metadata(path) is not None, read_record3d, None, METADATA_FILES)
