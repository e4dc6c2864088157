"""Gain: its schedule and its draws edit for edit against plain loops, and splits that hide in the image."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from density.scenes import rotation, rows_of, scene, sigmoid, step_taken
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.scene_edit import Written, apply_edit
from splatopt.density.gain import Gain, GainOptions
from splatopt.density.splitting import sampled_split
from splatopt.density.strategy import DensityLimits
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud

ROWS, RUN = 40, 1000


def strategy_on(objective, options=None, limit: int = 100, seed: int = 7) -> Gain:
    strategy = Gain(
        objective, options or GainOptions(), DensityLimits(limit, (0,)), torch.Generator().manual_seed(seed)
    )
    measure(strategy, seed)
    return strategy


def measure(strategy: Gain, seed: int = 7) -> None:
    """Statistics of rows that views drew between 0 and 5 times."""
    generator = torch.Generator().manual_seed(seed)
    found = strategy.gradient_statistics
    found.views.copy_(torch.randint(0, 6, found.views.shape, generator=generator))
    found.absolute.copy_(torch.rand(found.views.shape, generator=generator) * (found.views > 0))


def counts(options: GainOptions, limit: int, steps: int = RUN) -> list[tuple[int, int]]:
    """Step and rows after every edit of a run."""
    objective = scene(ROWS)
    strategy = strategy_on(objective, options, limit)
    found = []
    for step in range(1, steps + 1):
        edit = strategy.edit(step_taken(step, steps))
        if edit is not None:
            apply_edit(edit, objective, strategy)
            measure(strategy, step)
            found.append((step, len(edit)))
    return found


def test_rows_grow_by_the_same_share_until_all_are_there_at_a_quarter_of_the_run():
    found = counts(GainOptions(), 100)
    assert [step for step, _ in found] == [50, 100, 150, 200, 250]
    done = [(step / RUN - 0.03) / 0.22 for step, _ in found]
    assert [count for _, count in found] == [round(ROWS * 2.5 ** min(1.0, share)) for share in done]
    assert found[-1][1] == 100


def test_the_last_edit_before_the_end_of_growth_brings_all_that_are_missing():
    found = counts(GainOptions(every=60), 100)
    assert found[-1] == (240, 100)


def test_no_row_is_split_twice_in_one_edit_so_that_a_cap_far_away_is_come_near_by_doubling():
    found = counts(GainOptions(every=100), 100_000)
    seen = [ROWS, *(count for _, count in found)]
    assert all(after <= 2 * before for before, after in itertools.pairwise(seen))
    assert found[-1][0] > 250, "edits go on until all are there"


def test_no_row_is_split_after_the_last_step():
    found = counts(GainOptions(every=50), 100_000, steps=100)
    assert [step for step, _ in found] == [50]
    found = counts(GainOptions(every=25, begin=0.0, until=1.0), 60, steps=100)
    assert found[-1] == (75, 60), "the last edit brings all that are missing"


def test_an_edit_is_what_plain_loops_make_of_the_rules():
    objective = scene(ROWS)
    strategy = strategy_on(objective)
    views, absolute = (
        value.tolist() for value in (strategy.gradient_statistics.views, strategy.gradient_statistics.absolute)
    )
    rows = rows_of(objective)
    edit = strategy.edit(step_taken(100, RUN))
    uniform = torch.rand(ROWS, generator=torch.Generator().manual_seed(7), dtype=torch.float64).tolist()
    scores = [one / seen if seen else 0.0 for one, seen in zip(absolute, views, strict=True)]
    finish = {row: -math.log1p(-u) / score for row, (u, score) in enumerate(zip(uniform, scores, strict=True)) if score}
    more = round(ROWS * 2.5 ** ((0.1 - 0.03) / 0.22)) - ROWS
    drawn = sorted(sorted(finish, key=finish.get)[:more])
    assert edit.source.tolist() == [*range(ROWS), *drawn]
    assert not edit.fresh.any()
    for child, sign in enumerate((1, -1)):
        for number, row in enumerate(drawn):
            place = row if child == 0 else ROWS + number
            old = rows[row]
            longest = max(range(3), key=lambda axis: old["log_scales"][axis])
            part = math.exp(old["log_scales"][longest]) / math.sqrt(2)
            axes = rotation(old["quats"])
            centre = [old["means"][axis] + sign * part * axes[axis][longest] for axis in range(3)]
            scales = [s - math.log(2) / 2 * (axis == longest) for axis, s in enumerate(old["log_scales"])]
            b, whole = 1 / math.sqrt(2), sigmoid(old["logit_opacities"])
            opacity = whole / (b + math.sqrt(b * b - b / (2 * math.e) * whole))
            found = {name: edit.parameter(name, value)[place] for name, value in objective.parameters.items()}
            assert found["means"].tolist() == pytest.approx(centre, rel=1e-5, abs=1e-5)
            assert found["log_scales"].tolist() == pytest.approx(scales, rel=1e-5, abs=1e-6)
            assert sigmoid(float(found["logit_opacities"])) == pytest.approx(opacity, rel=1e-4)
            for name in ("quats", "sh_dc", "sh_rest"):
                assert torch.equal(found[name], objective.parameters[name][row])
    children = {*drawn, *range(ROWS, len(edit))}
    for name in objective.parameters:
        assert edit.factors[name].tolist() == [0.5 if row in children else 1.0 for row in range(len(edit))]
    assert not strategy.gradient_statistics.views.any(), "statistics begin again"


def test_rows_are_drawn_in_proportion_to_their_mean_absolute_gradient():
    objective = scene(4)
    drawn = torch.zeros(4)
    for seed in range(400):
        strategy = strategy_on(objective, seed=seed)
        strategy.gradient_statistics.views.copy_(torch.tensor([1.0, 2.0, 4.0, 0.0]))
        strategy.gradient_statistics.absolute.copy_(torch.tensor([1.0, 4.0, 20.0, 0.0]))
        drawn[strategy._draw(1)] += 1
    assert drawn[3] == 0, "a row that no view drew is not split"
    assert (drawn[:3] / 400).tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.06)
    assert strategy._draw(9).tolist() == [0, 1, 2], "no more than there are"


def test_momentum_and_curvature_are_carried_with_a_childs_share():
    objective = scene(ROWS)
    optimizer = Adam(objective, AdamOptions())
    optimizer.step(None, step_taken(1).progress)
    before = {name: value.clone() for name, value in optimizer.state().tensors.items()}
    edit = strategy_on(objective).edit(step_taken(100, RUN))
    apply_edit(edit, objective, optimizer)
    split = edit.source[ROWS:]
    for name, value in optimizer.state().tensors.items():
        if name.startswith(("exp_avg.", "exp_avg_sq.")):
            factor = 0.25 if name.startswith("exp_avg_sq.") else 0.5
            torch.testing.assert_close(value[ROWS:], factor * before[name][split], msg=name)
            torch.testing.assert_close(value[split], factor * before[name][split], msg=name)


def test_a_split_changes_the_image_little():
    camera = Camera(torch.eye(4, dtype=torch.float64), 40.0, 40.0, 24.0, 24.0, 48, 48)
    cloud = GaussianCloud(
        means=torch.tensor([[0.1, 0.0, 4.0]], dtype=torch.float64),
        log_scales=torch.log(torch.tensor([[0.8, 0.3, 0.3]], dtype=torch.float64)),
        quats=torch.tensor([[0.9, 0.1, 0.2, 0.3]], dtype=torch.float64),
        logit_opacities=torch.tensor([0.5], dtype=torch.float64),
        sh_dc=torch.tensor([[1.0, 0.5, -0.5]], dtype=torch.float64),
        sh_rest=torch.zeros(1, 0, 3, dtype=torch.float64),
    )
    renderer = ReferenceRenderer()
    before = renderer.render(cloud, camera, RenderOptions()).image
    objective = scene(1, dtype=torch.float64)
    objective.values = dict(cloud.tensors)
    strategy = Gain(objective, GainOptions(), DensityLimits(2, (0,)), torch.Generator())
    strategy.gradient_statistics.views += 1
    strategy.gradient_statistics.absolute += 1
    edit = strategy.edit(step_taken(250, RUN))
    drawn = sampled_split(cloud.tensors, torch.tensor([0]), torch.Generator().manual_seed(0))
    changes = []
    for values in (edit.values, {name: Written(edit.values["means"].rows, value) for name, value in drawn.items()}):
        split = cloud.clone()
        split.edit_rows(replace(edit, values=values))
        changes.append((renderer.render(split, camera, RenderOptions()).image - before).abs())
    hidden, sampled = changes
    assert hidden.max() < 0.25 * before.max()
    assert hidden.sum() < 0.18 * before.sum()
    assert hidden.sum() < sampled.sum() / 4


@pytest.mark.parametrize("wrong", [{"every": 0}, {"begin": -0.1}, {"begin": 0.3}, {"until": 1.5}])
def test_schedules_that_are_none_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        GainOptions(**wrong)
