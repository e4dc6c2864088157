"""ESGD, AdaHessian and Sophia against dense Hessians, against steps by hand, and against what must not happen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from optim.dense import Dense
from optim.test_hellinger import random_cloud
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, MissingOracleError, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.scene_edit import SceneEdit
from splatopt.optim.first_order import GaussianRates
from splatopt.optim.hessian_diagonal import (
    AdaHessian,
    AdaHessianOptions,
    Esgd,
    EsgdOptions,
    Sophia,
    SophiaOptions,
    _HessianDiagonal,
    adahessian_ratio,
    averaged,
    esgd_ratio,
    folded,
    sophia_ratio,
)

EVERY = [(Esgd, EsgdOptions), (AdaHessian, AdaHessianOptions), (Sophia, SophiaOptions)]
every_optimizer = pytest.mark.parametrize(("kind", "options"), EVERY)
UNITS = {"means": 1.6e-4 * 10.0, "logit_opacities": 5e-2, "weights": 1e-3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scaled_hessian(objective: Dense) -> Tensor:
    """UHU: the Hessian of x = θ/u."""
    units = objective.join({name: torch.full_like(value, UNITS[name]) for name, value in objective.values.items()})
    return units[:, None] * (objective.jacobian.T @ objective.jacobian) * units


def curvature_after(optimizer: _HessianDiagonal, count: int) -> Tensor:
    """What the running mean of curvature has become, corrected for its start."""
    for step in range(count):
        optimizer.step(None, Progress(step, count))
    kept = optimizer._kept["curvature"]
    beta2 = optimizer.options.beta2
    return optimizer.objective.join({name: optimizer._corrected(v, "measured", beta2) for name, v in kept.items()})


def cases() -> list[Any]:
    """Optimizer, options, and from UHU: what the mean converges to, and the variance of one probe."""

    def pairs(hessian: Tensor) -> Tensor:
        return hessian.square().sum(dim=1) - hessian.diagonal().square()

    def norms(hessian: Tensor) -> tuple[Tensor, Tensor]:
        squares = hessian.square()
        return squares.sum(dim=1), 2 * (squares.sum(dim=1).square() - squares.square().sum(dim=1))

    def diagonal(hessian: Tensor) -> tuple[Tensor, Tensor]:
        return hessian.diagonal(), pairs(hessian)

    signed = {"moment": "signed"}
    return [
        pytest.param(Esgd, EsgdOptions, {}, norms, id="esgd-row-norms"),
        pytest.param(AdaHessian, AdaHessianOptions, signed, diagonal, id="adahessian-diagonal"),
        pytest.param(Sophia, SophiaOptions, {"estimator": "hutchinson"}, diagonal, id="sophia-h"),
    ]


@pytest.mark.parametrize(("kind", "options", "chosen", "theory"), cases())
@pytest.mark.parametrize(("count", "probes"), [(60, 1), (960, 1), (30, 16)])
def test_the_curvature_converges_to_the_dense_one_at_the_rate_of_theory(
    kind, options, chosen, theory, count, probes, monkeypatch
):
    # AdaHessian's averages over a Gaussian's entries have a test of their own.
    monkeypatch.setattr("splatopt.optim.hessian_diagonal.averaged", lambda part: part)
    objective = Dense()
    # β₂ so near 1 that the corrected mean is the plain one.
    settings = options(beta2=1 - 1e-7, refresh=1, probes=probes, product="exact", **chosen)
    found = curvature_after(kind(objective, settings, generator()), count)
    exact, variance = theory(scaled_hessian(objective))
    scores = (found - exact).square() / (variance / (count * probes))
    # The squared errors over their variances have mean 1; 24 of them, correlated.
    assert 0.3 < float(scores.mean()) < 2.5
    assert float((found - exact).norm() / exact.norm()) < 12 / math.sqrt(count * probes)


def test_sophias_gauss_newton_diagonal_converges_to_the_dense_one():
    objective = Dense()
    sophia = Sophia(objective, SophiaOptions(beta2=1 - 1e-7, refresh=1, estimator="residual"), generator())
    found = curvature_after(sophia, 400)
    jacobian = objective.jacobian * objective.join(
        {name: torch.full_like(value, UNITS[name]) for name, value in objective.values.items()}
    )
    squares = jacobian.square()
    variance = 2 * (squares.sum(dim=0).square() - squares.square().sum(dim=0))
    scores = (found - squares.sum(dim=0)).square() / (variance / 400)
    assert 0.3 < float(scores.mean()) < 2.5
    exact = Sophia(objective, SophiaOptions(refresh=1, estimator="exact"))
    torch.testing.assert_close(curvature_after(exact, 3), squares.sum(dim=0), rtol=1e-10, atol=0)


def test_a_difference_of_gradients_measures_what_the_exact_product_does():
    for kind, options in EVERY:
        chosen = {"estimator": "hutchinson"} if kind is Sophia else {}
        found = [
            curvature_after(kind(Dense(), options(product=product, **chosen), generator()), 5)
            for product in ("exact", "difference")
        ]
        torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6 * float(found[0].abs().max()))


class Line(Dense):
    """One row with one parameter θ, which begins at 2: ½ h (θ - 1)²."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"weights": torch.tensor([[2.0]], dtype=torch.float64)}
        self._buffer = {"weights": torch.zeros(1, 1, dtype=torch.float64)}

    def become(self, curvature: float) -> None:
        self.jacobian = torch.tensor([[math.sqrt(curvature)]], dtype=torch.float64)
        self.offset = torch.tensor([math.sqrt(curvature)], dtype=torch.float64)


