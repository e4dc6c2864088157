"""Adaptive density control, edit for edit against 3DGS' rules in plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from density.scenes import EXTENT, rotation, rows_of, scene, sigmoid, step_taken, times
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.scene_edit import apply_edit
from splatopt.density.adc import AdaptiveDensityControl, AdcOptions
from splatopt.density.strategy import DensityLimits
from splatopt.optim.first_order import Adam, AdamOptions

ROWS = 40


def strategy_on(objective, options=None, limit: int = 10_000, **limits) -> AdaptiveDensityControl:
    generator = torch.Generator().manual_seed(7)
    return AdaptiveDensityControl(objective, options or AdcOptions(), DensityLimits(limit, (0,), **limits), generator)


def fill(strategy: AdaptiveDensityControl, seed: int = 3) -> None:
    """Statistics on both sides of every threshold; some rows were seen by no view."""
    generator = torch.Generator().manual_seed(seed)
    statistics = strategy.gradient_statistics
    rows = len(statistics.views)
    statistics.views.copy_(torch.randint(0, 6, (rows,), generator=generator))
    mean = 4e-4 * torch.rand(rows, generator=generator)
    statistics.gradient.copy_(mean * statistics.views)
    if statistics.absolute is not None:
        statistics.absolute.copy_(4 * mean.flip(0) * statistics.views)


def published(
    rows: list[dict], gradients: list[float], options: AdcOptions, step: int, limit: int, noise
) -> list[dict]:
    """3DGS' densify_and_prune and reset_opacity on a list of Gaussians; ``noise`` draws ξ of the split ones."""
    threshold = options.min_absolute_gradient or options.min_gradient
    wanted = [row for row, gradient in enumerate(gradients) if gradient >= threshold]
    wanted = sorted(wanted, key=lambda row: -gradients[row])[: max(0, limit - len(rows))]
    small = {row for row in wanted if max(math.exp(s) for s in rows[row]["log_scales"]) <= options.clone_size * EXTENT}
    clones, split = sorted(small), sorted(set(wanted) - small)
    found = [row for at, row in enumerate(rows) if at not in split]
    found += [copy.deepcopy(rows[row]) | {"fresh": True} for row in clones]
    drawn = noise(len(split))
    for which in range(2):
        for at, row in enumerate(split):
            child = copy.deepcopy(rows[row]) | {"fresh": True}
            scales = [math.exp(s) for s in child["log_scales"]]
            offset = times(rotation(child["quats"]), [s * x for s, x in zip(scales, drawn[which][at], strict=True)])
            child["means"] = [m + o for m, o in zip(child["means"], offset, strict=True)]
            child["log_scales"] = [math.log(s / 1.6) for s in scales]
            if options.revised_opacity:
                opacity = 1 - math.sqrt(1 - sigmoid(child["logit_opacities"]))
                child["logit_opacities"] = math.log(opacity / (1 - opacity))
            found.append(child)
    kept = []
    for row in found:
        is_large = max(math.exp(s) for s in row["log_scales"]) > options.max_size * EXTENT
        if sigmoid(row["logit_opacities"]) < options.min_opacity:
            continue
        if options.max_size and step > options.reset_every > 0 and is_large:
            continue
        kept.append(row)
    return kept


