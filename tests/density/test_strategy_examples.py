"""The other files of examples/density: each trains a scene, and does what its formula says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from density.scenes import scene, step_taken
from splatopt.core import native
from splatopt.core.plugins import load_plugin
from splatopt.core.row_statistics import RowStatistics
from splatopt.core.scene_edit import apply_edit
from splatopt.data import make_capture
from splatopt.density.strategy import STRATEGIES, DensityLimits
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from train.density_runs import edits, gone_on, plugins_forgotten, same_scene
from train.toys import cut

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "density"
FILES = {
    "localized-points": "localized_points.py",
    "convergence-budget": "convergence_budget.py",
    "gain-opacity-gradient": "opacity_weighted.py",
}
ROWS, RUN = 12, 1000


@pytest.fixture(autouse=True)
def loaded():
    with plugins_forgotten():
        for file in FILES.values():
            load_plugin(FOLDER / file)
        yield


def strategy_on(name: str, objective, limit: int = 100, views=(0,), **options):
    entry = STRATEGIES.find(name)
    limits = DensityLimits(limit, views)
    return entry.strategy(objective, entry.options(**options), limits, torch.Generator().manual_seed(7))


@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
@pytest.mark.parametrize("name", FILES)
def test_an_example_trains_a_scene_and_goes_on_to_the_same_bits(name, tmp_path):
    capture = make_capture(tmp_path / "c", seed=0, views=5, width=32, height=24, points=60)
    own = {"every": 2, "begin": 0.0, "until": 1.0}
    settings = {"steps": 12, "threads": 1, "max_gaussians": 110, "optimizer": "block-gn", "checkpoint_every": 6}
    settings |= {"plugins": [FOLDER / FILES[name]]}
    result = train(TrainConfig.of(str(capture), out=tmp_path / "run", density=name, density_options=own, **settings))
    assert len(result.cloud) == edits(result.folder)[-1]["gaussians"] == 110
    result.cloud.check_finite(name)
    again = cut(result.folder, 6)
    gone_on(again, plugins=[FOLDER / FILES[name]])
    assert same_scene(result.folder, again)


def test_the_draw_is_weighted_by_opacity():
    objective = scene(ROWS)
    plain, weighted = strategy_on("gain", objective), strategy_on("gain-opacity-gradient", objective)
    for strategy in (plain, weighted):
        strategy.gradient_statistics.views += 2
        strategy.gradient_statistics.absolute += torch.arange(ROWS)
    opacities = [1 / (1 + math.exp(-logit)) for logit in objective.parameters["logit_opacities"].tolist()]
    assert weighted.scores().tolist() == pytest.approx(
        [o * score for o, score in zip(opacities, plain.scores().tolist(), strict=True)], rel=1e-5
    )


def budgets(loss) -> list[int]:
    """The budget halfway through growth after steps with these losses; 50 steps make a point."""
    strategy = strategy_on("convergence-budget", scene(ROWS), begin=0.9, until=1.0)
    found = []
    for step in range(1, 401):
        assert strategy.edit(step_taken(step, 10_000, loss=loss(step))) is None
        if step % 50 == 0:
            found.append(strategy.budget(0.5))
    return found


def test_rows_come_later_where_convergence_lags():
    straight = ROWS + round((50.5 - 1) / 99 * (100 - ROWS))
    assert budgets(lambda step: 0.3)[-1] == straight, "the same slope all along: by equal numbers"
    assert budgets(lambda step: math.exp(-step / 100))[-1] > straight, "faster than before: more rows"
    assert budgets(lambda step: max(0.01, 0.3 - step / 1000))[:2] == [straight] * 2, "one slope says nothing yet"
    stalled = budgets(lambda step: 0.3 * (min(step, 200) / 50) ** -0.5)
    assert stalled[-1] < straight, "slower than before: fewer"
    strategy = strategy_on("convergence-budget", scene(ROWS))
    assert (strategy.budget(0.0), strategy.budget(1.0), strategy.budget(1.5)) == (ROWS, 100, 100)


class Seen:
    """Statistics of two views, in which rows lie in the error mask, or do not."""

    def __init__(self, objective, shares, drawn) -> None:
        self.objective, self.shares, self.drawn = objective, shares, drawn

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def statistics(self, batch, error, cross=True) -> RowStatistics:
        (view,) = batch
        weight = torch.full((ROWS,), 3.0)
        zero = torch.zeros(ROWS)
        return RowStatistics(weight, self.drawn, zero, zero, weight * self.shares[view], zero, None)


def test_zones_get_more_rows_and_what_is_opaque_in_front_is_reset():
    objective = scene(ROWS)
    parameters = objective.parameters
    parameters["means"][:] = torch.arange(ROWS)[:, None] * 10.0
    parameters["log_scales"][:] = math.log(0.5)
    parameters["logit_opacities"][:] = 2.0
    parameters["means"][1] = parameters["means"][0] + 0.2  # the zone of row 0 holds row 1, and that of row 4 no other
    shares = torch.zeros(2, ROWS)
    shares[:, 0] = shares[:, 4] = 0.9
    shares[0, 6] = shares[1, 7] = 0.9  # in one view's cone alone
    drawn = torch.ones(ROWS)
    drawn[7] = 0.1
    strategy = strategy_on("localized-points", objective, ROWS + 4, (0, 1), reset_every=1)
    strategy.objective = Seen(objective, shares, drawn)
    strategy.gradient_statistics.views += 1
    strategy.gradient_statistics.absolute[[0, 1, 4, 8]] += 1.0
    before = {name: value.clone() for name, value in parameters.items()}
    scores = strategy.scores()
    assert scores[[0, 1, 4, 8, 9]].tolist() == [4, 4, 4, 1, 0]
    edit = strategy.edit(step_taken(250, RUN))
    apply_edit(edit, objective, strategy)
    assert edit.source.tolist() == [*range(ROWS), 0, 1, 8, 4]
    assert edit.fresh.nonzero().squeeze(1).tolist() == [ROWS + 3], "the last begins anew"
    torch.testing.assert_close(objective.parameters["means"][[4, -1]], before["means"][[4, 4]])
    torch.testing.assert_close(objective.parameters["log_scales"][-1], before["log_scales"][4] - math.log(2))
    opacities = objective.parameters["logit_opacities"].sigmoid()
    assert opacities[-1] == pytest.approx(0.1)
    assert edit.resets["logit_opacities"].nonzero().squeeze(1).tolist() == [6], "7 is nowhere in front"
    assert opacities[6] == pytest.approx(0.01)
    assert opacities[[2, 3, 5, 7, 9]].tolist() == pytest.approx([1 / (1 + math.exp(-2.0))] * 5)
