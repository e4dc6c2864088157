"""What a scene is shown as: turned, and with another pace, yet the same scene."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.meta.practice import Guise, PracticeOptions, bind, draw_practice, kept_capture
from splatopt.raster.render import make_renderer
from splatopt.scene.initialization import start_from_points

TURN = tuple(torch.nn.functional.normalize(torch.tensor([0.3, -0.8, 0.2, 0.5], dtype=torch.float64), dim=0).tolist())


def shown(scene: str, guise: Guise):
    points = kept_capture(scene).points
    turned = (points.positions.double() @ guise.rotation.T).float()
    cloud = start_from_points(turned, points.colors, sh_degree=1)
    return bind(scene, cloud, (0, 1, 2), (3,), make_renderer("auto", 1), 2, guise)


def test_a_turned_world_looks_the_same_and_its_gradient_turns_with_it(scenes):
    plain, turned = (shown(scenes[0], guise) for guise in (Guise(), Guise(TURN)))
    one, two = (practice.objective.gradient((0, 2)) for practice in (plain, turned))
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    expected = one.gradient["means"] @ Guise(TURN).rotation.float().T
    assert (two.gradient["means"] - expected).norm() < 1e-3 * expected.norm()
    distances = [torch.cdist(practice.positions, practice.positions) for practice in (plain, turned)]
    torch.testing.assert_close(*distances)
    assert turned.objective.length_scale == plain.objective.length_scale


def test_the_pace_is_a_factor_of_the_extent(scenes):
    usual, hasty = (shown(scenes[0], guise) for guise in (Guise(), Guise(pace=3.0)))
    assert hasty.objective.length_scale == pytest.approx(3 * usual.objective.length_scale)
    assert hasty.objective.value((1,)) == usual.objective.value((1,))


def test_guises_are_drawn_within_their_bounds_and_plain_scenes_have_none(scenes):
    generator = torch.Generator().manual_seed(0)
    renderer = make_renderer("auto", 1)
    options = PracticeOptions(turned=0.5, paces=(0.5, 4.0))
    guises = [draw_practice(scenes[0], renderer, options, generator).guise for _ in range(40)]
    assert 5 < sum(guise.turn == Guise().turn for guise in guises) < 35
    assert all(0.5 <= guise.pace <= 4 for guise in guises)
    assert max(guise.pace for guise in guises) > 2.5
    assert min(guise.pace for guise in guises) < 0.8
    assert draw_practice(scenes[0], renderer, PracticeOptions.plain(), generator).guise == Guise()


def test_few_views_are_as_many_as_asked_for_and_the_rest_is_held_out(scenes):
    count, renderer = len(kept_capture(scenes[0]).cameras), make_renderer("auto", 1)
    for few, expected in (((1, 1), {1}), ((2, 3), {2, 3}), ((4, 99), set(range(4, count)))):
        options = PracticeOptions(sparse=1.0, few=few, targets=99)
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_practice(scenes[0], renderer, options, generator) for _ in range(20)]
        assert {len(practice.inputs) for practice in drawn} == expected
        assert all(len(practice.inputs) + len(practice.targets) == count for practice in drawn)
    with pytest.raises(InputError, match=f"has {count} views; practice needs more than {count}"):
        draw_practice(scenes[0], renderer, PracticeOptions(few=(count, count)), torch.Generator())


ODD = {"turned": -0.1}, {"turned": 1.5}, {"paces": (0.0, 1.0)}, {"paces": (2.0, 1.0)}, {"few": (0, 3)}, {"few": (4, 3)}


@pytest.mark.parametrize("changes", ODD)
def test_shares_and_paces_without_sense_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        replace(PracticeOptions(), **changes)
