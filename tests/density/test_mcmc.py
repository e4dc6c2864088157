"""3DGS as MCMC, edit for edit against the published rules in plain loops; its noise and its penalty."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from density.scenes import rotation, rows_of, scene, sigmoid, step_taken, times
from density.test_relocation import mass
from splatopt.core.checks import InputError
from splatopt.density.mcmc import MarkovChain, McmcOptions
from splatopt.density.strategy import DensityLimits

ROWS, DUE = 40, 600


def strategy_on(objective, options=None, limit: int = 10_000) -> MarkovChain:
    return MarkovChain(
        objective, options or McmcOptions(), DensityLimits(limit, (0,)), torch.Generator().manual_seed(7)
    )


class Draws:
    """Draws rows as the strategy's generator does, by a loop over the sum of opacities."""

    def __init__(self, seed: int = 7) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, weights: list[float], count: int) -> list[int]:
        if sum(weights) <= 0:
            return []
        places = torch.rand(count, generator=self.generator, dtype=torch.float64).tolist()
        return [self._row(weights, place * sum(weights)) for place in places]

    @staticmethod
    def _row(weights: list[float], place: float) -> int:
        passed = 0.0
        for row, weight in enumerate(weights):
            passed += weight
            if passed > place:
                return row
        raise AssertionError("the place lies within the sum")


def share(rows: list[dict], drawn: list[int], least: float) -> None:
    """Let every drawn row share opacity and mass with its copies, which are still to be made."""
    for row in sorted(set(drawn)):
        copies = min(51, drawn.count(row) + 1)
        opacity = sigmoid(rows[row]["logit_opacities"])
        shared = 1 - (1 - opacity) ** (1 / copies)
        factor = opacity / mass(shared, copies)
        shared = min(max(shared, least), 1 - 1e-7)
        rows[row]["logit_opacities"] = math.log(shared / (1 - shared))
        rows[row]["log_scales"] = [s + math.log(factor) for s in rows[row]["log_scales"]]
        rows[row]["fresh"] = True


def published(rows: list[dict], options: McmcOptions, limit: int, draws: Draws) -> list[dict]:
    """relocate_gs, then add_new_gs."""
    opacities = [sigmoid(row["logit_opacities"]) for row in rows]
    dead = [row for row, opacity in enumerate(opacities) if opacity <= options.min_opacity]
    alive = [0.0 if row in dead else opacity for row, opacity in enumerate(opacities)]
    drawn = draws.rows(alive, len(dead)) if dead else []
    share(rows, drawn, options.min_opacity)
    for row, source in zip(dead, drawn, strict=bool(drawn)):
        rows[row] = copy.deepcopy(rows[source])
    more = max(0, min(limit, int((1 + options.growth) * len(rows))) - len(rows))
    drawn = draws.rows([sigmoid(row["logit_opacities"]) for row in rows], more) if more else []
    share(rows, drawn, options.min_opacity)
    return rows + [copy.deepcopy(rows[row]) for row in drawn]


def check(objective, edit, expected: list[dict]) -> None:
    assert edit.source.tolist() == [row["source"] for row in expected]
    assert edit.fresh.tolist() == [row["fresh"] for row in expected]
    for name, value in objective.parameters.items():
        wanted = torch.tensor([row[name] for row in expected], dtype=torch.float64)
        torch.testing.assert_close(edit.parameter(name, value).double(), wanted, rtol=1e-4, atol=1e-4, msg=name)


