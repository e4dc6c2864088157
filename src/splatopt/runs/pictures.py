"""Pictures that runs leave: names from those of views, and PNGs written whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splatopt.core.camera import Camera
from splatopt.core.files import whole_file


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG in one move."""
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def file_names(cameras: Sequence[Camera]) -> list[str]:
    """Return one PNG name per camera, unique and without folders, made from the view's name."""
    names: list[str] = []
    taken: set[str] = set()
    for index, camera in enumerate(cameras):
        stem = re.sub(r"[^\w.-]+", "_", camera.name.replace("\\", "/").rsplit(".", 1)[0]).strip("._")
        name = stem or f"view-{index:04d}"
        if name in taken:
            name = f"{name}-{index:04d}"
        taken.add(name)
        names.append(f"{name}.png")
    return names
