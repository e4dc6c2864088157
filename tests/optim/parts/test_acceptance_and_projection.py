"""Acceptances and projections by themselves: what is taken, what follows from it, and what every move keeps to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress
from splatopt.core.state import Number
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.optim.growth import GrowthBound
from splatopt.optim.parts.acceptance import Always, Trial
from splatopt.optim.parts.adaptive_radius import AdaptiveRadius
from splatopt.optim.parts.block_solve import BlockSolve
from splatopt.optim.parts.gain_ratio import GainRatio
from splatopt.optim.parts.gauss_newton_solve import GaussNewtonSolve, QuadraticModel
from splatopt.optim.parts.projections import QuaternionLengths
from splatopt.optim.radius_factors import RadiusFactors

DAMPING = 0.5


def copies(objective: Quadratic) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.values.items()}


def solved(objective: Quadratic) -> tuple[GaussNewtonSolve, Trial, Number[float]]:
    """A damped direction on a quadratic, and its trial."""
    damping = Number("damping", DAMPING)
    direction = GaussNewtonSolve(
        Adam(objective, AdamOptions()),
        damping,
        batches=1,
        curvature_share=1.0,
        iterations=30,
        tolerance=0.0,
        preconditioner="diagonal",
        hellinger_damping=0.0,
    )
    evaluation = direction.evaluate(None, Progress(0, 1))
    step = direction.trial(lambda parameters: None)
    direction.learn(None, step)
    return direction, Trial(None, evaluation, step, updates=True), damping


def test_a_damped_direction_and_its_model_are_those_of_the_normal_equations() -> None:
    objective = Quadratic(dtype=torch.float64)
    direction, trial, _ = solved(objective)
    slope, bend = 0.0, 0.0
    for name, curvature in objective.curvature.items():
        gradient = curvature * (objective.values[name] - objective.targets[name])
        expected = -gradient / ((1 + DAMPING) * curvature)
        torch.testing.assert_close(trial.step[name], expected)
        slope += float((gradient * expected).sum())
        bend += float((curvature * expected**2).sum())
    assert direction.model.slope == pytest.approx(slope)
    assert direction.model.bend == pytest.approx(bend)
    assert direction.model.change(0.5) == pytest.approx(0.5 * slope + 0.125 * bend)
    direction.release()
    assert not direction.usable


def gain_ratio(objective: Quadratic, direction: GaussNewtonSolve, damping: Number[float]) -> GainRatio:
    return GainRatio(
        objective,
        direction,
        QuaternionLengths(),
        damping,
        damping_range=(0.4, 0.9),
        min_gain=1e-5,
        halvings=3,
        search_share=1.0,
    )


def test_a_step_that_keeps_its_promise_is_kept_and_damps_the_next_one_less() -> None:
    objective = Quadratic(dtype=torch.float64)
    direction, trial, damping = solved(objective)
    before = copies(objective)
    acceptance = gain_ratio(objective, direction, damping)
    acceptance.take(trial)
    for name, value in objective.values.items():
        assert torch.equal(value, before[name] + trial.step[name])
    assert acceptance.metrics == {"damping": DAMPING, "step_length": 1.0, "gain_ratio": pytest.approx(1.0)}
    assert damping.value == 0.4, "half, but not below the least"


def test_a_step_that_climbs_is_taken_back_bit_for_bit_and_damps_the_next_one_more() -> None:
    objective = Quadratic(dtype=torch.float64)
    direction, trial, damping = solved(objective)
    before = copies(objective)
    away = Trial(None, trial.evaluation, {name: -10 * step for name, step in trial.step.items()}, updates=True)
    acceptance = gain_ratio(objective, direction, damping)
    acceptance.take(away)
    assert all(torch.equal(value, before[name]) for name, value in objective.values.items())
    assert acceptance.metrics["step_length"] == 0.0
    assert acceptance.metrics["gain_ratio"] < 0
    assert damping.value == 0.9, "twice, but not above the most"


def test_a_model_that_promises_no_fall_gains_nothing() -> None:
    objective = Quadratic(dtype=torch.float64)
    direction, trial, damping = solved(objective)
    direction.model = QuadraticModel(1.0, 0.0)
    acceptance = gain_ratio(objective, direction, damping)
    acceptance.take(trial)
    assert (acceptance.metrics["step_length"], acceptance.metrics["gain_ratio"]) == (0.0, 0.0)


def test_always_takes_a_trial_whole() -> None:
    objective = Quadratic(dtype=torch.float64)
    before = copies(objective)
    step = {name: torch.full_like(value, 0.25) for name, value in objective.values.items()}
    Always(objective).take(Trial(None, objective.gradient(None), step, updates=True))
    assert all(torch.equal(value, before[name] + 0.25) for name, value in objective.values.items())


@pytest.mark.parametrize("heard", [True, False])
def test_an_adaptive_radius_judges_only_what_has_not_heard_its_batch(heard: bool) -> None:
    objective = Quadratic(dtype=torch.float64, gaussians=True)
    optimizer = BlockGaussNewton(objective, BlockGaussNewtonOptions(momentum=0.5))
    direction, reach = optimizer.direction, RadiusFactors(tuple(objective.parameters), 0.1)
    assert isinstance(direction, BlockSolve)
    acceptance = AdaptiveRadius(objective, direction, reach)
    assert [acceptance.judges(step) for step in (1, 2)] == [False, True]
    direction.steps.value = 2
    gradient = objective.gradient(None).gradient
    for name, mean in direction.momentum.values.items():
        mean.copy_(gradient[name])
    before, loss = copies(objective), objective.loss()
    # Against the gradient, but ten times too far for the means: their part promises much, and the loss rises.
    step = {name: (-20.0 if name == "means" else -0.1) * gradient[name] for name in before}
    assert direction.predicted(step, ("means",)) == pytest.approx(
        20 * float(gradient["means"].square().sum()) / (1 - 0.5)
    )
    acceptance.take(Trial(None, Evaluation(loss, gradient, None, {}), step, heard))
    for name, value in objective.values.items():
        torch.testing.assert_close(value, before[name] + step[name])
    assert set(step) == set(before), "the trial itself stays whole"
    assert reach.factors["means"] == (1.0 if heard else 0.8)
    assert reach.factors["sh_dc"] == 1.0
    assert acceptance.metrics["radius_factor_means"] == reach.factors["means"]


def test_radii_that_are_fixed_are_never_judged() -> None:
    objective = Quadratic(dtype=torch.float64, gaussians=True)
    direction = BlockGaussNewton(objective, BlockGaussNewtonOptions()).direction
    assert isinstance(direction, BlockSolve)
    fixed = AdaptiveRadius(objective, direction, RadiusFactors(tuple(objective.parameters), 1.0))
    assert not any(fixed.judges(step) for step in range(5))
    assert fixed.metrics == {}


def test_projections_bring_back_around_a_move_or_after_a_step() -> None:
    objective = Quadratic(dtype=torch.float64, gaussians=True)
    values = objective.values
    lengths, scales = values["quats"].norm(dim=1), values["log_scales"].clone()
    turning, growth = QuaternionLengths(), GrowthBound(values, 2.0)
    with turning.around(values), growth.around(values):
        values["quats"] += 0.3
        values["log_scales"] += 1.0
    torch.testing.assert_close(values["quats"].norm(dim=1), lengths)
    torch.testing.assert_close(values["log_scales"], scales + 1.0)
    turning.hold(values)
    growth.hold(values)
    maximum = scales.amax(dim=1, keepdim=True) + torch.tensor(2.0).double().log()
    torch.testing.assert_close(values["log_scales"], torch.minimum(scales + 1.0, maximum))
