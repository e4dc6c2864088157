"""Random shapes: closed meshes that stand on the ground, in a box of about one unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh

from splatopt.data.synthetic.textures import Noise


@dataclass(frozen=True)
class Shape:
    """A mesh and whether light sees it as smooth (interpolated normals) or faceted."""

    mesh: trimesh.Trimesh
    smooth: bool


Maker = Callable[[np.random.Generator], Shape]


def _box(size: tuple[float, float, float], center: tuple[float, float, float]) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(center)
    return mesh


def _joined(meshes: list[trimesh.Trimesh]) -> trimesh.Trimesh:
    faces = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return trimesh.Trimesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, faces, strict=True)]),
        process=False,
    )


def box(rng: np.random.Generator) -> Shape:
    """A box of random sides."""
    return Shape(trimesh.creation.box(rng.uniform(0.35, 1, 3)), smooth=False)


def round_solid(rng: np.random.Generator) -> Shape:
    """A superquadric: x = sgn(n)·|n|ᵉ on the unit sphere, from pillow to pointed star (Barr 1981)."""
    mesh = trimesh.creation.icosphere(4)
    power = rng.uniform(0.3, 1.9, 3)
    mesh.vertices = np.sign(mesh.vertices) * np.abs(mesh.vertices) ** power * rng.uniform(0.4, 1, 3)
    return Shape(mesh, smooth=True)


def rock(rng: np.random.Generator) -> Shape:
    """A ball whose radius follows octaves of noise."""
    mesh, noise = trimesh.creation.icosphere(4), Noise.random(rng)
    swell = noise.octaves(mesh.vertices * rng.uniform(0.8, 2) + 5, 4)
    mesh.vertices = mesh.vertices * (0.4 + rng.uniform(0.6, 1.2) * swell[:, None]) * rng.uniform(0.6, 1, 3)
    return Shape(mesh, smooth=bool(rng.random() < 0.5))


def vase(rng: np.random.Generator) -> Shape:
    """A solid of revolution with a random profile."""
    heights = np.linspace(0, 1, 24)
    knots = rng.uniform(0.08, 0.45, 5)
    radii = np.interp(heights, np.linspace(0, 1, 5), knots) + 0.05 * np.sin(rng.uniform(4, 14) * heights)
    profile = np.column_stack([np.clip(radii, 0.05, None), heights])
    profile = np.vstack([[0, 0], profile, [0, 1]])
    return Shape(trimesh.creation.revolve(profile, sections=40), smooth=True)


def ring(rng: np.random.Generator) -> Shape:
    """A torus, lying or standing."""
    mesh = trimesh.creation.torus(0.38, rng.uniform(0.06, 0.17), major_sections=40, minor_sections=16)
    if rng.random() < 0.6:
        mesh.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    return Shape(mesh, smooth=True)


def drum(rng: np.random.Generator) -> Shape:
    """A cylinder, a cone or a prism of few sides."""
    sides = int(rng.choice([3, 5, 6, 8, 40]))
    if rng.random() < 0.4:
        return Shape(trimesh.creation.cone(rng.uniform(0.3, 0.5), rng.uniform(0.5, 1.2), sections=sides), smooth=False)
    mesh = trimesh.creation.cylinder(rng.uniform(0.2, 0.5), rng.uniform(0.2, 1.1), sections=sides)
    return Shape(mesh, smooth=False)


def twisted(rng: np.random.Generator) -> Shape:
    """A tall box turned and tapered along its height."""
    mesh = trimesh.creation.box([0.5, rng.uniform(0.25, 0.5), 1.2]).subdivide().subdivide().subdivide()
    height = mesh.vertices[:, 2] / 1.2 + 0.5
    angle, width = rng.uniform(-3, 3) * height, 1 - rng.uniform(0, 0.7) * height
    x, y = mesh.vertices[:, 0] * width, mesh.vertices[:, 1] * width
    mesh.vertices = np.column_stack(
        [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), mesh.vertices[:, 2]]
    )
    return Shape(mesh, smooth=False)


def furniture(rng: np.random.Generator) -> Shape:
    """A table, a stool or a chair of thin parts."""
    width, depth, height, thick = *rng.uniform(0.5, 1.0, 2), rng.uniform(0.4, 0.8), rng.uniform(0.04, 0.09)
    parts = [_box((width, depth, thick), (0, 0, height))]
    for x in (-1, 1):
        parts += [
            _box((thick, thick, height), (x * (width - thick) / 2, y * (depth - thick) / 2, height / 2))
            for y in (-1, 1)
        ]
    if rng.random() < 0.5:
        bars = int(rng.integers(2, 7))
        parts += [
            _box((thick, thick / 2, 0.5), (x * (width - thick), (depth - thick) / 2, height + 0.25))
            for x in np.linspace(-0.5, 0.5, bars).tolist()
        ]
    return Shape(_joined(parts), smooth=False)


def shelf(rng: np.random.Generator) -> Shape:
    """A shelf with books of many sizes."""
    boards = int(rng.integers(2, 5))
    height = 0.4 * boards
    parts = [_box((1, 0.28, 0.03), (0, 0, 0.4 * level)) for level in range(boards + 1)]
    parts += [_box((0.03, 0.28, height), (side, 0, height / 2)) for side in (-0.5, 0.5)]
    for level in range(boards):
        place = -0.46
        while place < 0.42:
            width, tall = rng.uniform(0.03, 0.1), rng.uniform(0.18, 0.34)
            if rng.random() < 0.85:
                parts.append(_box((width, 0.2, tall), (place + width / 2, 0, 0.4 * level + tall / 2 + 0.02)))
            place += width + 0.008
    return Shape(_joined(parts), smooth=False)


def bricks(rng: np.random.Generator) -> Shape:
    """A pile of blocks with studs."""
    parts = []
    for _ in range(int(rng.integers(5, 14))):
        x, y, z = rng.integers(-2, 3), rng.integers(-2, 3), rng.integers(0, 4)
        center = (0.2 * float(x), 0.2 * float(y), 0.16 * float(z) + 0.08)
        parts.append(_box((0.38, 0.19, 0.15) if rng.random() < 0.5 else (0.19, 0.38, 0.15), center))
        stud = trimesh.creation.cylinder(0.05, 0.06, sections=10)
        stud.apply_translation((center[0], center[1], center[2] + 0.1))
        parts.append(stud)
    return Shape(_joined(parts), smooth=False)


def frame(rng: np.random.Generator) -> Shape:
    """A lattice of thin rods: fine structure with a view through."""
    corners = rng.uniform(-0.5, 0.5, (int(rng.integers(6, 11)), 3))
    parts = []
    for index, corner in enumerate(corners):
        order = np.argsort(np.linalg.norm(corners - corner, axis=1))
        parts += [
            trimesh.creation.cylinder(rng.uniform(0.015, 0.04), segment=[corner, corners[other]], sections=8)
            for other in order[1:4]
            if other > index
        ]
        ball = trimesh.creation.icosphere(2, radius=0.06)
        ball.apply_translation(corner)
        parts.append(ball)
    return Shape(_joined(parts), smooth=True)


def tree(rng: np.random.Generator) -> Shape:
    """A trunk with a crown of rough balls or of cones."""
    parts = [trimesh.creation.cylinder(0.05, 0.6, sections=8)]
    for _ in range(int(rng.integers(4, 10))):
        if rng.random() < 0.2:
            part = trimesh.creation.cone(rng.uniform(0.15, 0.3), 0.4, sections=9)
        else:
            part = trimesh.creation.icosphere(2, radius=rng.uniform(0.1, 0.25))
            part.vertices = part.vertices * (1 + 0.25 * rng.normal(size=(len(part.vertices), 1)))
        part.apply_translation((*rng.uniform(-0.22, 0.22, 2), rng.uniform(0.25, 0.7)))
        parts.append(part)
    return Shape(_joined(parts), smooth=False)


def house(rng: np.random.Generator) -> Shape:
    """Walls and a roof that hangs over."""
    width, depth, wall, roof = rng.uniform(0.5, 0.8), rng.uniform(0.6, 1), rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.45)
    half, eave = 0.5 * width + 0.06, 0.5 * depth + 0.06
    corners = np.array([[x, y, wall] for x in (-half, half) for y in (-eave, eave)])
    ridge = np.array([[0, -eave, wall + roof], [0, eave, wall + roof]])
    gable = trimesh.Trimesh(np.vstack([corners, ridge])).convex_hull
    return Shape(_joined([_box((width, depth, wall), (0, 0, wall / 2)), gable]), smooth=False)


THINGS: tuple[Maker, ...] = (box, round_solid, rock, vase, ring, drum, twisted, furniture, bricks, frame, tree, house)
"""What stands about in a group of objects."""

FURNITURE: tuple[Maker, ...] = (box, vase, drum, furniture, furniture, shelf, shelf, bricks, round_solid, twisted)
"""What stands about in a room."""

OUTDOORS: tuple[Maker, ...] = (rock, rock, tree, tree, tree, house, house, drum, frame)
"""What stands about on a terrain."""


def standing(shape: Shape, size: float, angle: float) -> Shape:
    """Return the shape scaled to ``size`` across, turned around the vertical, centred and resting on height 0."""
    mesh = shape.mesh.copy()
    mesh.apply_scale(size / float(np.max(mesh.extents)))
    mesh.apply_transform(trimesh.transformations.rotation_matrix(angle, [0, 0, 1]))
    low, high = mesh.bounds
    mesh.apply_translation([-0.5 * (low[0] + high[0]), -0.5 * (low[1] + high[1]), -low[2]])
    return Shape(mesh, shape.smooth)
