"""Solid textures: colours as functions of the place in an object's own frame, from noise and patterns."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

Texture = Callable[[np.ndarray], np.ndarray]
"""Maps points in an object's own frame, (R, 3), to reflectances in [0, 1], (R, 3)."""

_CELLS = 24


@dataclass(frozen=True)
class Noise:
    """Value noise (a smoothed lattice of random numbers that repeats) and its sum over octaves.

    Attributes:
        lattice: (n, n, n) float32 in [0, 1].
    """

    lattice: np.ndarray

    @staticmethod
    def random(rng: np.random.Generator) -> Noise:
        """Return noise with a random lattice."""
        return Noise(rng.random((_CELLS, _CELLS, _CELLS), dtype=np.float32))

    def one(self, points: np.ndarray) -> np.ndarray:
        """Return values in [0, 1] at ``points`` (R, 3), one lattice cell per unit, smooth across cells."""
        below = np.floor(points)
        part = points - below
        smooth = below + part * part * (3 - 2 * part)
        return map_coordinates(self.lattice, smooth.T, order=1, mode="grid-wrap", output=np.float32)

    def octaves(self, points: np.ndarray, count: int, gain: float = 0.5) -> np.ndarray:
        """Return Σ gainⁱ·noise(2ⁱ·points), scaled to [0, 1]; Perlin's sum of octaves."""
        total = np.zeros(len(points), dtype=np.float32)
        for octave in range(count):
            total += np.float32(gain**octave) * self.one(points * 2.0**octave + 7.3 * octave)
        return total / np.float32(sum(gain**octave for octave in range(count)))


def random_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return reflectances (count, 3) whose hues lie near one another or opposite, light and dark mixed.

    Every second palette is of earth and wood, as most of the world is.
    """
    hue, spread = rng.uniform(0.03, 0.16) if rng.random() < 0.5 else rng.random(), rng.choice([0.03, 0.1, 0.5])
    saturation = 0.05 + 0.8 * rng.random() ** 1.5
    values = rng.permutation(np.linspace(rng.uniform(0.08, 0.35), rng.uniform(0.6, 0.92), count))
    return np.array(
        [
            colorsys.hsv_to_rgb(
                (hue + spread * rng.uniform(-1, 1)) % 1, min(1, saturation * rng.uniform(0.6, 1.3)), value
            )
            for value in values
        ],
        dtype=np.float32,
    )


def mixed(palette: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return colours (R, 3) along the palette's polyline at ``share`` in [0, 1]."""
    stops = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(share, stops, palette[:, channel]) for channel in range(3)], axis=1)


def _soft(values: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 + values / width, 0, 1)