CASES = {
    "published": (McmcOptions(), 10_000),
    "faster": (McmcOptions(growth=1.5), 10_000),
    "up to a bound": (McmcOptions(growth=1.5), ROWS + 3),
    "at the bound": (McmcOptions(), ROWS),
    "many dead": (McmcOptions(min_opacity=0.2), ROWS),
    "none dead": (McmcOptions(min_opacity=1e-5), 10_000),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edit_is_the_published_one(case):
    options, limit = CASES[case]
    objective = scene(ROWS)
    expected = published(rows_of(objective), options, limit, Draws())
    edit = strategy_on(objective, options, limit).edit(step_taken(DUE))
    check(objective, edit, expected)
    assert len(edit) == min(limit, int(ROWS * (1 + options.growth)))


def test_one_row_that_is_copied_often():
    objective = scene(ROWS)
    objective.values["logit_opacities"].fill_(-8.0)
    objective.values["logit_opacities"][5] = 2.0
    options = McmcOptions(growth=1.0)
    expected = published(rows_of(objective), options, 10_000, Draws())
    edit = strategy_on(objective, options).edit(step_taken(DUE))
    check(objective, edit, expected)
    assert set(edit.source.tolist()) == {5}


def test_without_live_rows_nothing_moves_and_without_opacity_nothing_is_added():
    objective = scene(ROWS)
    objective.values["logit_opacities"].fill_(-8.0)
    edit = strategy_on(objective).edit(step_taken(DUE))
    assert edit.source.tolist()[:ROWS] == list(range(ROWS)), "all are dead, and none is relocated"
    assert len(edit) == int(ROWS * 1.05)
    objective.values["logit_opacities"].fill_(-math.inf)
    assert strategy_on(objective).edit(step_taken(DUE)) is None
    strategy_on(objective).move(step_taken(DUE))
    assert torch.isfinite(objective.parameters["means"]).all()


def test_edits_come_from_600_to_24_900():
    objective = scene(ROWS)
    strategy = strategy_on(objective)
    schedule = strategy.options.of_run(30_000)
    due = [step for step in range(1, 30_001) if schedule.is_due(step)]
    assert (due[0], due[-1], len(due)) == (600, 24_900, 244)
    assert strategy.edit(step_taken(DUE - 1)) is None


# ---------------------------------------------------------------------- noise


def noise_of(objective, seed: int = 7) -> list[list[float]]:
    rows = len(objective.parameters["means"])
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(("rate", "factor"), [(1.6e-4, 1.0), (1.6e-6, 3.0)])
def test_the_noise_is_the_published_one(rate, factor):
    objective = scene(ROWS)
    objective.values["log_scales"] -= 3
    objective.values["logit_opacities"][:20] = torch.linspace(-7, -2, 20)
    before = rows_of(objective)
    strategy_on(objective, McmcOptions(noise=factor)).move(step_taken(5, rate=rate))
    expected = []
    for row, drawn in zip(before, noise_of(objective), strict=True):
        turn = rotation(row["quats"])
        transposed = [list(column) for column in zip(*turn, strict=True)]
        squares = [math.exp(2 * s) for s in row["log_scales"]]
        own = [square * one for square, one in zip(squares, times(transposed, drawn), strict=True)]
        gate = sigmoid(100 * ((1 - sigmoid(row["logit_opacities"])) - 0.995))
        moved = [entry * gate * 5e5 * rate * factor for entry in times(turn, own)]
        expected.append([mean + entry for mean, entry in zip(row["means"], moved, strict=True)])
    torch.testing.assert_close(objective.parameters["means"].tolist(), expected, rtol=1e-4, atol=1e-5)


def test_without_a_rate_a_dying_row_covers_its_own_size_in_100_steps():
    objective = scene(4000, dtype=torch.float64)
    for name, value in (("log_scales", math.log(0.3)), ("logit_opacities", math.log(0.005 / 0.995))):
        objective.values[name].fill_(value)
    before = objective.parameters["means"].clone()
    strategy = strategy_on(objective)
    for step in range(1, 101):
        strategy.move(step_taken(step, horizon=10**9))
    moved = objective.parameters["means"] - before
    # 12,000 numbers: a standard deviation of 0.7 %.
    assert float(moved.std()) == pytest.approx(0.3, rel=0.03)


def test_without_a_rate_the_noise_is_of_the_shape_of_the_row_and_decays():
    objective = scene(1)
    objective.values["logit_opacities"].fill_(-9.0)
    before = objective.parameters["means"].clone()
    strategy_on(objective).move(step_taken(50, horizon=100))
    (row,) = rows_of(objective)
    (drawn,) = noise_of(objective)
    own = [math.exp(s) * one for s, one in zip(row["log_scales"], drawn, strict=True)]
    gate = sigmoid(100 * (1 - sigmoid(row["logit_opacities"]) - 0.995))
    expected = [0.2 * 0.01**0.5 * gate * entry for entry in times(rotation(row["quats"]), own)]
    torch.testing.assert_close((objective.parameters["means"] - before)[0].tolist(), expected, rtol=1e-4, atol=1e-6)


def test_without_noise_nothing_moves_and_nothing_is_drawn():
    objective = scene(ROWS)
    before = objective.parameters["means"].clone()
    strategy = strategy_on(objective, McmcOptions(noise=0.0))
    drawn = strategy.generator.get_state()
    strategy.move(step_taken(5, rate=1.6e-4))
    assert torch.equal(objective.parameters["means"], before)
    assert torch.equal(strategy.generator.get_state(), drawn)


# ---------------------------------------------------------------------- penalty


def test_the_penalty_and_its_gradient():
    objective = scene(ROWS, dtype=torch.float64)
    strategy = strategy_on(objective, McmcOptions(opacity_penalty=0.02, scale_penalty=0.03))
    loss, gradient = strategy.penalty()
    leaves = {name: objective.parameters[name].clone().requires_grad_() for name in gradient}
    expected = 0.02 * leaves["logit_opacities"].sigmoid().mean() + 0.03 * leaves["log_scales"].exp().mean()
    expected.backward()
    assert set(gradient) == {"logit_opacities", "log_scales"}
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, value in gradient.items():
        torch.testing.assert_close(value, leaves[name].grad)


def test_weights_of_zero_are_no_penalty():
    options = McmcOptions(opacity_penalty=0.0, scale_penalty=0.0)
    assert strategy_on(scene(ROWS), options).penalty() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth": -0.1}, "growth must be at least 0"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"opacity_penalty": math.inf}, "opacity_penalty must be at least 0"),
        ({"scale_penalty": -1.0}, "scale_penalty must be at least 0"),
        ({"min_opacity": 0.0}, "min_opacity must lie between 0 and 1"),
        ({"until": -5}, "until must be at least 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(McmcOptions(), **changes)
