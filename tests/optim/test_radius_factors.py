"""Radii that adapt: when factors fall and come back, and that block-gn judges steps by what they did not know."""

from __future__ import annotations

import math

import pytest
import torch

from optim.coupled import Coupled
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.core.state import OptimizerState
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.radius_factors import RadiusFactors


def test_groups_are_judged_in_turn_and_each_by_itself() -> None:
    factors = RadiusFactors(GAUSSIAN_TENSORS, 0.1)
    for _ in range(40):
        factors.update(1.0, 2.0 if factors.measured == ("means",) else 0.5, 1.0)
    assert factors.factors == pytest.approx(
        {"means": 0.1} | {name: 1.0 for name in GAUSSIAN_TENSORS if name != "means"}
    )
    for _ in range(90):
        factors.update(1.0, 0.5, 1.0)
    assert set(factors.factors.values()) == {1.0}


def test_a_little_below_zero_is_noise_and_changes_nothing() -> None:
    factors = RadiusFactors(("means",), 0.1)
    factors.update(1.0, 1.9, 1.0)
    fallen = factors.factors["means"]
    assert fallen < 1
    factors.update(1.0, 1.05, 1.0)  # (0.9 · -0.9 - 0.05) / 1.9 = -0.45
    for _ in range(20):
        factors.update(1.0, 1.45, 1.0)
    assert factors.factors["means"] == fallen


@pytest.mark.parametrize(
    ("after", "predicted"), [(2.0, 0.0), (2.0, -1.0), (math.nan, 1.0), (2.0, math.inf), (2.0, math.nan), (2.0, 1e-7)]
)
def test_no_reduction_or_no_number_changes_nothing(after: float, predicted: float) -> None:
    factors = RadiusFactors(("weights",), 0.1)
    factors.update(1.0, after, predicted)
    assert factors.factors == {"weights": 1.0}


def test_radius_factors_go_on_from_their_numbers_and_refuse_others() -> None:
    one, two = RadiusFactors(GAUSSIAN_TENSORS, 0.1), RadiusFactors(GAUSSIAN_TENSORS, 0.1)
    for position in range(8):
        one.update(1.0, 2.0 - 0.1 * position, 1.0)
    two.load(OptimizerState({}, one.scalars()))
    for _ in range(4):
        one.update(1.0, 0.7, 1.0)
        two.update(1.0, 0.7, 1.0)
    assert one.scalars() == two.scalars()
    two.load(OptimizerState({}, {"steps": 3}))
    assert one.scalars() == two.scalars(), "a state of a version without reach changes nothing"
    with pytest.raises(InputError, match="not a state of block-gn"):
        two.load(OptimizerState({}, RadiusFactors(("weights",), 0.1).scalars()))


class Views(Coupled):
    """Batches that want parameters of one name elsewhere, this way and that; the others are agreed on."""

    def __init__(self, contested: str | None, apart: float = 0.3) -> None:
        super().__init__()
        self.contested, self.apart, self.values_asked = contested, apart, 0
        self.jacobian = torch.eye(self.jacobian.shape[1], dtype=torch.float64)
        self.jacobian[self.flat({name: self._last(v) for name, v in self.values.items()}) != 0] = 0

    def gradient(self, batch: object) -> Evaluation:
        kept = {name: value.clone() for name, value in self.targets.items()}
        if self.contested is not None:
            self.targets[self.contested] += self.apart * (1.0 if batch else -1.0)
        evaluation = super().gradient(batch)
        self.targets = kept
        return evaluation

    def value(self, batch: object) -> float:
        self.values_asked += 1
        return self.gradient(batch).loss


def trained(objective: Views, steps: int = 200, **options: float) -> BlockGaussNewton:
    settings = {
        "refresh": 5,
        "overlap": 1.0,
        "damping": 0.0,
        "momentum": 0.0,
        "epsilon_end": 1e-3,
        "min_reach": 0.03,
    } | options
    optimizer = BlockGaussNewton(objective, BlockGaussNewtonOptions(**settings))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.step(bool(torch.rand((), generator=generator) < 0.5), Progress(step, steps))
    return optimizer


def factors_of(optimizer: BlockGaussNewton) -> dict[str, float]:
    """The factors of a run, from its state."""
    factors = RadiusFactors(tuple(optimizer.objective.parameters), 0.03)
    factors.load(optimizer.state())
    return factors.factors


@pytest.mark.parametrize("contested", ["means", "quats", "sh_rest"])
def test_radii_of_types_whose_steps_undo_each_other_shrink_and_no_others(contested: str) -> None:
    factors = factors_of(trained(Views(contested)))
    group = next(group for group in RadiusFactors(GAUSSIAN_TENSORS, 0.1).groups if contested in group)
    assert all(factors[name] < 0.5 for name in group), factors
    assert all(factors[name] == 1.0 for name in factors if name not in group), factors


def test_where_views_agree_all_radii_stay() -> None:
    assert set(factors_of(trained(Views(None))).values()) == {1.0}


def test_metrics_say_how_far_radii_reach_where_they_may_move() -> None:
    adaptive, fixed = trained(Views("means"), 20), trained(Views("means"), 20, min_reach=1.0)
    metrics = adaptive.step(True, Progress(20, 100)).metrics
    names = {
        "radius_factor_means": "means",
        "radius_factor_log_scales": "quats",
        "radius_factor_logit_opacities": "sh_rest",
    }
    assert metrics == {fact: factors_of(adaptive)[name] for fact, name in names.items()}
    assert fixed.step(True, Progress(20, 100)).metrics == {}


def test_one_value_is_asked_for_a_refresh_and_none_where_radii_are_fixed() -> None:
    fixed, adaptive = Views("means"), Views("means")
    trained(fixed, 20, min_reach=1.0)
    trained(adaptive, 20)
    assert fixed.values_asked == 0
    assert adaptive.values_asked == 3, "of the four refreshes the first has nothing that it could try"


def test_a_step_that_is_judged_does_not_know_its_batch_and_the_next_one_does() -> None:
    def after(steps: int, second: bool) -> torch.Tensor:
        objective = Views("means")
        optimizer = BlockGaussNewton(objective, BlockGaussNewtonOptions(refresh=1, memory=0.0, min_reach=0.1))
        for step, batch in enumerate([True, second, True][:steps]):
            optimizer.step(batch, Progress(step, 100))
        return objective.values["means"]

    assert torch.equal(after(2, True), after(2, False))
    assert not torch.equal(after(3, True), after(3, False))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, math.nan])
def test_a_min_reach_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="min_reach"):
        BlockGaussNewtonOptions(min_reach=value)
