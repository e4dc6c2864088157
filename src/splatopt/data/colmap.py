"""Captures with a COLMAP model: where the model and its images lie, which of several is taken, its own test views."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.colmap_files import USUAL_LENGTHS, Model, RegisteredImage, model_in
from splatopt.data.image_folders import copies, image_files, named_folder, unused_folders
from splatopt.data.image_lookup import NamedImage, find_images, unregistered, with_slashes
from splatopt.data.lens import Lens
from splatopt.data.point_files import read_ply_points
from splatopt.data.source import Finding, Points, PosedImage, Source, registered_once
from splatopt.data.split_files import read_split

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".", "images", "input", "rgb")
"""Where a model is looked for, below the capture: COLMAP's places, and beside the images."""

UNDISTORTED_FOLDERS = ("dense/sparse", "dense/0/sparse")
"""Where COLMAP's undistorter leaves one with images of its own; looked at next."""

DISTORTED_FOLDERS = ("distorted/sparse/0", "distorted/sparse")
"""Where 3DGS' converter keeps the model before undistortion; looked at last."""

DEEPEST = 3
"""Folders within each other below the capture in which a single model is found wherever it lies."""

IMAGE_FOLDERS = ("images", "input", "rgb", ".")
"""Where images are looked for, beside the model's ``sparse`` and in the capture."""

PROCEDURAL_MARK = "procedural.json"
"""A file that says that the capture was made by :mod:`splatopt.data.procedural`."""

_FILES = ("cameras", "images", "points3D")
_POINT_FILES = ("points3D.ply", "points3d.ply")
_OTHER_POSES = ("transforms.json", "transforms_train.json", "poses_bounds.npy")
_NO_IMAGES = re.compile("mask|depth|normal|semantic|segment|label|_[0-9]+$", re.IGNORECASE)
_ENOUGH = 0.5
"""Share of the model's images that a folder must hold to be taken before one that holds more."""


@dataclass(frozen=True)
class _Contents:
    """What a model says: its lenses by number and its images."""

    model: Model
    lenses: dict[int, Lens]
    images: list[RegisteredImage]

    @classmethod
    def read(cls, model: Model, warnings: list[str]) -> _Contents:
        """Read them; raises InputError where a file is damaged."""
        lenses = model.cameras(warnings)
        return cls(model, lenses, model.images(lenses, warnings))


def _places(path: Path, folders: Sequence[str]) -> list[Path]:
    """Return the folders below ``path`` that may hold a model, those in each ``sparse`` included, each once."""
    places: list[Path] = []
    for folder in (path / name for name in folders):
        places.append(folder)
        if folder.name == "sparse" and folder.is_dir():
            places += sorted(sub for sub in folder.iterdir() if sub.is_dir())
    return list(dict.fromkeys(places))


def _tiers(path: Path) -> list[list[Model]]:
    """Return the models of a capture: those of the usual places, what is looked at next, else what is looked at last.

    Looked at last is, after DISTORTED_FOLDERS, everywhere; but two models anywhere may be two captures. Another file of
    poses goes before these.
    """
    found: list[list[Model]] = []
    for folders in (MODEL_FOLDERS, UNDISTORTED_FOLDERS, DISTORTED_FOLDERS):
        if folders is DISTORTED_FOLDERS and _is_settled(path, found):
            break
        models = [model for place in _places(path, folders) if (model := model_in(place))]
        found.append(models)
    if not _is_settled(path, found):
        models = [model for folder in _below(path) if (model := model_in(folder))]
        found.append(models if len(models) == 1 else [])
    return [tier for tier in found if tier]


def _is_settled(path: Path, found: list[list[Model]]) -> bool:
    return any(found) or any((path / name).is_file() for name in _OTHER_POSES)


