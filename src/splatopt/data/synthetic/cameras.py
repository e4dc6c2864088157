"""Where photographs are taken from: around, from a patch in front, or inside; never from within a wall."""

from __future__ import annotations

import math

import numpy as np

from splatopt.data.synthetic.tracing import Tracer
from splatopt.data.synthetic.worlds import World

_TRIES = 12


def looking(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """Return the 4x4 world-to-camera matrix (OpenCV axes, world z up) of a camera at ``eye``.

    Args:
        eye: (3,).
        target: What lies in the middle of the picture, (3,).
        roll: Turn about the optical axis, radians.
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    rotated = math.cos(roll) * right + math.sin(roll) * down
    pose = np.eye(4)
    pose[:3, :3] = np.stack([rotated, np.cross(forward, rotated), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def _sphere(azimuth: float, elevation: float) -> np.ndarray:
    return np.array(
        [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
    )


def _orbit(rng: np.random.Generator, world: World, views: int) -> list[np.ndarray]:
    """One or two turns, or an arc, around the focus."""
    arc = float(rng.choice([2 * math.pi, 4 * math.pi, rng.uniform(1.2, 4)]))
    start, radius = rng.uniform(0, 2 * math.pi), world.radius * rng.uniform(1.5, 2.1)
    low = rng.uniform(0.3, 0.75) if world.kind == "terrain" else rng.uniform(0.2, 0.6)
    rise, shake = rng.uniform(0, 0.5), 0.1 * world.radius
    poses = []
    for share in (np.arange(views) / views).tolist():
        azimuth = start + arc * share + 0.05 * rng.normal()
        outward = _sphere(azimuth, low + rise * share + 0.04 * rng.normal())
        eye = world.focus + radius * rng.uniform(0.9, 1.1) * outward
        poses.append(looking(eye, world.focus + shake * rng.normal(size=3), 0.03 * rng.normal()))
    return poses


def _forward(rng: np.random.Generator, world: World, views: int) -> list[np.ndarray]:
    """A patch before the scene; all look about the same way."""
    base = world.radius * rng.uniform(1.4, 2.0)
    middle = _sphere(rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 0.7) if world.kind == "terrain" else 0.35)
    if world.kind == "room":
        base, middle = world.radius * 0.75, _sphere(rng.uniform(0, 2 * math.pi), rng.uniform(-0.05, 0.15))
    frame = looking(world.focus + base * middle, world.focus)
    spread = base * rng.uniform(0.2, 0.45)
    columns = max(1, round(math.sqrt(views * 1.5)))
    poses = []
    for index in range(views):
        column = index % columns if (index // columns) % 2 == 0 else columns - 1 - index % columns
        across = 2 * (column + rng.uniform(0.2, 0.8)) / columns - 1
        along = 2 * (index // columns + rng.uniform(0.2, 0.8)) / math.ceil(views / columns) - 1
        eye = world.focus + base * middle + spread * (across * frame[0, :3] + 0.6 * along * frame[1, :3])
        beyond = world.focus - (1.0 if world.kind == "room" else 0.2) * base * middle
        poses.append(looking(eye, beyond + 0.05 * base * rng.normal(size=3)))
    return poses


def _inside(rng: np.random.Generator, world: World, views: int) -> list[np.ndarray]:
    """A walk on a circle in the room's middle; all look past the middle to the other side."""
    start, circle = rng.uniform(0, 2 * math.pi), world.radius * rng.uniform(0.4, 0.7)
    arc = float(rng.choice([2 * math.pi, rng.uniform(1.5, 4)]))
    poses = []
    for share in (np.arange(views) / views).tolist():
        azimuth = start + arc * share
        eye = world.focus + circle * rng.uniform(0.8, 1.1) * _sphere(azimuth, 0.0)
        eye[2] *= rng.uniform(0.85, 1.5)
        target = world.focus - world.radius * _sphere(azimuth + 0.3 * rng.normal(), rng.uniform(0, 0.35))
        poses.append(looking(eye, target, 0.02 * rng.normal()))
    return poses


def camera_rays(
    pose: np.ndarray, focal: float, pixels: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return origins and unit directions, (R, 3) float32 each, of the rays through ``pixels`` (R, 2)."""
    rotation, middle = pose[:3, :3], np.array(size) / 2
    local = np.concatenate([(pixels - middle) / focal, np.ones((len(pixels), 1))], axis=1)
    directions = (local / np.linalg.norm(local, axis=1, keepdims=True)) @ rotation
    origins = np.broadcast_to(-rotation.T @ pose[:3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)


def _clear(tracer: Tracer, pose: np.ndarray, focal: float, size: tuple[int, int]) -> bool:
    """Whether nothing stands close before the camera and enough of the world is in the picture."""
    grid = (np.stack(np.meshgrid(np.arange(12), np.arange(12)), axis=-1).reshape(-1, 2) + 0.5) / 12
    distances = tracer.first(*camera_rays(pose, focal, grid * size, size)).distances
    near = 0.22 * tracer.world.radius
    return bool((distances < near).mean() < 0.03 and np.isfinite(distances).mean() > 0.2)


def random_poses(
    rng: np.random.Generator, tracer: Tracer, views: int, focal: float, size: tuple[int, int]
) -> list[np.ndarray]:
    """Return world-to-camera matrices of one path: an orbit, a patch in front, or a walk inside.

    A path with views that something stands before is drawn again, up to 12 times; the one with most clear
    views is taken then.

    Args:
        rng: Decides on the path.
        tracer: The world.
        views: How many.
        focal: Focal length, pixels.
        size: Width and height, pixels.
    """
    world = tracer.world
    around = _inside if world.kind == "room" else _orbit
    best: tuple[int, list[np.ndarray]] = (-1, [])
    for _ in range(_TRIES):
        path = (around if rng.random() < 0.65 else _forward)(rng, world, views)
        clear = sum(_clear(tracer, pose, focal, size) for pose in path)
        if clear > best[0]:
            best = (clear, path)
        if clear == views:
            break
    return best[1]
