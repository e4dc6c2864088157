"""Rays, light and points against a world that can be worked out by hand: a unit box on a floor."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from splatopt.core.checks import InputError
from splatopt.data.synthetic import tracing
from splatopt.data.synthetic.cameras import camera_rays, looking
from splatopt.data.synthetic.images import render_images
from splatopt.data.synthetic.points import project, sparse_points
from splatopt.data.synthetic.tracing import Tracer
from splatopt.data.synthetic.worlds import SUN_DISTANCE, Lamp, Thing, World

pytest.importorskip("embreex", reason="the ray caster has no package for this machine")

FOCAL, SIZE = 60.0, (48, 40)


def grey(points: np.ndarray) -> np.ndarray:
    return np.full(points.shape, 0.5, dtype=np.float32)


def speckled(points: np.ndarray) -> np.ndarray:
    return (0.5 + 0.4 * np.sin(7 * points) * np.sin(9 * points[:, ::-1])).astype(np.float32)


def box_world(texture=grey, sun=(0.0, 0.0, 1.0)) -> World:
    floor = trimesh.creation.box(bounds=[(-3, -3, -0.1), (3, 3, 0)])
    block = trimesh.creation.box(bounds=[(-0.5, -0.5, 0), (0.5, 0.5, 1)])
    things = tuple(Thing(mesh, False, texture, np.zeros(3)) for mesh in (floor, block))
    direction = np.array(sun) / np.linalg.norm(sun)
    lamp = Lamp(SUN_DISTANCE * direction, np.ones(3), 0.0)
    return World("objects", things, (lamp,), np.full(3, 0.2), None, np.array([0, 0, 0.5]), 1.5)


def ray(origin, direction) -> tuple[np.ndarray, np.ndarray]:
    unit = np.array([direction], dtype=np.float32)
    return np.array([origin], dtype=np.float32), unit / np.linalg.norm(unit)


def test_distances_and_light_by_hand():
    tracer = Tracer(box_world())
    down = ray((0.2, 0.1, 3), (0, 0, -1))
    assert tracer.first(*down).distances[0] == pytest.approx(2, abs=1e-5)
    assert np.isinf(tracer.first(*ray((0, 0, 3), (0, 0, 1))).distances[0])
    # Lit from straight above: 0.5·(0.2·1 + 1); the side sees the sky alone: 0.5·0.2·0.75.
    zero = np.zeros(1, dtype=np.float32)
    assert tracer.radiance(*down, zero)[0] == pytest.approx(np.full((1, 3), 0.6), abs=1e-4)
    side = tracer.radiance(*ray((3, 0.1, 0.5), (-1, 0, 0)), zero)[0]
    assert side == pytest.approx(np.full((1, 3), 0.075), abs=1e-4)


def test_shadows_fall_away_from_the_sun():
    tracer = Tracer(box_world(sun=(1.0, 0.0, 1.0)))
    zero = np.zeros(1, dtype=np.float32)
    shaded, lit = (tracer.radiance(*ray((x, 0.1, 3), (0, 0, -1)), zero)[0][0, 0] for x in (-1.0, 1.2))
    assert shaded == pytest.approx(0.1, abs=1e-3)
    assert lit == pytest.approx(0.1 + 0.5 * np.sqrt(0.5), abs=0.01)


def test_edges_are_smooth_and_see_through():
    pose = looking(np.array([0.0, -4, 1.5]), np.array([0, 0, 0.5]), 0.1)
    (picture,) = render_images(Tracer(box_world()), [pose], FOCAL, SIZE, 3)
    assert picture.shape == (40, 48, 4)
    alpha = picture[..., 3]
    assert {0, 255} < set(np.unique(alpha).tolist())
    assert (picture[..., :3][alpha == 0] == 0).all()
    assert set(np.unique(alpha).tolist()) <= {round(255 * share / 9) for share in range(10)}


def test_rays_go_through_the_pixels_that_points_project_to():
    pose = looking(np.array([2.0, -3, 1.5]), np.array([0, 0, 0.4]), 0.2)
    pixels = np.random.default_rng(0).uniform(0, 40, (50, 2))
    origins, directions = camera_rays(pose, FOCAL, pixels, SIZE)
    back, depths = project(pose, FOCAL, SIZE, origins + 3.0 * directions.astype(np.float64))
    np.testing.assert_allclose(back, pixels, atol=1e-3)
    assert (depths > 0).all()


def test_points_lie_near_surfaces_with_noise_that_grows_with_depth():
    tracer = Tracer(box_world(speckled, (0.5, -0.6, 1)))
    offsets = []
    for reach in (3.0, 6.0):
        poses = [looking(np.array([x, -reach, 0.6 * reach]), np.array([0, 0, 0.3])) for x in np.linspace(-1, 1, 5)]
        pictures = [picture[..., :3] for picture in render_images(tracer, poses, FOCAL, SIZE, 2)]
        spawned = np.random.default_rng(1)
        positions, colors = sparse_points(spawned, tracer, poses, FOCAL, SIZE, pictures, 2000)
        assert 200 <= len(positions) <= 2000
        assert len(colors) == len(positions)
        x, y, z = np.abs(positions - [0, 0, 0.5]).T
        over = np.stack([x, y, z], axis=1) - 0.5
        box = np.abs(np.where((over > 0).any(axis=1), np.linalg.norm(over.clip(0), axis=1), over.max(axis=1)))
        offsets.append(np.median(np.minimum(box, np.abs(positions[:, 2]))))
        # At most 1 pixel sideways and 2 along the ray, in the median well below both together.
        assert 0 < offsets[-1] < 1.5 * 1.2 * reach / FOCAL
    assert 1.4 < offsets[1] / offsets[0] < 2.9


def test_without_the_ray_caster_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(InputError, match="needs the ray caster embreex"):
        tracing.Tracer(box_world())