def _below(path: Path) -> Iterator[Path]:
    """Yield the folders below ``path``, those that are hidden left out, down to DEEPEST."""
    for below, folders, _ in os.walk(path):
        depth = len(Path(below).relative_to(path).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEEPEST else []
        yield from (Path(below, name) for name in folders)


def has_model(path: Path) -> bool:
    """Whether a capture holds a COLMAP model; looks at names of files alone."""
    return bool(_tiers(path))


def incomplete_model(path: Path) -> str:
    """Return the sentence that names what a COLMAP model of the capture ``path`` lacks; empty where there is none."""
    for folder in _places(path, (*MODEL_FOLDERS, *UNDISTORTED_FOLDERS, *DISTORTED_FOLDERS)):
        if model_in(folder):
            continue
        for suffix in (".bin", ".txt"):
            files = [f"{name}{suffix}" for name in _FILES]
            there = [name for name in files if (folder / name).is_file()]
            if there and (len(there) > 1 or folder.parts[len(path.parts) :]):
                lacking = [name for name in files[:2] if name not in there]
                return (
                    f"the COLMAP model in {short(folder)} is not whole: {' and '.join(there)} "
                    f"{'is' if len(there) == 1 else 'are'} there, {' and '.join(lacking)} "
                    f"{'is' if len(lacking) == 1 else 'are'} missing; copy the model again"
                )
    return ""


def find_model(path: Path, warnings: list[str]) -> Model | None:
    """Return the COLMAP model of a capture.

    Of several in the usual places it is the largest. One that is looked at next is taken where the images of that one
    are not in the capture.

    Args:
        path: The capture.
        warnings: Gets a sentence if there were several, or if one is not whole.

    Returns:
        The model, or None if there is none.
    """
    tiers = _tiers(path)
    sizes = {model.folder: model.count() for tier in tiers for model in tier} if sum(map(len, tiers)) > 1 else {}
    leading = [max(tier, key=lambda model: sizes.get(model.folder, 0)) for tier in tiers]
    if not leading:
        return None
    if lacking := incomplete_model(path):
        warnings.append(lacking)
    best = leading[0]
    if len(leading) > 1:
        best = next((model for model in leading if _has_its_images(path, model)), best)
    if sizes:
        others = [model.folder for tier in tiers for model in tier if model.folder != best.folder]
        listed = ", ".join(f"{folder.relative_to(path)} ({sizes[folder]})" for folder in others)
        warnings.append(
            f"several models were found; used {best.folder.relative_to(path)} with {sizes[best.folder]} images and "
            f"not {listed}"
        )
    return best


def _has_its_images(path: Path, model: Model) -> bool:
    names = [image.name for image in _Contents.read(model, []).images]
    return any(_there(find_images(folder, names, [])) for folder in _image_places(path, model))


def _there(images: Sequence[NamedImage]) -> int:
    """How many of the images are there."""
    return sum(os.path.isfile(image.path) for image in images)


def _image_places(path: Path, model: Model) -> list[Path]:
    """Return the folders in which a model's images may lie: beside its ``sparse``, then in the capture."""
    inner = model.folder.relative_to(path).parts
    base = path.joinpath(*inner[: inner.index("sparse")]) if "sparse" in inner else model.folder
    places = [parent / name for parent in (base, path) for name in IMAGE_FOLDERS]
    if base.name == "distorted":
        places.insert(0, path / "input")  # the folder images beside it holds undistorted ones
    elif "sparse" not in inner:
        places.insert(0, base)
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def _find_images(
    path: Path, model: Model, names: Sequence[str], warnings: list[str], found: list[Finding]
) -> list[NamedImage]:
    """Return where a model's images lie: in the first folder that holds half of them, else in that which holds most.

    Where no usual folder holds any they are taken from another that holds all, or from that of ``images_2``,
    ``images_4``, … that shrinks least, or missed in the first of the usual name.
    """
    places = _image_places(path, model)
    looked = {place: find_images(place, names, []) for place in places}
    counts = {place: _there(images) for place, images in looked.items()}
    exact = {place: _there([image for image in images if image.is_exact]) for place, images in looked.items()}
    enough = _ENOUGH * max(1, len(names))
    candidates = [place for kind in (exact, counts) for place in places if kind[place] >= enough]
    chosen = candidates[0] if candidates else max(places, key=lambda place: counts[place])
    if not counts[chosen]:
        usual = [place for place in places if place.name in IMAGE_FOLDERS]
        unusual = _unusual_place(path, names)
        chosen = unusual or (usual[0] if usual else _smaller_copies(path, warnings))
        if unusual:
            found.append(
                Finding(f"the images in {unusual.relative_to(path)}", True, "the model's names are found there")
            )
    others = [place for place in places if place != chosen and counts[place]]
    others = [place for place in others if not _same(looked[place], looked.get(chosen, []))]
    for place in others:
        what = f"{counts[place]} images of the same names in {_shown_folder(path, place)}"
        found.append(Finding(what, False, f"those in {_shown_folder(path, chosen)} are"))
    return find_images(chosen, names, warnings)


def _unusual_place(path: Path, names: Sequence[str]) -> Path | None:
    """Return the one folder of a capture, of any name, that holds all images; None where there is none, or several.

    Left out are smaller copies, and folders whose name says that they hold something else under the images' names.
    """
    places = [place for place in _below(path) if not _NO_IMAGES.search(place.name)]
    holding = [place for place in places if names and all(os.path.isfile(place / name) for name in names)]
    return holding[0] if len(holding) == 1 else None


def _same(one: Sequence[NamedImage], other: Sequence[NamedImage]) -> bool:
    """Whether all images of one are files of the other: a name with its folder leads there from the folder above."""
    files, others = (
        {image.path.resolve() for image in images if os.path.isfile(image.path)} for images in (one, other)
    )
    return files <= others


def _shown_folder(path: Path, folder: Path) -> str:
    return "the capture's folder" if folder == path else str(folder.relative_to(path))


def _smaller_copies(path: Path, warnings: list[str]) -> Path:
    """Return that of ``images_2``, ``images_4``, … that shrinks least; raises InputError where there is none."""
    shrunk = _shrunk(path)
    if not shrunk:
        raise InputError(f"no folder {path / 'images'} beside the COLMAP model; put the images there")
    warnings.append(f"there is no folder images; the smaller copies in {shrunk[0].name} are used")
    return shrunk[0]


def _shrunk(path: Path) -> list[Path]:
    """Folders ``images_2``, ``images_4``, …, by how much they shrink."""
    found = [(int(sub.name[7:]), sub) for sub in path.glob("images_*") if sub.is_dir() and sub.name[7:].isdecimal()]
    return [sub for _, sub in sorted(found)]


def _say_what_is_odd(registered: list[RegisteredImage], images: Path, warnings: list[str]) -> None:
    """Warn of what does no harm here: numbers that are given twice, and quaternions that are not of length 1."""
    twice = [number for number, count in Counter(image.number for image in registered).items() if count > 1]
    if twice:
        warnings.append(f"{images} gives the image number {twice[0]} to several images; they are told apart by name")
    minimum, maximum = USUAL_LENGTHS
    odd = [image for image in registered if not minimum <= image.pose.length <= maximum]
    if odd:
        warnings.append(
            f"{images}: {len(odd)} rotations are quaternions whose length is not 1, such as {odd[0].pose.length:.3g} "
            f"of {quoted(odd[0].name)}; they are normalised"
        )


def _points(model: Model, warnings: list[str], found: list[Finding]) -> Points | None:
    """Return the points of a model, in COLMAP's file or in the PLY that 3DGS makes of it."""
    points = model.points(warnings)
    for name in _POINT_FILES:
        file = model.folder / name
        if not file.is_file():
            continue
        if points is None:
            return replace(read_ply_points(file, warnings), file=name)
        found.append(
            Finding(f"{name} beside the model", False, f"the points are those of {model.file('points3D').name}")
        )
    if points is None:
        lacking = model.file("points3D")
        other = lacking.with_suffix(".txt" if model.is_binary else ".bin")
        if other.is_file():
            return Model(model.folder, other.suffix).points(warnings)
        warnings.append(f"the model in {short(model.folder)} has no {lacking.name}, so that the capture has no points")
    return points


def _beside(path: Path, model: Model, images_in: str | None) -> Iterator[Finding]:
    """Yield what else lies in a capture and is not used."""
    other = ".txt" if model.is_binary else ".bin"
    names = _FILES if model.file("points3D").is_file() else _FILES[:2]
    twice = [f"{name}{other}" for name in names if (model.folder / f"{name}{other}").is_file()]
    if len(twice) > 1:
        yield Finding(f"{', '.join(twice)} beside the model", False, f"the files ending in {model.suffix} are")
    for place in _places(path, DISTORTED_FOLDERS):
        if place != model.folder and model_in(place):
            what = f"the model in {place.relative_to(path)}, before undistortion"
            yield Finding(what, False, f"that in {_shown_folder(path, model.folder)} is")
    shrunk = [folder.name for folder in _shrunk(path) if image_files(folder)]
    if images_in is None and shrunk and (path / "images").is_dir():
        yield Finding(f"smaller copies in {', '.join(shrunk)}", False, f"--images {shrunk[0]} takes them")
    yield from unused_folders(path)


def read_colmap(path: Path, model: Model, warnings: list[str], images_in: str | None = None) -> Source:
    """Read a model of the capture ``path``.

    Args:
        path: The capture.
        model: What :func:`find_model` returned.
        warnings: Sentences that go into the source.
        images_in: Name of the folder in the capture that holds the images; None to look for them.

    Raises:
        InputError: A file is missing, damaged, or says what no capture can mean.
    """
    contents, found = _Contents.read(model, warnings), list[Finding]()
    file = model.file("images")
    points = _points(model, warnings, found)
    names = [image.name for image in contents.images]
    if images_in is None:
        images = _find_images(path, model, names, warnings, found)
    else:
        places = copies(named_folder(path, images_in), names, warnings)
        images = [NamedImage(with_slashes(name), places[name], False) for name in names]
    split = read_split(path, model.folder, [image.name for image in images], warnings)
    found += split.found
    found += _beside(path, model, images_in)
    views = []
    for registered, image in sorted(zip(contents.images, images, strict=True), key=lambda pair: pair[1].name):
        if registered.camera not in contents.lenses:
            raise InputError(
                f"{file}, image {quoted(registered.name)}: its camera {registered.camera} is not in "
                f"{model.file('cameras').name}; the model's files do not belong together"
            )
        part = split.parts.get(image.name, "")
        if part or not split.parts:
            lens = contents.lenses[registered.camera]
            views.append(PosedImage(image.name, image.path, registered.pose.matrix, lens, part))
    if len(views) < len(images):
        what = f"{len(images) - len(views)} views that neither file of the split names"
        found.append(Finding(what, False, "the capture's own split leaves them out"))
    _say_what_is_odd(contents.images, file, warnings)
    views = registered_once(views, str(file), warnings)
    found += unregistered(path, [image.path for image in images])
    kind = "procedural" if (path / PROCEDURAL_MARK).is_file() else "colmap"
    return Source(kind, tuple(views), points, tuple(warnings), split.name or "own", tuple(found))
