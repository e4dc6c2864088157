"""Photographs of the corner of a room whose floor and walls are covered in noise, with known cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

FOCAL_FACTOR = 1.1
"""Focal length over the longer side."""


def camera_poses(views: int) -> list[np.ndarray]:
    """World to camera, (4, 4), OpenCV axes: an arc before the corner at the origin, which looks at it."""
    poses = []
    for turn in np.linspace(0.25, 1.3, views):
        center = np.array([3.2 * np.cos(turn), 3.2 * np.sin(turn), 1.4 + 0.3 * np.sin(5 * turn)])
        forward = np.array([0.5, 0.5, 0.6]) - center
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
        pose[:3, 3] = -pose[:3, :3] @ center
        poses.append(pose)
    return poses


def textures(seed: int, side: int = 512) -> np.ndarray:
    """Three coloured textures, (3, side, side, 3), with detail of every size."""
    rng = np.random.default_rng(seed)
    found = np.zeros((3, side, side, 3))
    for blur in (1, 2, 4, 8, 16):
        noise = ndimage.gaussian_filter(rng.standard_normal((3, side, side, 3)), (0, blur, blur, 0), mode="wrap")
        found += noise / noise.std() * blur**0.35
    return 255 / (1 + np.exp(-2 * found / found.std()))


def render(pose: np.ndarray, planes: np.ndarray, width: int, height: int) -> np.ndarray:
    """One photograph, (height, width, 3) uint8."""
    focal = FOCAL_FACTOR * max(width, height)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones_like(rows)], axis=-1)
    rays = rays @ pose[:3, :3]
    center = -pose[:3, :3].T @ pose[:3, 3]
    image = np.zeros((height, width, 3))
    nearest = np.full((height, width), np.inf)
    for axis in range(3):
        with np.errstate(divide="ignore"):
            distance = -center[axis] / rays[..., axis]
        hit = (distance > 0) & (distance < nearest)
        nearest[hit] = distance[hit]
        across = np.delete(center + distance[..., None] * rays, axis, axis=-1)[hit]
        place = (across / 4 % 1 * planes.shape[1]).T
        for band in range(3):
            image[..., band][hit] = ndimage.map_coordinates(planes[axis, ..., band], place, order=1, mode="wrap")
    return np.rint(image).astype(np.uint8)


def write_photographs(folder: Path, views: int = 12, width: int = 320, height: int = 240, seed: int = 0) -> None:
    """Write view_000.jpg, view_001.jpg, … into ``folder``."""
    folder.mkdir(parents=True)
    planes = textures(seed)
    for place, pose in enumerate(camera_poses(views)):
        Image.fromarray(render(pose, planes, width, height)).save(folder / f"view_{place:03d}.jpg", quality=95)
