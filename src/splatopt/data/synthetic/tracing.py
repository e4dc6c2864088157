"""Rays against all triangles of a world, by Embree, and the light that comes back along them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from splatopt.core.checks import InputError
from splatopt.data.synthetic.worlds import SUN_DISTANCE, Lamp, World

_OFFSET = np.float32(2e-3)
_FAR = np.float32(1e30)


def _embree(vertices: np.ndarray, faces: np.ndarray) -> Any:
    """Return Embree's scene of one mesh.

    Raises:
        InputError: The package is not installed; there is none for this kind of machine.
    """
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise InputError("making scenes needs the ray caster embreex; install it with: pip install embreex") from error
    scene = EmbreeScene()
    TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
    return scene


@dataclass(frozen=True)
class Hits:
    """What rays met.

    Attributes:
        distances: (R,) float32 along unit directions; infinite where nothing was met.
        faces: (R,) int32, the triangle met, -1 for none.
        u: (R,) float32, weight of the triangle's second corner.
        v: (R,) float32, weight of its third corner.
    """

    distances: np.ndarray
    faces: np.ndarray
    u: np.ndarray
    v: np.ndarray


class Tracer:
    """A world's triangles, ready for rays."""

    def __init__(self, world: World) -> None:
        """Join the meshes of ``world``.

        Raises:
            InputError: Embree is not installed.
        """
        self.world = world
        meshes = [thing.mesh for thing in world.things]
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
        vertices = np.concatenate([mesh.vertices for mesh in meshes])
        faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)])
        self._owner = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes])
        self._normals = np.concatenate(
            [
                mesh.vertex_normals[mesh.faces] if thing.smooth else np.repeat(mesh.face_normals[:, None], 3, axis=1)
                for mesh, thing in zip(meshes, world.things, strict=True)
            ]
        ).astype(np.float32)
        self._scene = _embree(vertices, faces)

    def first(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Return the first triangle along each ray.

        Args:
            origins: (R, 3) float32.
            directions: Unit vectors, (R, 3) float32.
        """
        found = self._scene.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions), output=True)
        missed = found["primID"] < 0
        return Hits(
            np.where(missed, np.float32(np.inf), found["tfar"]),
            np.where(missed, np.int32(-1), found["primID"]),
            found["u"],
            found["v"],
        )

    def blocked(self, origins: np.ndarray, directions: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return whether anything lies nearer than ``distances`` (R,) along each ray, (R,) bool."""
        return (
            self._scene.run(
                np.ascontiguousarray(origins),
                np.ascontiguousarray(directions),
                distances.astype(np.float32),
                query="OCCLUDED",
            )
            >= 0
        )

    def radiance(
        self, origins: np.ndarray, directions: np.ndarray, samples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return radiance (R, 3) and whether anything is there, (R,), along rays.

        Args:
            origins: (R, 3) float32.
            directions: Unit vectors, (R, 3) float32.
            samples: Which part of a lamp each ray sees the light of, in [0, 1), (R,).
        """
        hits, world = self.first(origins, directions), self.world
        met = hits.faces >= 0
        colors = np.zeros_like(directions)
        if world.sky is not None:
            colors[~met] = world.sky(directions[~met])
        rows = np.flatnonzero(met)
        points = origins[rows] + directions[rows] * hits.distances[rows, None]
        owner = self._owner[hits.faces[rows]]
        normals = self._facing(hits, rows, directions)
        albedo, gloss, shine, glow = self._surface(points, owner)
        diffuse, mirror = self._light(points, normals, directions[rows], samples[rows], gloss)
        colors[rows] = albedo * np.where(glow[:, None], np.float32(1.5), diffuse) + shine[:, None] * mirror
        return colors, met

    def _facing(self, hits: Hits, rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return unit normals (K, 3) that look back along the rays ``rows``."""
        u, v = hits.u[rows, None], hits.v[rows, None]
        corners = self._normals[hits.faces[rows]]
        normals = corners[:, 0] * (1 - u - v) + corners[:, 1] * u + corners[:, 2] * v
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.float32(1e-6))
        away = (normals * directions[rows]).sum(axis=1) > 0
        normals[away] *= -1
        return normals

    def _surface(self, points: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return reflectance (K, 3), gloss, shine and glow (K,) at points of the things ``owner``."""
        things = self.world.things
        albedo = np.empty(points.shape, dtype=np.float32)
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(len(things) + 1))
        for thing, start, end in zip(things, bounds[:-1], bounds[1:], strict=True):
            if end > start:
                mine = order[start:end]
                albedo[mine] = thing.texture(points[mine] - thing.origin)
        gloss = np.array([thing.gloss for thing in things], dtype=np.float32)[owner]
        shine = np.array([thing.shine for thing in things], dtype=np.float32)[owner]
        glow = np.array([thing.glow for thing in things])[owner]
        return albedo, gloss, shine, glow

    def _light(
        self, points: np.ndarray, normals: np.ndarray, directions: np.ndarray, samples: np.ndarray, gloss: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what falls on matt surfaces (Lambert) and what glossy ones mirror (Blinn-Phong), (K, 3) each."""
        diffuse = np.float32(0.75) + np.float32(0.25) * normals[:, 2:]
        diffuse = diffuse * self.world.ambient.astype(np.float32)
        mirror = np.zeros_like(diffuse)
        for lamp in self.world.lamps:
            toward, strength = _toward(lamp, points, samples)
            distances = np.linalg.norm(toward, axis=1)
            toward /= distances[:, None]
            facing = (normals * toward).sum(axis=1)
            lit = np.flatnonzero(facing > 0)
            starts = points[lit] + normals[lit] * _OFFSET
            lit = lit[~self.blocked(starts, toward[lit], np.minimum(distances[lit] - 2 * _OFFSET, _FAR))]
            color = lamp.color.astype(np.float32) * strength[lit, None]
            diffuse[lit] += color * facing[lit, None]
            half = toward[lit] - directions[lit]
            half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), np.float32(1e-6))
            mirror[lit] += color * ((normals[lit] * half).sum(axis=1).clip(0, 1) ** gloss[lit])[:, None]
        return diffuse, mirror


def _toward(lamp: Lamp, points: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors (K, 3) from points to a place on the lamp, and its strength there, (K,).

    Strength is 1 for suns and 4/(1 + d²) at distance d from a lamp in a room.
    """
    angle = np.float32(2 * math.pi) * samples
    ring = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle)], axis=1) * np.float32(lamp.radius)
    toward = (lamp.place.astype(np.float32) + ring - points).astype(np.float32)
    if float(np.linalg.norm(lamp.place)) >= 0.99 * SUN_DISTANCE:
        return toward, np.ones(len(points), dtype=np.float32)
    return toward, np.float32(4) / (1 + (toward * toward).sum(axis=1))
