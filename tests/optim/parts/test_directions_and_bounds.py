"""Directions and step bounds by themselves, against their formulas in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core.objective import Tensors
from splatopt.core.optimizer import Progress
from splatopt.curvature.estimators import Exact
from splatopt.optim.diagonal_gauss_newton import SignTrustRegion, SignTrustRegionOptions
from splatopt.optim.first_order import AdamOptions, DecayingRates
from splatopt.optim.hellinger import TrustRegionOptions
from splatopt.optim.parts.adam import AdamMoments
from splatopt.optim.parts.bounds import HellingerBall, HellingerBox, RateBox, Unbounded
from splatopt.optim.parts.composed import ComposedOptimizer, Parts
from splatopt.optim.parts.diagonal import CorrectedMean, MomentumOverDiagonal, RawMean, Weighting
from splatopt.optim.parts.direction import Change, Point, Quotient, Share, Solved
from splatopt.optim.parts.sign import MomentumSign
from splatopt.optim.radius_factors import RadiusFactors

RADIUS = 0.5
OPTIONS = TrustRegionOptions(epsilon_start=RADIUS**2 / 8, epsilon_end=RADIUS**2 / 8)
"""The radius √(8ε) of parameters that are no cloud's."""


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class One(Quadratic):
    """One parameter, whose diagonal may be anything."""

    def __init__(self, value: Tensor, curvature: Tensor | None = None) -> None:
        super().__init__(dtype=torch.float64)
        self.values = {"weights": value}
        self.targets = {"weights": torch.zeros_like(value)}
        self.curvature = {"weights": torch.ones_like(value) if curvature is None else curvature}


def a_host(objective: One) -> ComposedOptimizer:
    return SignTrustRegion(objective, SignTrustRegionOptions())


def a_box(parameters: Tensors) -> HellingerBox:
    box = HellingerBox(OPTIONS, 1.0)
    box.begin(Progress(0, 1))
    box.measure(parameters)
    return box


def point(objective: One, gradient: Tensor) -> Point:
    return Point(objective.parameters, {"weights": gradient}, None)


def over_diagonal(
    objective: One, decay: float = 0.0, damping: float = 0.0
) -> tuple[MomentumOverDiagonal, HellingerBox]:
    host, box = a_host(objective), a_box(objective.parameters)
    direction = MomentumOverDiagonal(
        host, box, Exact(), RawMean(0.0), decay=0.0, factor=1.0, damping=damping, refresh=1
    )
    direction.evaluate(None, Progress(0, 1))
    return direction, box


def moved(direction: MomentumOverDiagonal, box: HellingerBox, objective: One, gradient: Tensor) -> Tensor:
    ((name, change),) = direction.changes(point(objective, gradient))
    box.apply(name, objective.values[name], change)
    return objective.values[name]


def test_the_sign_of_the_momentum_is_a_whole_radius() -> None:
    objective = One(torch.zeros(4, dtype=torch.float64))
    direction = MomentumSign(a_host(objective), decay=0.75)
    for gradient, expected in ((doubles(4, -4, 0, 1), doubles(1, -1, 0, 1)), (doubles(-1, 4, 0, -9), [1, 1, 0, -1])):
        ((name, change),) = direction.changes(point(objective, gradient))
        assert name == "weights"
        assert isinstance(change, Share)
        assert change.values.tolist() == list(expected)
    assert direction.momentum["weights"].tolist() == [0.75 - 0.25, -0.75 + 1, 0, 0.75 * 0.25 - 0.25 * 9]


def test_adams_quotient_is_its_formula_and_writes_nothing_else() -> None:
    objective, gradients = One(torch.zeros(3, dtype=torch.float64)), (doubles(1, -2, 0.5), doubles(-3, 1, 0.25))
    options = AdamOptions(rate=0.2, beta1=0.8, beta2=0.9, epsilon=1e-3)
    direction = AdamMoments(a_host(objective), options, rate_factor=3.0)
    m, v = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step, gradient in enumerate(gradients, 1):
        direction.evaluate(None, Progress(step - 1, 10))
        direction.steps.value += 1
        kept = gradient.clone()
        ((_, change),) = direction.changes(point(objective, gradient))
        assert torch.equal(gradient, kept)
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        expected = -3 * 0.2 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        assert isinstance(change, Quotient)
        torch.testing.assert_close(-change.factor * change.numerator / change.denominator, expected)


def test_without_or_with_negative_curvature_an_entry_moves_to_the_end_of_its_radius() -> None:
    objective = One(torch.zeros(5, dtype=torch.float64), doubles(0, 0, -5, 0, -1))
    gradient = doubles(1.0, -1e-30, 3.0, 0.0, 0.0)
    assert moved(*over_diagonal(objective), objective, gradient).tolist() == [-0.5, 0.5, -0.5, 0.0, 0.0]


def test_the_clipped_step_minimises_the_model_of_each_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(500, generator=generator, dtype=torch.float64)
    curvature = 2 * torch.randn(500, generator=generator, dtype=torch.float64)
    objective = One(torch.zeros(500, dtype=torch.float64), curvature)
    value = moved(*over_diagonal(objective), objective, gradient)
    candidates = torch.linspace(-RADIUS, RADIUS, 1001, dtype=torch.float64)[:, None]

    def model(step: Tensor) -> Tensor:
        return gradient * step + 0.5 * curvature * step**2

    assert (model(value) <= model(candidates).amin(dim=0) + 1e-12).all()


