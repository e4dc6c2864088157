"""A small capture made from nothing: a still life, ray-cast from an orbit of cameras.

It is written as a COLMAP capture and read by the ordinary loader, so a demonstration takes the
same way as a person's own photographs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splatopt.core.checks import InputError, writing
from splatopt.data.colmap_text import whole_capture, write_model, write_points
from splatopt.data.demo_scene import DemoScene

_FIELD_OF_VIEW = math.radians(50)
_ORBIT_RADIUS = 3.8
_LOOK_AT = np.array([0.0, 0.0, 0.32])
_SAMPLES_PER_SIDE = 2
_POINT_NOISE = 0.004


def orbit_pose(azimuth: float, elevation: float) -> np.ndarray:
    """Return the 4x4 world-to-camera matrix (OpenCV axes, world z up) of a camera that looks at the scene.

    Args:
        azimuth: Around the vertical, radians.
        elevation: Above the floor, radians.
    """
    outward = np.array(
        [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
    )
    forward = -outward
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ (_LOOK_AT + _ORBIT_RADIUS * outward)
    return pose


def _rays(pose: np.ndarray, focal: float, pixels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return origin (3,) and unit directions (R, 3) of the rays through ``pixels`` (R, 2)."""
    rotation, width_height = pose[:3, :3], np.array(size) / 2
    local = np.concatenate([(pixels - width_height) / focal, np.ones((len(pixels), 1))], axis=1)
    directions = (local / np.linalg.norm(local, axis=1, keepdims=True)) @ rotation
    return (-rotation.T @ pose[:3, 3]).astype(np.float32), directions.astype(np.float32)


def _render(scene: DemoScene, pose: np.ndarray, focal: float, size: tuple[int, int]) -> np.ndarray:
    """Return an image, (height, width, 3) uint8, each pixel the mean of a grid of rays."""
    width, height = size
    steps = (np.arange(_SAMPLES_PER_SIDE) + 0.5) / _SAMPLES_PER_SIDE
    columns = (np.arange(width)[:, None] + steps).ravel()
    rows = (np.arange(height)[:, None] + steps).ravel()
    pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    colors = scene.cast(*_rays(pose, focal, pixels, size)).colors
    grid = colors.reshape(height, _SAMPLES_PER_SIDE, width, _SAMPLES_PER_SIDE, 3).mean(axis=(1, 3))
    return np.rint(255 * grid.clip(0, 1)).astype(np.uint8)


def _points(
    scene: DemoScene, poses: Sequence[np.ndarray], focal: float, size: tuple[int, int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (count, 3) with noise and colours (count, 3) of surface points that the cameras see."""
    rng, positions, colors = scene.generator, [], []
    share = -(-count // len(poses))
    for pose in poses:
        origin, directions = _rays(pose, focal, rng.random((share, 2)) * size, size)
        hits = scene.cast(origin, directions)
        noise = rng.normal(0, _POINT_NOISE, (share, 1)) * hits.distances[:, None]
        positions.append(origin + directions * hits.distances[:, None] + noise * rng.normal(0, 1, (share, 3)))
        colors.append(hits.colors)
    pixels = np.rint(255 * np.concatenate(colors).clip(0, 1)).astype(np.uint8)
    return np.concatenate(positions)[:count], pixels[:count]


def make_capture(
    folder: Path, seed: int = 0, views: int = 24, width: int = 192, height: int = 144, points: int = 4000
) -> Path:
    """Write a small capture: ``images/*.png`` and a COLMAP text model in ``sparse/0``.

    The same arguments give the same files. The folder appears whole or not at all: it is written
    beside its place and then renamed.

    Args:
        folder: Where to write; must not exist or be empty.
        seed: Decides on colours, textures, arrangement and noise.
        views: Cameras, spread once around the scene.
        width: Image width, pixels.
        height: Image height, pixels.
        points: Sparse points, on visible surfaces, with noise of about 1/250 of their distance.

    Returns:
        ``folder``.

    Raises:
        InputError: The folder exists and is not empty, or a number is out of range.
    """
    folder = Path(folder)
    if views < 2 or min(width, height) < 1 or points < 0:
        raise InputError(
            f"a capture needs at least 2 views, 1x1 pixels and 0 points, got {views}, {width}x{height} and {points}"
        )
    mark = {"made_by": "splatopt", "seed": seed, "views": views, "width": width, "height": height, "points": points}
    with whole_capture(folder, mark) as partial:
        _write_capture(partial, DemoScene(seed), views, (width, height), points)
    return folder


def _write_capture(folder: Path, scene: DemoScene, views: int, size: tuple[int, int], points: int) -> None:
    model, images = folder / "sparse" / "0", folder / "images"
    model.mkdir(parents=True)
    images.mkdir()
    focal = 0.5 * size[0] / math.tan(0.5 * _FIELD_OF_VIEW)
    azimuths = [2 * math.pi * index / views for index in range(views)]
    poses = [orbit_pose(azimuth, math.radians(30 + 10 * math.sin(2 * azimuth))) for azimuth in azimuths]
    names = [f"view_{index:03d}.png" for index in range(views)]
    for name, pose in zip(names, poses, strict=True):
        with writing(images / name):
            Image.fromarray(_render(scene, pose, focal, size)).save(images / name)
    write_model(model, names, poses, focal, size)
    write_points(model, *_points(scene, poses, focal, size, points))
