"""Blender captures as of NeRF-synthetic: ``transforms_train.json`` and ``transforms_test.json``."""

from __future__ import annotations

from pathlib import Path

from splatopt.data.point_files import find_points
from splatopt.data.source import PosedImage, Source, registered_once
from splatopt.data.transforms import read_frames, read_json

TRAIN_FILE = "transforms_train.json"
"""The file whose presence makes a folder a Blender capture."""

_TEST_FILES = ("transforms_test.json", "transforms_val.json")


def read_blender(path: Path) -> Source:
    """Read the training views and, as held-out views, those of the test file (else of ``val``).

    Without either file the split is that of other captures. Sparse points are those that the training file names or
    that lie beside it, see :func:`splatopt.data.point_files.find_points`.

    Raises:
        InputError: A file is malformed.
    """
    train = path / TRAIN_FILE
    held_out = next((path / name for name in _TEST_FILES if (path / name).is_file()), None)
    warnings: list[str] = []
    content = read_json(train)
    if held_out is None:
        warnings.append(f"there is no {' or '.join(_TEST_FILES)}; test views are taken from {TRAIN_FILE}")
        views = registered_once(read_frames(train, content, warnings), str(train), warnings)
        points = find_points(path, content, views, warnings)
        return Source("blender", _sorted(views), points, tuple(warnings))
    if held_out.name != _TEST_FILES[0]:
        warnings.append(f"test views come from {held_out.name}")
    views = registered_once(
        [
            *_sorted(read_frames(train, content, warnings, "train")),
            *_sorted(read_frames(held_out, read_json(held_out), warnings, "test")),
        ],
        str(path),
        warnings,
    )
    points = find_points(path, content, views, warnings)
    return Source("blender", tuple(views), points, tuple(warnings), "blender")


def _sorted(views: list[PosedImage]) -> tuple[PosedImage, ...]:
    return tuple(sorted(views, key=lambda view: view.name))
