"""Random worlds: groups of objects, furnished rooms and terrains, with their lamps and sky. Up is z."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import trimesh

from splatopt.data.synthetic.shapes import FURNITURE, OUTDOORS, THINGS, Maker, Shape, standing
from splatopt.data.synthetic.textures import Noise, Texture, mixed, random_palette, random_texture

SUN_DISTANCE = 200.0
"""Where suns stand, world units; lamps nearer than this grow weaker with distance."""

Sky = Callable[[np.ndarray], np.ndarray]
"""Maps unit directions (R, 3) to radiance (R, 3)."""


@dataclass(frozen=True)
class Thing:
    """A mesh in the world.

    Attributes:
        mesh: Its triangles, world units.
        smooth: Whether normals are interpolated between vertices.
        texture: Reflectances in the thing's own frame, world place minus ``origin``.
        origin: (3,).
        shine: Share of light reflected like a mirror made rough, 0 for matt.
        gloss: Exponent of that reflection (Blinn-Phong).
        glow: Whether it shines by itself, as a window does.
    """

    mesh: trimesh.Trimesh
    smooth: bool
    texture: Texture
    origin: np.ndarray
    shine: float = 0.0
    gloss: float = 20.0
    glow: bool = False


@dataclass(frozen=True)
class Lamp:
    """A small round source of light: place (3,), colour (3,) and radius, world units."""

    place: np.ndarray
    color: np.ndarray
    radius: float


@dataclass(frozen=True)
class World:
    """All that light and cameras need to know.

    Attributes:
        kind: ``objects``, ``room`` or ``terrain``.
        things: Everything that rays can hit.
        lamps: Sources of light.
        ambient: Radiance from everywhere, (3,).
        sky: Radiance where a ray hits nothing; None for nothing at all (see-through photographs).
        focus: What cameras look at, (3,).
        radius: Of the part that matters, world units.
    """

    kind: str
    things: tuple[Thing, ...]
    lamps: tuple[Lamp, ...]
    ambient: np.ndarray
    sky: Sky | None
    focus: np.ndarray
    radius: float


def _colored(rng: np.random.Generator, strength: float, saturation: float) -> np.ndarray:
    return strength * (1 + saturation * rng.uniform(-1, 1, 3))


def _thing(rng: np.random.Generator, shape: Shape, scale: float, place: Sequence[float] = (0, 0, 0)) -> Thing:
    shape.mesh.apply_translation(place)
    shine = float(rng.choice([0, 0, 0.15, 0.5]))
    return Thing(
        shape.mesh, shape.smooth, random_texture(rng, scale), np.array(place, dtype=np.float64), shine,
        gloss=float(rng.uniform(8, 60)),
    )  # fmt: skip


def _slab(low: Sequence[float], high: Sequence[float]) -> Shape:
    return Shape(trimesh.creation.box(bounds=[low, high]), smooth=False)


def _scattered(
    rng: np.random.Generator,
    makers: Sequence[Maker],
    count: int,
    reach: tuple[float, float],
    sizes: tuple[float, float],
) -> list[tuple[Shape, np.ndarray]]:
    """Return shapes with places (x, y, 0) in a rectangle of half sides ``reach``, without large overlaps."""
    found: list[tuple[Shape, np.ndarray, float]] = []
    for _ in range(6 * count):
        if len(found) == count:
            break
        size = rng.uniform(*sizes)
        place = np.append(rng.uniform(-1, 1, 2) * reach, 0.0)
        if all(np.linalg.norm(place - other) > 0.4 * (size + taken) for _, other, taken in found):
            shape = makers[int(rng.integers(len(makers)))](rng)
            found.append((standing(shape, size, rng.uniform(0, 2 * math.pi)), place, size))
    return [(shape, place) for shape, place, _ in found]


def cloudy_sky(rng: np.random.Generator) -> Sky:
    """Return a sky: bright at the horizon, with clouds, and a dim distance below."""
    noise, palette = Noise.random(rng), random_palette(rng, 2)
    zenith, horizon = palette[0] * np.array([0.6, 0.8, 1.1]), 0.5 + 0.5 * palette[1]
    cover, sharp = rng.uniform(0.35, 0.6), rng.uniform(2, 7)

    def sky(directions: np.ndarray) -> np.ndarray:
        up = directions[:, 2:]
        blue = horizon + (zenith - horizon) * np.clip(up, 0, 1) ** 0.5
        cloud = np.clip(sharp * (noise.octaves(3 * directions, 4) - cover), 0, 1)[:, None]
        above = blue + (0.95 - blue) * cloud * np.clip(4 * up + 0.4, 0, 1)
        below = horizon * 0.5 * (0.6 + 0.8 * noise.octaves(6 * directions, 3)[:, None])
        return np.where(up > -0.02, above, below).astype(np.float32)

    return sky


def _suns(rng: np.random.Generator) -> list[Lamp]:
    lamps = []
    for strength in [1.0, 0.35, 0.2][: int(rng.integers(1, 4))]:
        azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.3)
        toward = np.array(
            [math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height)]
        )
        softness = rng.uniform(0.5, 8)
        lamps.append(Lamp(SUN_DISTANCE * toward, _colored(rng, strength, 0.2), softness))
    return lamps


def _bulbs(rng: np.random.Generator, half: np.ndarray, height: float) -> list[Lamp]:
    """Return lamps under a ceiling, of which the first is the strongest."""
    lamps = []
    for index in range(int(rng.integers(2, 5))):
        place = np.append(rng.uniform(-0.8, 0.8, 2) * half, height * rng.uniform(0.75, 0.95))
        lamps.append(Lamp(place, _colored(rng, 1.0 if index == 0 else 0.5, 0.3), rng.uniform(0.02, 0.25)))
    return lamps


def _walls(rng: np.random.Generator, half: np.ndarray, height: float) -> list[Thing]:
    """Return floor, ceiling and four walls, each an own slab, with pictures and windows on the walls."""
    (x, y), t = half.tolist(), 0.1
    slabs = [
        _slab((-x, -y, -t), (x, y, 0)), _slab((-x, -y, height), (x, y, height + t)),
        _slab((-x - t, -y, 0), (-x, y, height)), _slab((x, -y, 0), (x + t, y, height)),
        _slab((-x, -y - t, 0), (x, -y, height)), _slab((-x, y, 0), (x, y + t, height)),
    ]  # fmt: skip
    wallpaper = random_texture(rng, 1.2)
    things = [_thing(rng, slabs[0], 1.0), Thing(slabs[1].mesh, False, random_texture(rng, 0.6), np.zeros(3))]
    for slab in slabs[2:]:
        texture = wallpaper if rng.random() < 0.6 else random_texture(rng, 1.0)
        things.append(Thing(slab.mesh, False, texture, np.zeros(3)))
    for _ in range(int(rng.integers(3, 10))):
        side, axis = int(rng.choice([-1, 1])), int(rng.integers(2))
        size = rng.uniform(0.3, 1.1, 2) * height * 0.45
        center = np.array([rng.uniform(-0.75, 0.75) * x, rng.uniform(-0.75, 0.75) * y, rng.uniform(0.4, 0.7) * height])
        center[axis] = side * half[axis]
        sides = np.array([size[0], size[0], size[1]])
        sides[axis] = 0.06
        shape = _slab((center - sides / 2).tolist(), (center + sides / 2).tolist())
        window = bool(rng.random() < 0.2)
        things.append(Thing(shape.mesh, False, random_texture(rng, rng.uniform(1, 5)), center, shine=0.1, glow=window))
    return things


def objects(rng: np.random.Generator) -> World:
    """A group of objects on a floor under a sky or in a large room, or on nothing before nothing."""
    placed = _scattered(rng, THINGS, int(rng.integers(5, 15)), (1.15, 1.15), (0.4, 1.2))
    things = [_thing(rng, shape, 2.5, place.tolist()) for shape, place in placed]
    for index in rng.permutation(len(things))[: int(rng.integers(0, 3))]:
        top = things[int(index)].mesh.bounds
        shape = standing(THINGS[int(rng.integers(len(THINGS)))](rng), rng.uniform(0.25, 0.4), rng.uniform(0, 6))
        things.append(_thing(rng, shape, 3.5, (*top.mean(axis=0)[:2].tolist(), float(top[1, 2]) - 0.01)))
    setting = float(rng.random())
    sky: Sky | None = cloudy_sky(rng)
    lamps = _suns(rng)
    if setting < 0.25:
        sky = None
        if rng.random() < 0.7:
            things.append(_thing(rng, _slab((-1.7, -1.7, -0.1), (1.7, 1.7, 0)), 1.5))
    elif setting < 0.6:
        half = np.array([rng.uniform(4.5, 6), rng.uniform(4.5, 6)])
        things += _walls(rng, half, 4.5)
        lamps = _bulbs(rng, half * 0.6, 4.5)
    else:
        reach = rng.uniform(2, 9)
        things.append(_thing(rng, _slab((-reach, -reach, -0.1), (reach, reach, 0)), 1.2))
    ambient = _colored(rng, rng.uniform(0.15, 0.4), 0.15)
    return World("objects", tuple(things), tuple(lamps), ambient, sky, np.array([0, 0, 0.3]), 1.6)


def room(rng: np.random.Generator) -> World:
    """A closed room with furniture along its walls and in its middle."""
    half, height = rng.uniform(1.8, 3.2, 2), rng.uniform(2.3, 3.2)
    things = _walls(rng, half, height)
    reach = (float(half[0]) - 0.45, float(half[1]) - 0.45)
    for shape, place in _scattered(rng, FURNITURE, int(rng.integers(12, 24)), reach, (0.5, 1.9)):
        edge = int(np.argmax(np.abs(place[:2]) / half))
        if rng.random() < 0.7:
            place[edge] = np.sign(place[edge]) * reach[edge]
        things.append(_thing(rng, shape, 2.0, place.tolist()))
    ambient = _colored(rng, rng.uniform(0.12, 0.3), 0.15)
    focus = np.array([0, 0, 0.42 * height])
    return World("room", tuple(things), tuple(_bulbs(rng, half, height)), ambient, None, focus, float(np.min(half)))


def _ground(rng: np.random.Generator, half: float) -> tuple[trimesh.Trimesh, Callable[[np.ndarray], np.ndarray]]:
    """Return a height field over a square and the function of x, y that it follows."""
    noise, relief = Noise.random(rng), rng.uniform(0.8, 3.2)
    ridged, frequency = rng.random() < 0.5, rng.uniform(0.25, 0.6)

    def height(places: np.ndarray) -> np.ndarray:
        points = np.column_stack([frequency * places, np.full(len(places), 3.5)])
        value = noise.octaves(points, 6, 0.45).astype(np.float64)
        return relief * (1.6 - 2.8 * np.abs(value - 0.5) - 0.9 if ridged else 1.8 * (value - 0.35))

    count = 97
    line = np.linspace(-half, half, count)
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    corner = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + count, corner + count + 1], axis=1),
            np.stack([corner, corner + count + 1, corner + 1], axis=1),
        ]
    )
    return trimesh.Trimesh(np.column_stack([places, height(places)]), faces, process=False), height


def _layered(rng: np.random.Generator, low: float, high: float) -> Texture:
    """Return strata: a texture below and another above, mixed by height and noise, over a palette's bands."""
    noise, palette = Noise.random(rng), random_palette(rng, 5)
    patterns, level = [random_texture(rng, rng.uniform(0.8, 2)) for _ in range(2)], rng.uniform(0.3, 0.7)

    def texture(points: np.ndarray) -> np.ndarray:
        share = (points[:, 2] - low) / max(high - low, 1e-3) + 0.5 * (noise.octaves(2 * points, 4) - 0.5)
        above = np.clip(0.5 + 6 * (share - level), 0, 1)[:, None]
        pattern = patterns[0](points) * (1 - above) + patterns[1](points) * above
        return 0.6 * pattern + 0.4 * mixed(palette, np.clip(share, 0, 1)) * (
            0.6 + 0.8 * noise.octaves(5 * points, 4, 0.65)[:, None]
        )

    return texture