def _hashed(cells: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return whole numbers below ``count`` that look random, one per integer cell."""
    mix = np.zeros(len(cells[0]), dtype=np.uint32)
    for cell, prime in zip(cells, (73856093, 19349663, 83492791), strict=False):
        mix ^= (cell.astype(np.int64) & 0xFFFF).astype(np.uint32) * np.uint32(prime)
    mix ^= mix >> np.uint32(13)
    mix *= np.uint32(0x5BD1E995)
    return ((mix ^ (mix >> np.uint32(15))) % np.uint32(count)).astype(np.int64)


def cloudy(rng: np.random.Generator, scale: float) -> Texture:
    """Return patches of a palette by thresholds of warped noise (stone, rust, camouflage)."""
    noise, palette, hard = Noise.random(rng), random_palette(rng, 4), rng.uniform(0.8, 4)

    def texture(points: np.ndarray) -> np.ndarray:
        value = noise.octaves(points * scale, 4, 0.55)
        return mixed(palette, np.clip(0.5 + hard * (value - 0.5), 0, 1))

    return texture


def veined(rng: np.random.Generator, scale: float) -> Texture:
    """Return marble: a wave bent by octaves of noise (Perlin 1985)."""
    noise, palette = Noise.random(rng), random_palette(rng, 3)
    across, bend, power = rng.normal(size=3), rng.uniform(2, 7), rng.uniform(0.4, 1.5)

    def texture(points: np.ndarray) -> np.ndarray:
        phase = (points @ across) * scale + bend * noise.octaves(points * scale, 4)
        return mixed(palette, np.abs(np.sin(phase)) ** power)

    return texture


def wooden(rng: np.random.Generator, scale: float) -> Texture:
    """Return planks with rings of grain along one axis."""
    noise, palette = Noise.random(rng), random_palette(rng, 3)
    order = rng.permutation(3)
    rings = rng.uniform(4, 9)

    def texture(points: np.ndarray) -> np.ndarray:
        x, y, z = (points[:, axis] * scale for axis in order)
        plank = np.floor(1.3 * x)
        stretched = np.stack([x, y, 0.15 * z], axis=1) + 5.1 * plank[:, None]
        value = noise.octaves(3 * stretched, 3)
        seam = _soft(np.abs(1.3 * x - np.rint(1.3 * x)) - 0.02, 0.03)
        grain = 0.5 + 0.5 * np.sin(rings * (2 * value + 0.3 * y))
        return mixed(palette, 0.75 * grain + 0.25 * _hashed([plank], 7) / 7) * (0.35 + 0.65 * seam)[:, None]

    return texture


def striped(rng: np.random.Generator, scale: float) -> Texture:
    """Return stripes of several widths, straight or wavy."""
    noise, count = Noise.random(rng), int(rng.integers(2, 6))
    palette, wave = random_palette(rng, count), rng.choice([0.0, 0.3, 1.0])
    across = rng.normal(size=3) * rng.choice([0.1, 1.0], 3)
    across /= np.linalg.norm(across)
    edges = np.sort(rng.random(count))

    def texture(points: np.ndarray) -> np.ndarray:
        phase = (2 * scale * (points @ across) + wave * noise.one(scale * points)) % 1
        return palette[np.searchsorted(edges, phase) % count]

    return texture


def checked(rng: np.random.Generator, scale: float) -> Texture:
    """Return checks in three dimensions, or tiles of random colours with joints."""
    count = int(rng.choice([2, 2, 5]))
    palette, shift, joint = random_palette(rng, count + 1), rng.random(3), rng.choice([0.0, 0.06])

    def texture(points: np.ndarray) -> np.ndarray:
        place = 2 * scale * points + shift
        cells = np.floor(place)
        kind = cells.sum(axis=1).astype(np.int64) % 2 if count == 2 else _hashed(list(cells.T), count)
        nearest = np.sort(np.abs(place - np.rint(place)), axis=1)[:, 1]
        return np.where((nearest < joint)[:, None], palette[-1], palette[kind])

    return texture


def bricked(rng: np.random.Generator, scale: float) -> Texture:
    """Return courses of bricks around the vertical, each of its own tint, or paving on a floor."""
    noise, palette, length = Noise.random(rng), random_palette(rng, 3), rng.uniform(0.3, 0.7)
    flat = rng.random() < 0.4

    def texture(points: np.ndarray) -> np.ndarray:
        course = 4 * scale * (points[:, 1] if flat else points[:, 2]) + 0.37
        along = 4 * scale * length * (points[:, 0] + (0 if flat else points[:, 1])) + 0.5 * (np.floor(course) % 2)
        gap = np.minimum(np.abs(course - np.rint(course)), np.abs(along - np.rint(along)) / length)
        tint = 0.5 * _hashed([np.floor(course), np.floor(along)], 64) / 64 + 0.5 * noise.octaves(6 * points, 3)
        share = _soft(gap - 0.07, 0.05)[:, None]
        return palette[0] * (1 - share) + mixed(palette[1:], tint) * share

    return texture


def dotted(rng: np.random.Generator, scale: float) -> Texture:
    """Return balls of a few colours in a ground, on a jittered lattice."""
    palette, noise = random_palette(rng, 4), Noise.random(rng)
    shift, radius = rng.random((64, 3)) * 0.4 - 0.2, rng.uniform(0.2, 0.38)

    def texture(points: np.ndarray) -> np.ndarray:
        place = 2.5 * scale * points + 0.31
        cells = np.floor(place)
        kind = _hashed(list(cells.T), 64)
        away = np.linalg.norm(place - cells - 0.5 - shift[kind], axis=1)
        share = _soft(radius - away, 0.06)[:, None]
        ground = palette[0] * (0.6 + 0.6 * noise.octaves(2 * place, 3))[:, None]
        return ground * (1 - share) + palette[1 + kind % 3] * share

    return texture


def cellular(rng: np.random.Generator, scale: float) -> Texture:
    """Return pebbles or scales: Worley's cells around random points, dark where two meet."""
    count = 220
    tree, palette = cKDTree(rng.random((count, 3)), boxsize=1), random_palette(rng, 5)
    share, shade = rng.random(count), rng.uniform(0.3, 1.0)

    def texture(points: np.ndarray) -> np.ndarray:
        away, index = tree.query((points * scale * 0.45) % 1, k=2)
        edge = np.clip((away[:, 1] - away[:, 0]) * 25, 0, 1)
        return mixed(palette, share[index[:, 0] % count]) * (1 - shade + shade * edge)[:, None]

    return texture


def printed(rng: np.random.Generator, scale: float) -> Texture:
    """Return a print: rectangles of many sizes in a quadtree's order, as on posters, books and packets."""
    palette, shift = random_palette(rng, 6), rng.random(3)

    def texture(points: np.ndarray) -> np.ndarray:
        place = points * scale + shift
        kind = _hashed(list(np.floor(place).T), 6)
        for level in (2.0, 4.0, 8.0):
            cells = list(np.floor(place * level).T)
            finer = _hashed(cells, 11) < 4
            kind = np.where(finer, _hashed(cells[::-1], 6), kind)
        return palette[kind]

    return texture


PATTERNS: tuple[Callable[[np.random.Generator, float], Texture], ...] = (
    cloudy, veined, wooden, striped, checked, bricked, dotted, cellular, printed,
)  # fmt: skip


def random_texture(rng: np.random.Generator, scale: float = 1.0) -> Texture:
    """Return a pattern under several octaves of grain and stains.

    Args:
        rng: Decides on pattern, palette and sizes.
        scale: Features per unit of length, about; varied by a factor of 2 each way.
    """
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))](rng, scale * 2 ** rng.uniform(-1, 1))
    noise, depth, frequency = Noise.random(rng), rng.uniform(0.1, 0.7), scale * rng.uniform(1, 4)

    def texture(points: np.ndarray) -> np.ndarray:
        grain = noise.octaves(points * frequency, 4, 0.65)[:, None]
        return np.clip(pattern(points) * (1 + depth * (2 * grain - 1.1)), 0.01, 0.95)

    return texture