def noise_of(seed: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return lambda count: torch.randn(2, count, 3, generator=generator, dtype=torch.float64).tolist()


def check(objective: Quadratic, edit, expected: list[dict]) -> None:
    assert edit.source.tolist() == [row["source"] for row in expected]
    assert edit.fresh.tolist() == [row["fresh"] for row in expected]
    for name, value in objective.parameters.items():
        wanted = torch.tensor([row[name] for row in expected], dtype=torch.float64)
        torch.testing.assert_close(edit.parameter(name, value).double(), wanted, rtol=1e-5, atol=1e-5, msg=name)


CASES = {
    "published": (AdcOptions(), 600, 10_000),
    "with large rows pruned": (AdcOptions(), 3100, 10_000),
    "large rows are kept where nothing is reset": (AdcOptions(reset_every=0), 3100, 10_000),
    "with no bound on size": (AdcOptions(max_size=0.0), 3100, 10_000),
    "absolute gradients": (AdcOptions(min_absolute_gradient=8e-4), 600, 10_000),
    "revised opacity": (AdcOptions(revised_opacity=True), 600, 10_000),
    "a bound on the count": (AdcOptions(), 600, ROWS + 5),
    "a bound that is reached": (AdcOptions(), 600, ROWS),
    "other thresholds": (
        AdcOptions(min_gradient=1e-4, clone_size=0.03, min_opacity=0.009, max_size=0.05),
        3100,
        10_000,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edit_is_the_published_one(case):
    options, step, limit = CASES[case]
    objective = scene(ROWS)
    strategy = strategy_on(objective, options, limit)
    fill(strategy)
    statistics = strategy.gradient_statistics
    sums = statistics.gradient if statistics.absolute is None else statistics.absolute
    gradients = [value / max(1.0, views) for value, views in zip(sums.tolist(), statistics.views.tolist(), strict=True)]
    expected = published(rows_of(objective), gradients, options, step, limit, noise_of())
    edit = strategy.edit(step_taken(step))
    check(objective, edit, expected)
    assert not any(value.any() for value in statistics.tensors().values()), "statistics begin anew"


def test_the_cases_differ():
    """Each rule decides about some row of the scene."""
    found = {}
    for case, (options, step, limit) in CASES.items():
        objective = scene(ROWS)
        strategy = strategy_on(objective, options, limit)
        fill(strategy)
        edit = strategy.edit(step_taken(step))
        values = [edit.parameter(name, value).flatten().tolist() for name, value in objective.parameters.items()]
        found[case] = str((edit.source.tolist(), values))
    same = [case for case, edit in found.items() if edit == found["published"]]
    assert same == ["published", "large rows are kept where nothing is reset", "with no bound on size"]
    assert len(set(found.values())) == len(CASES) - 2


def test_a_bound_takes_the_highest_gradients():
    objective = scene(ROWS)
    strategy = strategy_on(objective, limit=ROWS + 3)
    statistics = strategy.gradient_statistics
    statistics.views.fill_(1)
    statistics.gradient.copy_(torch.arange(ROWS) * 1e-4)
    chosen = strategy._chosen()
    assert chosen.nonzero().squeeze(1).tolist() == [ROWS - 3, ROWS - 2, ROWS - 1]


def test_edits_come_from_600_to_14_900():
    strategy = strategy_on(scene(ROWS), AdcOptions(reset_every=0))
    schedule = strategy.options.of_run(30_000)
    due = [step for step in range(1, 30_001) if schedule.is_due(step)]
    assert (due[0], due[1], due[-1], len(due)) == (600, 700, 14_900, 144)
    assert strategy.edit(step_taken(599)) is None
    assert strategy.edit(step_taken(500)) is None
    assert strategy.edit(step_taken(15_000)) is None


def test_opacities_are_reset_every_3000_steps():
    objective = scene(ROWS)
    strategy = strategy_on(objective)
    assert strategy.edit(step_taken(2999)) is None
    edit = strategy.edit(step_taken(3000))
    before, after = (
        objective.parameters["logit_opacities"],
        edit.parameter("logit_opacities", objective.parameters["logit_opacities"]),
    )
    kept = edit.gather(before)
    assert (kept.sigmoid() >= 0.005).all(), "transparent rows are pruned by the edit before the reset"
    torch.testing.assert_close(after.sigmoid(), kept.sigmoid().clamp(max=0.01))
    assert list(edit.resets) == ["logit_opacities"]
    assert edit.resets["logit_opacities"].all()
    assert not edit.fresh.any()
    assert list(edit.values) == ["logit_opacities"]
    assert strategy.edit(step_taken(15_000)) is None, "no reset when edits have ended"
    off = strategy_on(scene(ROWS), AdcOptions(reset_every=0))
    assert not off.edit(step_taken(3000)).resets


def test_a_reset_comes_after_the_clones_of_the_same_step():
    objective = scene(ROWS)
    strategy = strategy_on(objective)
    fill(strategy)
    edit = strategy.edit(step_taken(3000))
    assert edit.fresh.any()
    assert edit.parameter("logit_opacities", objective.parameters["logit_opacities"]).sigmoid().max() <= 0.01 + 1e-6


def test_over_white_opacities_are_reset_at_the_start_as_well():
    strategy = strategy_on(scene(ROWS), background=(1.0, 1.0, 1.0))
    edit = strategy.edit(step_taken(500))
    assert edit.resets["logit_opacities"].all()
    assert len(edit) == ROWS
    assert strategy_on(scene(ROWS)).edit(step_taken(500)) is None


def test_a_reset_clears_the_momentum_of_opacities_alone():
    objective = scene(ROWS)
    strategy, optimizer = strategy_on(objective), Adam(objective, AdamOptions())
    from splatopt.core.optimizer import Progress

    optimizer.step(None, Progress(0, 10))
    edit = strategy.edit(step_taken(3000))
    kept = {name: edit.gather(value) for name, value in optimizer.state().tensors.items()}
    apply_edit(edit, objective, optimizer, strategy)
    for name, value in optimizer.state().tensors.items():
        if name.endswith("logit_opacities"):
            assert not value.any()
        else:
            assert torch.equal(value, kept[name])


def test_its_statistics_follow_the_edits_of_others():
    from splatopt.core.scene_edit import SceneEdit

    objective = scene(ROWS)
    strategy = strategy_on(objective)
    fill(strategy)
    mask = torch.arange(ROWS) % 3 > 0
    kept = strategy.gradient_statistics.gradient[mask]
    apply_edit(SceneEdit.keep(mask), objective, strategy)
    assert torch.equal(strategy.gradient_statistics.gradient, kept)


def test_its_state_goes_on():
    objective = scene(ROWS)
    strategy, other = strategy_on(objective), strategy_on(objective)
    fill(strategy)
    other.load_state(strategy.state())
    for name, value in strategy.state().tensors.items():
        assert torch.equal(value, other.state().tensors[name])
    assert set(strategy.state().tensors) == {
        f"gradient_statistics.{name}" for name in ("views", "gradient", "max_radius")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_gradient": 0.0}, "min_gradient must be a positive number"),
        ({"clone_size": -1.0}, "clone_size must be a positive number"),
        ({"min_absolute_gradient": -1.0}, "min_absolute_gradient must be 0 or a positive number"),
        ({"max_size": math.inf}, "max_size must be 0 or a positive number"),
        ({"min_opacity": 1.0}, "min_opacity must lie between 0 and 1"),
        ({"min_opacity": 0.02}, "min_opacity must be below 0.01, which a reset brings all opacities to, got 0.02"),
        ({"reset_every": -1}, "reset_every must be at least 0"),
        ({"every": 0}, "every must be at least 1"),
        ({"start": -1}, "start must be at least 0"),
        ({"until": -1}, "until must be at least 0"),
        ({"horizon": -1}, "horizon must be at least 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(AdcOptions(), **changes)