def two_steps(kind: Any, options: Any) -> list[float]:
    """Where two steps lead; h is 3 at the first and 5 at the second."""
    line = Line()
    optimizer = kind(line, options, generator())
    places = []
    for step, curvature in enumerate((3.0, 5.0)):
        line.become(curvature)
        optimizer.step(None, Progress(step, 4))
        places.append(line.values["weights"].item())
    return places


def rate(step: int) -> float:
    """The rate of a parameter that is no Gaussian's: 1e-3, times 400, decaying to a hundredth at step 4."""
    return 1e-3 * 400 * 0.01 ** (step / 4)


def mean_gradient(place: float) -> float:
    """m̂ of x = θ/u at the second step, from 3 and 5·(θ - 1)."""
    return U * (0.9 * 0.1 * 3 + 0.1 * 5 * (place - 1)) / (1 - 0.9**2)


U = 1e-3
"""Unit of x, the plain rate; the curvature of x is u²h."""

HAND = {"rate_factor": 400.0, "final_factor": 0.01, "beta1": 0.9, "beta2": 0.5, "product": "exact", "warmup": 0}


def test_two_steps_of_esgd_by_hand():
    places = two_steps(Esgd, EsgdOptions(gain=1e-3, damping=0.5, refresh=1, **HAND))
    first = 1e-3 * (U * 3) / (1.5 * U**2 * 3)
    assert first == pytest.approx(2 / 3)
    assert places[0] == pytest.approx(2 - rate(0) * first, rel=1e-12)
    norm = U**2 * math.sqrt((0.5 * 0.5 * 9 + 0.5 * 25) / (1 - 0.5**2))
    second = 1e-3 * mean_gradient(places[0]) / (1.5 * norm)
    assert places[1] == pytest.approx(places[0] - rate(1) * second, rel=1e-12)


def test_the_start_is_corrected_by_the_number_of_measurements_and_not_of_steps():
    """Measured at the first step alone: D̂ is that measurement at the second step too."""
    places = two_steps(Esgd, EsgdOptions(gain=1e-3, damping=0.5, refresh=2, **HAND))
    second = 1e-3 * mean_gradient(places[0]) / (1.5 * U**2 * 3)
    assert places[1] == pytest.approx(places[0] - rate(1) * second, rel=1e-12)