def test_damping_keeps_entries_of_little_predicted_reduction_inside_their_radii() -> None:
    objective = One(torch.zeros(4, dtype=torch.float64), doubles(0, 0, 0.4, 0))
    direction, box = over_diagonal(objective, damping=0.5)
    direction.note("weights", 0.5)
    value = moved(direction, box, objective, doubles(2.0, -0.2, 0.02, 0.0))
    # x = -h / (D η² + δ) with h = mη = 1, -0.1, 0.01, 0 and δ = 0.5·0.5
    torch.testing.assert_close(value, RADIUS * doubles(-1.0, 0.4, -0.01 / 0.35, 0.0))
    assert direction.damping("weights") == pytest.approx(0.5 * (1.0 + 0.1 + 0.01) / 3), "of this step, for the next"
    direction.note("weights", math.nan)
    assert direction.damping("weights") == pytest.approx(0.5 * 0.37)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_mean_of_diagonals_is_raw_or_corrected(corrected: bool) -> None:
    objective = One(torch.zeros(2, dtype=torch.float64), doubles(3.0, 5.0))
    host = a_host(objective)
    weighting: Weighting = CorrectedMean(host, 0.9) if corrected else RawMean(0.9)
    direction = MomentumOverDiagonal(
        host, a_box(objective.parameters), Exact(), weighting, decay=0.5, factor=1.0, damping=0.0, refresh=2
    )
    for step in range(4):  # measured at 0 and 2
        objective.curvature["weights"] = doubles(3.0, 5.0) * (step + 1)
        direction.evaluate(None, Progress(step, 4))
        direction.steps.value += 1
    mean = (0.9 * 0.1 * 1 + 0.1 * 3) * doubles(3.0, 5.0)
    expected = mean / (1 - 0.9**2) if corrected else mean
    torch.testing.assert_close(direction.curvature["weights"], expected)
    assert ("age.rows" in host.state().tensors) == corrected


@dataclass
class BoundCase:
    """A change, and what becomes of a parameter of ones."""

    bound: str
    change: Change
    expected: list[float]


def bounded(kind: str, change: Change) -> list[float]:
    parameter = torch.ones(3, dtype=torch.float64)
    bounds = {
        "none": Unbounded(),
        "box": a_box({"weights": parameter}),
        "ball": HellingerBall(OPTIONS, 1.0, RadiusFactors(("weights",), 1.0)),
        "rates": RateBox(DecayingRates(rate=0.25, rate_factor=2.0, final_factor=0.25), 1.0),
    }
    bound = bounds[kind]
    bound.begin(Progress(1, 2))
    bound.apply("weights", parameter, change)
    return parameter.tolist()


CASES = [
    BoundCase("none", Quotient(doubles(2, -4, 0), doubles(4, 2, 1), 0.5), [0.75, 2.0, 1.0]),
    BoundCase("box", Quotient(doubles(2, -4, 0), doubles(4, 2, 1), 0.5), [0.75, 1.5, 1.0]),
    BoundCase("box", Share(doubles(0.5, -7, 0)), [0.75, 1.5, 1.0]),
    BoundCase("rates", Share(doubles(0.5, -7, 0)), [0.875, 1.25, 1.0]),
    BoundCase("ball", Solved(torch.tensor([0, 2]), doubles(0.1, -0.3)), [1.1, 1.0, 0.7]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.bound}-{type(case.change).__name__}")
def test_a_bound_applies_what_it_allows(case: BoundCase) -> None:
    assert bounded(case.bound, case.change) == pytest.approx(case.expected, rel=1e-15)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("none", Share(doubles(1, 1, 1))),
        ("none", Solved(torch.tensor([0]), doubles(1))),
        ("box", Solved(torch.tensor([0]), doubles(1))),
        ("ball", Share(doubles(1, 1, 1))),
        ("rates", Quotient(doubles(1, 1, 1), doubles(1, 1, 1), 1.0)),
    ],
)
def test_a_change_that_means_nothing_to_a_bound_is_refused(kind: str, change: Change) -> None:
    with pytest.raises(TypeError, match=type(change).__name__ if kind != "box" else "rows"):
        bounded(kind, change)


def test_the_radii_of_a_box_and_of_a_ball_are_those_of_the_distance_at_hand() -> None:
    options = TrustRegionOptions(epsilon_start=1 / 8, epsilon_end=1 / 800)
    box, factors = HellingerBox(options, 1.0), RadiusFactors(("weights",), 0.1)
    ball, parameters = HellingerBall(options, 1.0, factors), {"weights": torch.ones(2, 3, dtype=torch.float64)}
    for step, radius in ((0, 1.0), (2, 0.1)):
        box.begin(Progress(step, 2))
        ball.begin(Progress(step, 2))
        box.measure(parameters)
        assert float(box.radii["weights"]) == pytest.approx(radius)
        assert ball.radii(parameters)["weights"].tolist() == [[pytest.approx(radius)] * 3] * 2
    box.release()
    assert box.radii == {}
    factors.update(1.0, 3.0, 1.0)
    assert float(ball.radii(parameters)["weights"][0, 0]) == pytest.approx(0.08)


class BoxedAdam(ComposedOptimizer):
    """A combination that splatopt has not: Adam's step within its own rates' Hellinger box, without projections."""

    def compose(self) -> Parts:
        return Parts(AdamMoments(self, AdamOptions(rate=0.3)), HellingerBox(self.options, self.objective.length_scale))


def test_a_combination_that_no_fused_pass_knows_is_moved_in_torch() -> None:
    objective = Quadratic(gaussians=True, dtype=torch.float32)
    lengths = objective.values["quats"].norm(dim=1)
    optimizer = BoxedAdam(objective, OPTIONS)
    before = objective.loss()
    for step in range(5):
        optimizer.step(None, Progress(step, 5))
    assert objective.loss() < before
    assert not torch.allclose(objective.values["quats"].norm(dim=1), lengths, rtol=1e-6), "nothing keeps lengths"
    assert set(optimizer.state().scalars) == {"steps"}
    assert optimizer.state().scalars["steps"] == 5
