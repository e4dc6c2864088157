"""What a scene is shown as: turned, and with another pace, yet the same scene."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.meta.tasks import Augmentation, MetaTaskOptions, bind, cached_capture, draw_task
from splatopt.raster.render import make_renderer
from splatopt.scene.initialization import start_from_points

QUATERNION = tuple(
    torch.nn.functional.normalize(torch.tensor([0.3, -0.8, 0.2, 0.5], dtype=torch.float64), dim=0).tolist()
)


def shown(scene: str, augmentation: Augmentation):
    points = cached_capture(scene).points
    rotated = (points.positions.double() @ augmentation.rotation.T).float()
    cloud = start_from_points(rotated, points.colors, sh_degree=1)
    return bind(scene, cloud, (0, 1, 2), (3,), make_renderer("auto", 1), 2, augmentation)


def test_a_turned_world_looks_the_same_and_its_gradient_turns_with_it(scenes):
    plain, rotated = (shown(scenes[0], augmentation) for augmentation in (Augmentation(), Augmentation(QUATERNION)))
    one, two = (task.objective.gradient((0, 2)) for task in (plain, rotated))
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    expected = one.gradient["means"] @ Augmentation(QUATERNION).rotation.float().T
    assert (two.gradient["means"] - expected).norm() < 1e-3 * expected.norm()
    distances = [torch.cdist(task.positions, task.positions) for task in (plain, rotated)]
    torch.testing.assert_close(*distances)
    assert rotated.objective.length_scale == plain.objective.length_scale


def test_the_pace_is_a_factor_of_the_extent(scenes):
    usual, hasty = (
        shown(scenes[0], augmentation) for augmentation in (Augmentation(), Augmentation(extent_factor=3.0))
    )
    assert hasty.objective.length_scale == pytest.approx(3 * usual.objective.length_scale)
    assert hasty.objective.value((1,)) == usual.objective.value((1,))


def test_guises_are_drawn_within_their_bounds_and_plain_scenes_have_none(scenes):
    generator = torch.Generator().manual_seed(0)
    renderer = make_renderer("auto", 1)
    options = MetaTaskOptions(rotated=0.5, extent_factors=(0.5, 4.0))
    guises = [draw_task(scenes[0], renderer, options, generator).augmentation for _ in range(40)]
    assert 5 < sum(augmentation.quaternion == Augmentation().quaternion for augmentation in guises) < 35
    assert all(0.5 <= augmentation.extent_factor <= 4 for augmentation in guises)
    assert max(augmentation.extent_factor for augmentation in guises) > 2.5
    assert min(augmentation.extent_factor for augmentation in guises) < 0.8
    assert draw_task(scenes[0], renderer, MetaTaskOptions.plain(), generator).augmentation == Augmentation()


def test_few_views_are_as_many_as_asked_for_and_the_rest_is_held_out(scenes):
    count, renderer = len(cached_capture(scenes[0]).cameras), make_renderer("auto", 1)
    for few, expected in (((1, 1), {1}), ((2, 3), {2, 3}), ((4, 99), set(range(4, count)))):
        options = MetaTaskOptions(sparse=1.0, few=few, targets=99)
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_task(scenes[0], renderer, options, generator) for _ in range(20)]
        assert {len(task.inputs) for task in drawn} == expected
        assert all(len(task.inputs) + len(task.targets) == count for task in drawn)
    with pytest.raises(InputError, match=f"has {count} views; meta-training needs more than {count}"):
        draw_task(scenes[0], renderer, MetaTaskOptions(few=(count, count)), torch.Generator())


ODD = (
    {"rotated": -0.1},
    {"rotated": 1.5},
    {"extent_factors": (0.0, 1.0)},
    {"extent_factors": (2.0, 1.0)},
    {"few": (0, 3)},
    {"few": (4, 3)},
)


@pytest.mark.parametrize("changes", ODD)
def test_shares_and_paces_without_sense_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        replace(MetaTaskOptions(), **changes)