@pytest.mark.parametrize("moment", ["squares", "signed"])
def test_two_steps_of_adahessian_by_hand(moment):
    options = AdaHessianOptions(gain=1e-3, moment=moment, hessian_power=1.0, epsilon=0.25, refresh=1, **HAND)
    places = two_steps(AdaHessian, options)
    first = 1e-3 * (U * 3) / (U**2 * 3 * 1.25)
    assert places[0] == pytest.approx(2 - rate(0) * first, rel=1e-12)
    power = 2 if moment == "squares" else 1
    mean = ((0.5 * 0.5 * 3**power + 0.5 * 5**power) / (1 - 0.5**2)) ** (1 / power)
    second = 1e-3 * mean_gradient(places[0]) / (U**2 * mean * 1.25)
    assert places[1] == pytest.approx(places[0] - rate(1) * second, rel=1e-12)


@pytest.mark.parametrize("estimator", ["hutchinson", "residual", "exact"])
def test_two_steps_of_sophia_by_hand(estimator):
    """On a line every estimator gives h itself."""
    places = two_steps(Sophia, SophiaOptions(gamma=1500.0, estimator=estimator, refresh=1, **HAND))
    first = (U * 3) / (1500 * U**2 * 3)
    assert first == pytest.approx(2 / 3)
    assert places[0] == pytest.approx(2 - rate(0) * first, rel=1e-12)
    mean = U**2 * (0.5 * 0.5 * 3 + 0.5 * 5) / (1 - 0.5**2)
    second = mean_gradient(places[0]) / (1500 * mean)
    assert places[1] == pytest.approx(places[0] - rate(1) * second, rel=1e-12)
    clipped = two_steps(Sophia, SophiaOptions(gamma=10.0, estimator=estimator, refresh=1, **HAND))
    assert clipped == pytest.approx([2 - rate(0), 2 - rate(0) - rate(1)], rel=1e-12)


def test_the_ratios_by_hand():
    momentum, curvature = torch.tensor([2.0, -3.0, 0.0]).double(), torch.tensor([4.0, 16.0, 0.0]).double()
    ratio = esgd_ratio(momentum, curvature.square(), damping=0.1)
    assert ratio.tolist() == pytest.approx([2 / (4 + 0.1 * 10), -3 / (16 + 1), 0.0])
    ratio = adahessian_ratio(momentum, curvature, power=0.5, epsilon=0.01)
    assert ratio.tolist() == pytest.approx([2 / (10 * 0.41**0.5), -3 / (10 * 1.61**0.5), 0.0])
    assert adahessian_ratio(momentum, curvature, power=0.0, epsilon=0.01).tolist() == pytest.approx([0.2, -0.3, 0.0])
    ratio = sophia_ratio(momentum, torch.tensor([4.0, -16.0, 0.0]).double(), gamma=0.5, epsilon=1e-3)
    assert ratio.tolist() == pytest.approx([1.0, -3000.0, 0.0])


def test_a_mean_takes_in_only_what_was_seen():
    mean, value = torch.ones(3, 2), torch.full((3, 2), 5.0)
    folded(mean, value, 0.75, torch.tensor([True, False, True]))
    assert mean.tolist() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0]]
    folded(mean, value, 0.75, None)
    assert mean[1].tolist() == [2.0, 2.0]


def test_the_average_is_over_the_entries_of_one_gaussian_in_one_tensor():
    part = torch.arange(12.0).view(2, 2, 3)
    assert averaged(part)[0].unique().tolist() == [2.5]
    assert averaged(part)[1].unique().tolist() == [8.5]
    row = torch.tensor([1.0, -2.0])
    assert averaged(row) is row
    objective = Dense()
    optimizer = AdaHessian(objective, AdaHessianOptions(refresh=1, moment="signed", product="exact"), generator())
    optimizer.step(None, Progress(0, 1))
    curvature = optimizer._kept["curvature"]["means"]
    assert (curvature == curvature[:, :1]).all()
    assert curvature[:, 0].unique().numel() == 4


@every_optimizer
def test_units_change_nothing(kind, options):
    """Positions in millimetres instead of metres, with the rate in millimetres too: every step is the same in x."""
    places = []
    for scale in (1.0, 1000.0):
        objective = Dense(scales={"means": scale})
        settings = options(means_rate=1.6e-4 * scale, rate_factor=50.0, product="exact")
        optimizer = kind(objective, settings, generator())
        for step in range(8):
            optimizer.step(None, Progress(step, 8))
        places.append(objective.values | {"means": objective.values["means"] / scale})
    for name, value in places[0].items():
        torch.testing.assert_close(places[1][name], value, rtol=1e-9, atol=1e-12)


