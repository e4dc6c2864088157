"""Sparse points as structure from motion leaves them: on textured surfaces, noisy, patchy, with outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splatopt.data.synthetic.cameras import camera_rays
from splatopt.data.synthetic.textures import Noise
from splatopt.data.synthetic.tracing import Tracer

_NEAR_ENOUGH = 0.01
_MAX_OUTLIERS = 0.05


def _texturedness(picture: np.ndarray) -> np.ndarray:
    """Return the chance of a feature at each pixel, (height·width,): its gradient's length over a low floor."""
    grey = picture.astype(np.float64).mean(axis=2)
    across, down = np.gradient(grey)
    weight = np.hypot(across, down).ravel() + 0.5
    return weight / weight.sum()


def project(pose: np.ndarray, focal: float, size: tuple[int, int], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (P, 2) and depths (P,) of points (P, 3) in a view."""
    local = points @ pose[:3, :3].T + pose[:3, 3]
    depths = local[:, 2]
    return focal * local[:, :2] / np.where(np.abs(depths) < 1e-9, 1e-9, depths)[:, None] + np.array(size) / 2, depths


def _seen(
    tracer: Tracer, pose: np.ndarray, focal: float, size: tuple[int, int], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether a view sees each point, (P,), and the pixel (column, row) it falls on, (P, 2)."""
    pixels, depths = project(pose, focal, size, points)
    inside = (depths > 1e-3) & ((pixels >= 0) & (pixels < np.array(size))).all(axis=1)
    cells = np.where(inside[:, None], np.floor(pixels), 0).astype(np.int64)
    rows = np.flatnonzero(inside)
    eye = -pose[:3, :3].T @ pose[:3, 3]
    toward = points[rows] - eye
    distances = np.linalg.norm(toward, axis=1)
    origins = np.broadcast_to(eye, toward.shape).astype(np.float32)
    directions = (toward / distances[:, None]).astype(np.float32)
    hidden = tracer.blocked(origins, directions, distances * (1 - _NEAR_ENOUGH))
    seen = np.zeros(len(points), dtype=bool)
    seen[rows] = ~hidden
    return seen, cells


def _candidates(
    rng: np.random.Generator,
    tracer: Tracer,
    poses: Sequence[np.ndarray],
    focal: float,
    size: tuple[int, int],
    pictures: Sequence[np.ndarray],
    count: int,
) -> np.ndarray:
    """Return about ``count`` places (P, 3) on surfaces, more of them where pictures have texture."""
    places, share = [], -(-count // len(poses))
    for pose, picture in zip(poses, pictures, strict=True):
        cells = rng.choice(size[0] * size[1], share, p=_texturedness(picture))
        pixels = np.stack([cells % size[0], cells // size[0]], axis=1) + rng.random((share, 2))
        origins, directions = camera_rays(pose, focal, pixels, size)
        distances = tracer.first(origins, directions).distances
        met = np.isfinite(distances)
        places.append((origins + directions * np.where(met, distances, 0)[:, None])[met])
    return np.concatenate(places).astype(np.float64)


def sparse_points(
    rng: np.random.Generator,
    tracer: Tracer,
    poses: Sequence[np.ndarray],
    focal: float,
    size: tuple[int, int],
    pictures: Sequence[np.ndarray],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (P, 3) float64, to six decimals, and colours (P, 3) uint8.

    Of ``count`` surface points that at least two views see, a share of 10 to 100 % is kept, patch by patch.
    Each is moved by s·(d/f)·(n + 2·m·r): depth d, focal length f, s between 0.2 and 1 pixels for the scene, n
    and m standard normal, r the ray of the first view that sees it. Up to 5 % are outliers, at 0.4 to 2.5
    times their depth. A colour is the mean over the views that see the point.

    Args:
        rng: Decides on everything random.
        tracer: The world.
        poses: World-to-camera matrices, (4, 4) each.
        focal: Focal length, pixels.
        size: Width and height, pixels.
        pictures: (height, width, 3) uint8, one per pose.
        count: Points before any are left out.
    """
    places = _candidates(rng, tracer, poses, focal, size, pictures, 2 * count)
    views, total = np.zeros(len(places)), np.zeros((len(places), 3))
    first = np.full(len(places), -1)
    for index, (pose, picture) in enumerate(zip(poses, pictures, strict=True)):
        seen, cells = _seen(tracer, pose, focal, size, places)
        views += seen
        total[seen] += picture[cells[seen, 1], cells[seen, 0]]
        first[seen & (first < 0)] = index
    good = rng.permutation(np.flatnonzero(views >= 2))[:count]
    patch = Noise.random(rng).octaves(places[good] * rng.uniform(0.5, 2), 2) + 0.3 * rng.random(len(good))
    kept = good[np.argsort(-patch, kind="stable")[: round(rng.uniform(0.1, 1) * len(good))]]
    eyes = np.stack([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])[first[kept]]
    rays = places[kept] - eyes
    depths = (np.stack(poses)[first[kept], 2, :3] * rays).sum(axis=1, keepdims=True)
    directions = rays / np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-9)
    blur = rng.normal(size=rays.shape) + 2 * rng.normal(size=depths.shape) * directions
    wrong = rng.random(depths.shape) < rng.uniform(0, _MAX_OUTLIERS)
    stretch = np.where(wrong, np.exp(rng.uniform(np.log(0.4), np.log(2.5), depths.shape)), 1.0)
    positions = eyes + stretch * rays + rng.uniform(0.2, 1) * depths / focal * blur
    colors = np.rint(total[kept] / views[kept, None]).astype(np.uint8)
    return np.round(positions, 6), colors
