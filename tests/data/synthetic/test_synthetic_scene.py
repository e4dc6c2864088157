from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.data.images import over_background
from splatopt.data.synthetic import SceneOptions, SyntheticScene, build_scene, make_scene, scene_seed, scene_stream
from splatopt.data.synthetic.points import project
from splatopt.data.synthetic.scene import scene_name
from splatopt.data.synthetic.worlds import KINDS

pytest.importorskip("embreex", reason="the ray caster has no package for this machine")

SMALL = SceneOptions(side=48, views=6, points=300)


@pytest.fixture(scope="module", params=sorted(KINDS))
def scene(request) -> SyntheticScene:
    return build_scene(7, SceneOptions(side=128, views=8, points=600, kinds=(request.param,)))


def pixels_of(scene: SyntheticScene, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the points in a view, (P, 2), and whether they fall into it, (P,)."""
    pixels, depths = project(scene.poses[view], scene.focal, scene.size, scene.positions)
    return pixels, (depths > 0) & (pixels >= 0).all(axis=1) & (pixels < np.array(scene.size)).all(axis=1)


def test_cameras_look_at_the_scene(scene):
    """Most points lie in several pictures, and every picture holds points."""
    inside = np.stack([pixels_of(scene, view)[1] for view in range(8)])
    assert (inside.sum(axis=0) >= 2).mean() > 0.9
    assert (inside.sum(axis=1) >= 5).all()
    for pose in scene.poses:
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        assert pose[1, 2] < 0  # the world's z points up in the picture


def test_pictures_have_texture_and_a_sensible_exposure(scene):
    pictures = np.stack([picture[..., :3][picture[..., -1] > 0].mean() for picture in scene.pictures])
    assert 40 < pictures.mean() < 210
    for picture in scene.pictures:
        assert picture[..., :3].astype(float).std() > 15
        assert (picture[..., :3] == 255).all(axis=2).mean() < 0.25


def test_points_have_the_colours_of_the_pictures(scene):
    """In at least two views a point falls on pixels of its own colour, better than another point would."""
    shuffled = np.random.default_rng(0).permutation(len(scene.colors))
    errors = np.full((2, 8, len(scene.colors)), np.inf)
    for view, picture in enumerate(scene.pictures):
        pixels, inside = pixels_of(scene, view)
        column, row = np.floor(pixels[inside]).astype(int).T
        seen = over_background(picture, (1.0, 1.0, 1.0))[row, column].astype(float)
        for kind, colors in enumerate((scene.colors, scene.colors[shuffled])):
            errors[kind, view, inside] = np.abs(seen - colors[inside]).mean(axis=1)
    right, wrong = np.median(np.sort(errors, axis=1)[:, 1], axis=1)
    assert right < 0.5 * wrong


def test_the_seed_decides_bit_for_bit():
    first, again, other = (build_scene(seed, SMALL) for seed in (3, 3, 4))
    for one, two in zip(first.pictures + first.poses, again.pictures + again.poses, strict=True):
        assert one.tobytes() == two.tobytes()
    assert first.positions.tobytes() == again.positions.tobytes()
    assert first.colors.tobytes() == again.colors.tobytes()
    assert first.focal == again.focal != other.focal


def test_the_stream_does_not_depend_on_where_it_starts():
    from_start = list(itertools.islice(scene_stream(5, SMALL), 2))[1]
    (alone,) = itertools.islice(scene_stream(5, SMALL, start=1), 1)
    assert alone.name == from_start.name == scene_name(1)
    assert all(torch.equal(alone.images[view], from_start.images[view]) for view in range(6))
    assert len({scene_seed(seed, index) for seed in range(10) for index in range(10)}) == 100


def test_world_and_cameras_stay_when_only_the_points_change():
    few, many = (build_scene(3, SceneOptions(side=32, views=4, points=points)) for points in (50, 400))
    assert all(one.tobytes() == two.tobytes() for one, two in zip(few.pictures, many.pictures, strict=True))
    assert 5 <= len(few.positions) <= 50 < len(many.positions) + 50 <= 450


def test_no_points():
    capture = make_scene(3, SceneOptions(side=32, views=2, points=0))
    assert capture.points is not None
    assert len(capture.points) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 8}, "side must lie between 16 and 4096, got 8"),
        ({"views": 1}, "views must lie between 2"),
        ({"points": -1}, "points must lie between 0"),
        ({"samples": 0}, "samples must lie between 1"),
        ({"kinds": ()}, "kinds must name at least one of objects, room, terrain"),
        ({"kinds": ("rooms",)}, "no kind of scene 'rooms'.*room"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        SceneOptions(**change)


def test_a_negative_seed():
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        make_scene(-1)
    with pytest.raises(InputError, match="must be at least 0"):
        next(scene_stream(-1))


def test_options_say_unit_and_source():
    from dataclasses import fields

    from tyro._docstrings import get_field_docstring

    for field in fields(SceneOptions):
        help = get_field_docstring(SceneOptions, field.name, ()) or ""
        assert "Unit:" in help, field.name
        assert "Source:" in help, field.name