@every_optimizer
def test_what_is_unseen_keeps_its_place_and_its_state(kind, options):
    objective = Dense()
    optimizer = kind(objective, options(), generator())
    for step in range(3):
        optimizer.step(None, Progress(step, 20))
    before = {name: value.clone() for name, value in objective.values.items()}
    kept = {name: value.clone() for name, value in optimizer.state().tensors.items()}
    objective.seen = torch.tensor([True, False, True, False])
    for step in range(3, 6):
        optimizer.step(None, Progress(step, 20))
    for name, value in objective.values.items():
        assert torch.equal(value[1::2], before[name][1::2])
        assert not (value[::2] == before[name][::2]).any()
    for name, value in optimizer.state().tensors.items():
        assert torch.equal(value[1::2], kept[name][1::2]), name
        assert not torch.equal(value[::2], kept[name][::2]), name


@every_optimizer
def test_what_has_no_curvature_does_not_move_and_nothing_is_nan(kind, options):
    objective = Dense(flat=(2,))
    before = {name: value.clone() for name, value in objective.values.items()}
    optimizer = kind(objective, options(), generator())
    for step in range(5):
        optimizer.step(None, Progress(step, 20))
    for name, value in objective.values.items():
        assert torch.isfinite(value).all()
        assert torch.equal(value[2], before[name][2])
        assert not torch.equal(value[3], before[name][3])


@every_optimizer
def test_a_fresh_row_waits_for_its_first_measurement_and_starts_unbiased(kind, options):
    objective = Dense()
    optimizer = kind(objective, options(refresh=5, warmup=0), generator())
    for step in range(3):
        optimizer.step(None, Progress(step, 20))
    edit = SceneEdit(torch.tensor([0, 1, 1]), torch.tensor([False, False, True]))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    before = {name: value.clone() for name, value in objective.values.items()}
    for step in range(3, 5):
        optimizer.step(None, Progress(step, 20))
    gradient = {name: value.clone() for name, value in objective.gradient(None).gradient.items()}
    for name, value in objective.values.items():
        assert torch.equal(value[2], before[name][2]), "not measured yet"
        assert not torch.equal(value[1], before[name][1])
    mean = optimizer._corrected(optimizer._kept["momentum"]["means"], "age", optimizer.options.beta1)
    assert mean[2].abs().max() > 0.5 * gradient["means"][2].abs().max(), "two gradients weigh as two, not as 0.19"
    optimizer.step(None, Progress(5, 20))
    assert optimizer.state().tensors["measured.rows"].tolist() == [2.0, 2.0, 1.0]
    for name, value in objective.values.items():
        assert not torch.equal(value[2], before[name][2])


def test_curvature_is_measured_when_it_is_due():
    for kind, options, each in (
        (Esgd, EsgdOptions(refresh=4, warmup=3, probes=2), 4),
        (AdaHessian, AdaHessianOptions(refresh=4, warmup=3), 2),
        (Sophia, SophiaOptions(refresh=4, warmup=3, estimator="hutchinson"), 2),
    ):
        objective = Dense()
        optimizer = kind(objective, options, generator())
        spent = []
        for step in range(9):
            objective.calls.clear()
            optimizer.step(None, Progress(step, 9))
            spent.append(objective.calls.count("gradient") - 1)
        assert spent == [each, each, each, 0, each, 0, 0, 0, each]


@every_optimizer
def test_the_evaluation_holds_the_gradient_at_the_start_of_the_step(kind, options):
    """A difference of gradients uses the same buffers."""
    objective, twin = Dense(), Dense()
    expected = twin.gradient(None)
    evaluation: Evaluation = kind(objective, options(), generator()).step(None, Progress(0, 5))
    assert evaluation.loss == expected.loss
    for name, value in expected.gradient.items():
        assert torch.equal(evaluation.gradient[name], value)


