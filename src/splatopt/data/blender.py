"""Blender captures as of NeRF-synthetic: ``transforms_train.json`` and ``transforms_test.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import short
from splatopt.data.image_folders import in_named_folder
from splatopt.data.image_lookup import find_images
from splatopt.data.nerfstudio import findings
from splatopt.data.point_files import find_points
from splatopt.data.source import Finding, PosedImage, Source, registered_once
from splatopt.data.transforms import check_frames, read_frames, read_json

TRAIN_FILE = "transforms_train.json"
"""The file whose presence makes a folder a Blender capture."""

HELD_OUT_FILES = ("transforms_test.json", "transforms_val.json")
"""The first of these that has photographs is held out."""


@dataclass(frozen=True)
class _Frames:
    """A file of poses, and its list of frames."""

    file: Path
    content: dict[str, object]
    frames: list[dict[str, object]]


def read_blender(path: Path, images: str | None = None) -> Source:
    """Read the training views and, as held-out views, those of the test file (else of ``val``).

    Test poses without a single photograph, as BlenderNeRF writes them, cannot be scored and are left out. Without
    either file the split is that of other captures. Sparse points are those that the training file names or that lie
    beside it, see :func:`splatopt.data.point_files.find_points`.

    Args:
        path: The folder.
        images: Name of the folder that holds the photographs; None for the files that the frames name.

    Raises:
        InputError: A file is malformed.
    """
    train = path / TRAIN_FILE
    warnings: list[str] = []
    content = read_json(train)
    held_out, others = _held_out(path, images, warnings)
    views = _sorted(read_frames(train, content, warnings, "train" if held_out.frames else ""))
    if held_out.frames:
        views += _sorted(read_frames(held_out.file, held_out.content, warnings, "test"))
    else:
        tried = " or ".join(HELD_OUT_FILES)
        missing = f"there is no {tried}" if not others else f"no view of {tried} can be held out"
        warnings.append(f"{missing}; test views are taken from {TRAIN_FILE}")
    views = registered_once(views, str(path if held_out.frames else train), warnings)
    points = find_points(path, content, views, warnings)
    frames = [*check_frames(train, content, "frames"), *held_out.frames]
    found = [*others, *findings(path, {**held_out.content, **content}, frames, views)]
    if images is not None:
        views = in_named_folder(path, views, images, warnings)
    return Source("blender", tuple(views), points, tuple(warnings), "blender", tuple(found))


def _held_out(path: Path, images: str | None, warnings: list[str]) -> tuple[_Frames, list[Finding]]:
    """Return the frames of the first file that has a photograph, and what is said of other files that are there."""
    chosen = _Frames(path / HELD_OUT_FILES[0], {}, [])
    others = []
    for name in HELD_OUT_FILES:
        file = path / name
        if not file.is_file():
            continue
        content = read_json(file)
        frames = check_frames(file, content, "frames")
        names = [one for frame in frames if isinstance(one := frame.get("file_path"), str)]
        files = [one.path for one in find_images(path, names, [])]
        what = f"{name} ({len(frames)} views)"
        if chosen.frames:
            others.append(Finding(what, False, f"{HELD_OUT_FILES[0]} is held out"))
        elif not frames:
            others.append(Finding(what, False, "it holds no frames"))
        elif files and images is None and not any(os.path.isfile(one) for one in files):
            others.append(Finding(what, False, f"its photographs are not there, such as {short(files[0])}"))
        else:
            chosen = _Frames(file, content, frames)
            if name != HELD_OUT_FILES[0]:
                warnings.append(f"test views come from {name}")
    return chosen, others


def _sorted(views: list[PosedImage]) -> list[PosedImage]:
    return sorted(views, key=lambda view: view.name)
