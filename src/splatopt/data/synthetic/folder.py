"""Writes synthetic scenes to disk, as COLMAP captures, one folder each; what is finished stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from splatopt.core.checks import InputError, writing
from splatopt.core.reading import read_object
from splatopt.data.colmap import PROCEDURAL_MARK
from splatopt.data.colmap_text import whole_capture, write_model, write_points
from splatopt.data.synthetic.scene import SceneOptions, SyntheticScene, build_scene, scene_name, scene_seed


def write_scene(folder: Path, scene: SyntheticScene, mark: dict[str, object]) -> None:
    """Write ``images/*.png`` and a COLMAP text model in ``sparse/0``; whole or not at all.

    Args:
        folder: Must not exist or be empty.
        scene: What to write.
        mark: What it was made from, kept beside it.

    Raises:
        InputError: The folder exists and is not empty.
    """
    with whole_capture(folder, mark) as partial:
        model, images = partial / "sparse" / "0", partial / "images"
        model.mkdir(parents=True)
        images.mkdir()
        for name, picture in zip(scene.names, scene.pictures, strict=True):
            with writing(images / name):
                Image.fromarray(picture).save(images / name)
        write_model(model, scene.names, scene.poses, scene.focal, scene.size)
        write_points(model, scene.positions, scene.colors)


def synthetic_options_of(folder: Path) -> dict[str, object] | None:
    """Return what ``folder`` says its scene was made from, None where it says nothing.

    Raises:
        InputError: The file that says so is damaged.
    """
    return read_object(folder / PROCEDURAL_MARK)


def _finished(folder: Path, mark: dict[str, object]) -> bool:
    """Whether the scene is there already.

    Raises:
        InputError: The folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if synthetic_options_of(folder) != mark:
        raise InputError(f"{folder} holds something else or was made with other settings; name another folder")
    return True


def write_scenes(out: Path, scenes: int, seed: int, options: SceneOptions) -> Iterator[tuple[Path, bool]]:
    """Write scenes 0 to ``scenes`` - 1 of the collection ``seed``; those already there are kept.

    Args:
        out: Folder of the collection.
        scenes: How many.
        seed: Of the collection.
        options: Sizes and kinds.

    Yields:
        Each scene's folder and whether it was there already.

    Raises:
        InputError: A number is out of range, or a scene's folder holds something else; nothing is written then.
    """
    if scenes < 1:
        raise InputError(f"scenes must be at least 1, got {scenes}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder")
    marks = []
    for index in range(scenes):
        own = scene_seed(seed, index)
        settings = json.loads(json.dumps(asdict(options)))
        marks.append({"made_by": "splatopt data make", "seed": seed, "scene": index, "own_seed": own, **settings})
    there = [_finished(out / scene_name(index), mark) for index, mark in enumerate(marks)]
    for index, (mark, done) in enumerate(zip(marks, there, strict=True)):
        folder = out / scene_name(index)
        if not done:
            write_scene(folder, build_scene(int(mark["own_seed"]), options), mark)
        yield folder, done
