"""A ray-cast still life: textured balls and boxes on a round table in a soft-lit room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Texture = Callable[[np.ndarray], np.ndarray]
"""Maps surface points in an object's own frame, (R, 3), to colours, (R, 3)."""

_FAR = np.float32(1e9)
_OFFSET = np.float32(1e-3)
_TABLE_RADIUS = 2.0
_ROOM_RADIUS = 8.0
_LIGHT = np.array([0.45, -0.35, 0.82], dtype=np.float32) / np.float32(math.sqrt(0.45**2 + 0.35**2 + 0.82**2))
_AMBIENT = 0.42


@dataclass(frozen=True)
class Ball:
    """A sphere: centre (3,), radius, and its texture."""

    center: np.ndarray
    radius: float
    texture: Texture

    def distances(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return the distance to the nearest hit in front of each ray's origin, (R,)."""
        offset = origins - self.center
        half = (offset * directions).sum(axis=-1)
        discriminant = half**2 - (offset * offset).sum(axis=-1) + self.radius**2
        near = -half - np.sqrt(np.maximum(discriminant, 0))
        return np.where((discriminant > 0) & (near > _OFFSET), near, _FAR)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normals (R, 3) and colours (R, 3) at points of the surface."""
        normals = (points - self.center) / self.radius
        return normals, self.texture(normals)


@dataclass(frozen=True)
class Box:
    """A box turned around the vertical: centre (3,), half sides (3,), angle in radians, and its texture."""

    center: np.ndarray
    half: np.ndarray
    angle: float
    texture: Texture

    def _axes(self) -> np.ndarray:
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], dtype=np.float32)

    def distances(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return the distance to the nearest hit in front of each ray's origin, (R,), by the slab method."""
        axes = self._axes()
        offset, local = (origins - self.center) @ axes.T, directions @ axes.T
        inverse = 1 / np.where(np.abs(local) < 1e-9, np.float32(1e-9), local)
        first, second = (-self.half - offset) * inverse, (self.half - offset) * inverse
        near = np.minimum(first, second).max(axis=-1)
        far = np.maximum(first, second).min(axis=-1)
        return np.where((near < far) & (near > _OFFSET), near, _FAR)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normals (R, 3) and colours (R, 3) at points of the surface."""
        axes = self._axes()
        local = (points - self.center) @ axes.T / self.half
        face = np.abs(local).argmax(axis=1)
        normals = np.zeros_like(local)
        rows = np.arange(len(local))
        normals[rows, face] = np.sign(local[rows, face])
        return normals @ axes, self.texture(local)


@dataclass(frozen=True)
class Table:
    """A disc at height 0 around the origin, with its texture."""

    texture: Texture

    def distances(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return the distance to the disc in front of each ray's origin, (R,)."""
        slope = directions[:, 2]
        distance = -origins[..., 2] / np.where(np.abs(slope) < 1e-9, np.float32(1e-9), slope)
        across = origins[..., :2] + directions[:, :2] * distance[:, None]
        inside = (across * across).sum(axis=-1) < _TABLE_RADIUS**2
        return np.where(inside & (distance > _OFFSET), distance, _FAR)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return normals (R, 3), up, and colours (R, 3)."""
        normals = np.zeros_like(points)
        normals[:, 2] = 1
        return normals, self.texture(points)


@dataclass(frozen=True)
class Hits:
    """What rays met: distances (R,) along unit directions and lit colours (R, 3)."""

    distances: np.ndarray
    colors: np.ndarray


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share[:, None]


def _step(values: np.ndarray, softness: float) -> np.ndarray:
    """Return a soft step from 0 to 1 at zero, so that edges do not alias."""
    return np.clip(0.5 + values / softness, 0, 1)


def stripes(first: np.ndarray, second: np.ndarray, axis: Sequence[float], count: float) -> Texture:
    """Return wavy stripes across ``axis``."""
    across = np.array(axis, dtype=np.float32)

    def texture(points: np.ndarray) -> np.ndarray:
        phase = points @ across + np.float32(0.12) * np.sin(5 * points[:, 0] + 3 * points[:, 1])
        return _mix(first, second, _step(np.sin(count * phase), 0.5))

    return texture


def checks(first: np.ndarray, second: np.ndarray, size: float) -> Texture:
    """Return checks of side ``size`` in the plane of x and y, modulated along z."""

    def texture(points: np.ndarray) -> np.ndarray:
        waves = np.sin(points * np.float32(math.pi / size))
        pattern = waves[:, 0] * waves[:, 1]
        grain = np.float32(0.06) * np.sin(23 * points[:, 0] + 4 * np.sin(7 * points[:, 1]))
        return _mix(first, second, _step(pattern, 0.25)) * (1 + grain)[:, None]

    return texture


def marble(first: np.ndarray, second: np.ndarray, phases: np.ndarray) -> Texture:
    """Return veins: a wave bent by a sum of waves (Perlin 1985, with sines for the noise)."""

    def texture(points: np.ndarray) -> np.ndarray:
        bend = np.zeros(len(points), dtype=np.float32)
        for octave, (a, b, c) in enumerate(phases):
            scale = np.float32(2.3 * 1.7**octave)
            bend += (
                np.sin(scale * points[:, 0] + a) * np.sin(scale * points[:, 1] + b) * np.sin(scale * points[:, 2] + c)
            ) / np.float32(1.4**octave)
        veins = np.abs(np.sin(3 * (points[:, 0] + points[:, 2]) + 3 * bend))
        return _mix(first, second, veins ** np.float32(0.6))

    return texture


def bricks(mortar: np.ndarray, clay: np.ndarray, rows: float) -> Texture:
    """Return courses of bricks around a box."""

    def texture(points: np.ndarray) -> np.ndarray:
        course = points[:, 2] * np.float32(rows)
        around = (points[:, 0] + points[:, 1]) * np.float32(rows * 0.5) + np.float32(0.5) * (np.floor(course) % 2)
        gap = np.minimum(np.abs(course - np.rint(course)) * 2, np.abs(around - np.rint(around)) * 4)
        tint = 1 + np.float32(0.12) * np.sin(12.9 * np.floor(course) + 7.3 * np.floor(around))
        return _mix(mortar, clay, _step(gap - 0.2, 0.15)) * tint[:, None]

    return texture


def _color(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], dtype=np.float32)


class DemoScene:
    """The scene of one seed."""

    def __init__(self, seed: int) -> None:
        """Arrange the objects.

        Args:
            seed: Moves and turns them a little and changes their veins; the light and the room stay.
        """
        self.generator = np.random.default_rng(seed)
        rng = self.generator

        def around(angle: float, distance: float, height: float) -> np.ndarray:
            turned = math.radians(angle) + 0.15 * rng.standard_normal()
            return _color(math.cos(turned) * distance, math.sin(turned) * distance, height)

        phases = rng.random((4, 3)).astype(np.float32) * np.float32(2 * math.pi)
        turn = float(rng.random())
        self.objects: tuple[Ball | Box | Table, ...] = (
            Table(checks(_color(0.86, 0.80, 0.68), _color(0.36, 0.25, 0.20), 0.34)),
            Ball(around(0.0, 0.05, 0.50), 0.50, marble(_color(0.12, 0.20, 0.42), _color(0.93, 0.92, 0.88), phases)),
            Ball(
                around(70.0, 1.0, 0.34),
                0.34,
                stripes(_color(0.9, 0.3, 0.16), _color(0.98, 0.86, 0.45), (0.0, 0.3, 1.0), 9.0),
            ),
            Ball(around(190.0, 1.05, 0.26), 0.26, checks(_color(0.10, 0.45, 0.38), _color(0.75, 0.93, 0.80), 0.42)),
            Ball(
                around(310.0, 1.35, 0.18),
                0.18,
                stripes(_color(0.55, 0.18, 0.52), _color(0.9, 0.7, 0.9), (1.0, 0.0, 0.0), 8.0),
            ),
            Box(
                around(130.0, 1.1, 0.36),
                _color(0.24, 0.24, 0.36),
                0.4 + turn,
                bricks(_color(0.85, 0.82, 0.76), _color(0.66, 0.26, 0.18), 4.0),
            ),
            Box(
                around(255.0, 1.1, 0.2),
                _color(0.34, 0.22, 0.2),
                1.1 + turn,
                marble(_color(0.20, 0.40, 0.16), _color(0.80, 0.86, 0.52), phases[::-1]),
            ),
        )

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> Hits:
        """Follow rays to what they meet.

        Args:
            origin: Where all rays start, (3,) float32.
            directions: Unit directions, (R, 3) float32.
        """
        distances, nearest = self._nearest(origin[None], directions)
        colors = np.empty_like(directions)
        room = nearest < 0
        wall = self._wall(origin, directions[room])
        distances[room], colors[room] = wall.distances, wall.colors
        points = origin + directions * distances[:, None]
        for index, thing in enumerate(self.objects):
            rows = np.flatnonzero(nearest == index)
            if len(rows):
                normals, albedo = thing.surface(points[rows])
                colors[rows] = albedo * self._light(points[rows], normals)[:, None]
        return Hits(distances, colors)

    def _nearest(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance to the first object of each ray and its index, -1 for none."""
        best = np.full(len(directions), _FAR, dtype=np.float32)
        nearest = np.full(len(directions), -1)
        for index, thing in enumerate(self.objects):
            distances = thing.distances(origins, directions)
            closer = distances < best
            best[closer], nearest[closer] = distances[closer], index
        return best, nearest

    def _light(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Return the light at points, (R,): a sky, brighter from above, and a sun with shadows."""
        facing = normals @ _LIGHT
        sky = np.float32(_AMBIENT) * (np.float32(0.8) + np.float32(0.2) * normals[:, 2])
        sunny = np.flatnonzero(facing > 0)
        start = points[sunny] + normals[sunny] * _OFFSET
        shaded = self._nearest(start, np.broadcast_to(_LIGHT, start.shape))[1] >= 0
        sun = np.zeros(len(points), dtype=np.float32)
        sun[sunny] = np.where(shaded, 0, facing[sunny])
        return sky + np.float32(0.75) * sun

    @staticmethod
    def _wall(origin: np.ndarray, directions: np.ndarray) -> Hits:
        """Return where rays meet the round room from inside, and its colours: a soft dusk with faint bands."""
        half = directions @ origin
        distances = -half + np.sqrt(half**2 - origin @ origin + np.float32(_ROOM_RADIUS**2))
        points = (origin + directions * distances[:, None]) / np.float32(_ROOM_RADIUS)
        bands = 0.5 + 0.5 * np.sin(6 * np.arctan2(points[:, 1], points[:, 0]))
        colors = _mix(_color(0.30, 0.33, 0.42), _color(0.62, 0.66, 0.74), np.clip(0.75 + 0.6 * points[:, 2], 0, 1))
        return Hits(distances.astype(np.float32), (colors * (0.92 + 0.08 * bands)[:, None]).astype(np.float32))