class Cloud(Dense):
    """A cloud's six tensors, each pulled to 0 by a separable quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.values = random_cloud(count=5)
        self._buffer = {name: torch.zeros_like(value) for name, value in self.values.items()}
        self.jacobian = torch.eye(sum(value.numel() for value in self.values.values()), dtype=torch.float64)
        self.offset = torch.zeros(len(self.jacobian), dtype=torch.float64)


@every_optimizer
def test_a_cloud_moves_by_no_more_than_its_rates_and_quaternions_keep_their_lengths(kind, options):
    cloud = Cloud()
    settings = options(rate_factor=2.0)
    before = {name: value.clone() for name, value in cloud.values.items()}
    kind(cloud, settings, generator()).step(None, Progress(0, 5))
    for name, rate in GaussianRates().rates(10.0, Progress(0, 5)).items():
        moved = (cloud.values[name] - before[name]).abs().max().item()
        assert moved > 0
        assert moved < 2 * rate * (1.5 if name == "quats" else 1 + 1e-9)
    torch.testing.assert_close(cloud.values["quats"].norm(dim=1), before["quats"].norm(dim=1))


@pytest.mark.parametrize(
    ("kind", "options", "missing"),
    [
        (Esgd, EsgdOptions(product="exact"), Oracle.HVP),
        (AdaHessian, AdaHessianOptions(product="exact"), Oracle.HVP),
        (Sophia, SophiaOptions(product="exact", estimator="hutchinson"), Oracle.HVP),
        (Sophia, SophiaOptions(estimator="residual"), Oracle.VJP),
        (Sophia, SophiaOptions(estimator="exact"), Oracle.GAUSS_NEWTON_DIAGONAL),
    ],
)
def test_what_the_curvature_needs_is_asked_for_at_the_start(kind, options, missing):
    kind(Dense(oracles=frozenset({Oracle.GRADIENT, missing})), options, generator())
    with pytest.raises(MissingOracleError, match=rf"{kind.__name__}' needs .*{missing.value}.* Dense on the dense"):
        kind(Dense(oracles=frozenset(Oracle) - {missing}), options, generator())


def test_probes_need_a_generator_and_the_exact_diagonal_does_not():
    Sophia(Dense(), SophiaOptions(estimator="exact")).step(None, Progress(0, 5))
    with pytest.raises(ValueError, match="Generator"):
        Sophia(Dense(), SophiaOptions(estimator="residual")).step(None, Progress(0, 5))
    with pytest.raises(ValueError, match=r"Esgd.*torch.Generator, got None"):
        Esgd(Dense(), EsgdOptions()).step(None, Progress(0, 5))


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (EsgdOptions, "gain", 0.0),
        (EsgdOptions, "damping", -1.0),
        (EsgdOptions, "refresh", 0),
        (EsgdOptions, "warmup", -1),
        (EsgdOptions, "probes", 0),
        (EsgdOptions, "relative_step", 0.0),
        (EsgdOptions, "beta1", 1.0),
        (EsgdOptions, "beta2", -0.1),
        (EsgdOptions, "rate_factor", math.inf),
        (EsgdOptions, "means_rate", 0.0),
        (AdaHessianOptions, "hessian_power", 1.5),
        (AdaHessianOptions, "hessian_power", -0.5),
        (AdaHessianOptions, "epsilon", 0.0),
        (SophiaOptions, "gamma", 0.0),
        (SophiaOptions, "epsilon", math.nan),
    ],
)
def test_options_without_sense_are_refused(options, field, value):
    with pytest.raises(ValueError, match=field):
        options(**{field: value})


@pytest.mark.parametrize(
    ("options", "field"), [(EsgdOptions, "product"), (AdaHessianOptions, "moment"), (SophiaOptions, "estimator")]
)
def test_a_choice_that_is_none_is_refused(options, field):
    given = options()
    # As a file may hold it; the checked signature would not let it through.
    object.__setattr__(given, field, "guess")
    with pytest.raises(InputError, match=rf"{field} must be one of .*, got 'guess'"):
        given.__post_init__()