def terrain(rng: np.random.Generator) -> World:
    """Hills or ridges under a sky, with rocks, trees and houses, perhaps with water."""
    half = 6.0
    ground, height = _ground(rng, half)
    low, high = (float(value) for value in ground.bounds[:, 2])
    things = [Thing(ground, True, _layered(rng, low, high), np.zeros(3))]
    if rng.random() < 0.4:
        level = low + rng.uniform(0.15, 0.35) * (high - low)
        water = _slab((-half, -half, low - 0.1), (half, half, level))
        things.append(Thing(water.mesh, False, random_texture(rng, 0.8), np.zeros(3), shine=0.6, gloss=80))
    for shape, place in _scattered(rng, OUTDOORS, int(rng.integers(16, 48)), (3.4, 3.4), (0.3, 1.2)):
        place[2] = float(height(place[None, :2])[0]) - 0.03
        things.append(_thing(rng, shape, 2.5, place.tolist()))
    ambient = _colored(rng, rng.uniform(0.2, 0.4), 0.15)
    focus = np.array([0, 0, float(height(np.zeros((1, 2)))[0])])
    return World("terrain", tuple(things), tuple(_suns(rng)), ambient, cloudy_sky(rng), focus, 3.0)


KINDS: dict[str, Callable[[np.random.Generator], World]] = {"objects": objects, "room": room, "terrain": terrain}
"""The worlds by name."""
