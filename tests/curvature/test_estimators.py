"""Estimators of the Gauss-Newton diagonal on a dense Jacobian: signs, rates, variances, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import (
    DiagonalEstimator,
    Evaluation,
    HessianProduct,
    MissingOracleError,
    Objective,
    Oracle,
)
from splatopt.curvature.estimators import (
    Exact,
    ParameterProbes,
    ResidualProbes,
    diagonal_by_parameter_probes,
    diagonal_by_residual_probes,
    rademacher,
)
from splatopt.curvature.hessian import CentralDifference, ExactHessian, central_difference

SHAPES = {"first": (3, 2), "second": (4,)}
PARAMETERS = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
RESIDUALS = (torch.empty(5, 2, dtype=torch.float64), torch.empty(6, dtype=torch.float64))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense_jacobian() -> Tensor:
    """Sixteen residuals of ten parameters that couple strongly: a common part in every column."""
    generator = torch.Generator().manual_seed(4)
    common = torch.randn(16, 1, generator=generator, dtype=torch.float64)
    return torch.randn(16, 10, generator=generator, dtype=torch.float64) + 2 * common


JACOBIAN = dense_jacobian()
GRAM = JACOBIAN.T @ JACOBIAN


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in SHAPES])


def jvp(tangent: dict[str, Tensor]) -> tuple[Tensor, ...]:
    moved = JACOBIAN @ flat(tangent)
    return moved[:10].reshape(5, 2), moved[10:]


def vjp(cotangent: tuple[Tensor, ...]) -> dict[str, Tensor]:
    vjp_value = JACOBIAN.T @ torch.cat([part.flatten() for part in cotangent])
    return {"first": vjp_value[:6].reshape(3, 2), "second": vjp_value[6:]}


def by_parameters(count: int, generator: torch.Generator) -> Tensor:
    return flat(diagonal_by_parameter_probes(jvp, vjp, PARAMETERS, count, generator))


def by_residuals(count: int, generator: torch.Generator) -> Tensor:
    return flat(diagonal_by_residual_probes(vjp, RESIDUALS, count, generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (63,), (64,), (65,), (7, 11, 3), (0, 3)])
def test_probes_are_signs_in_the_shape_and_type_asked(shape, dtype):
    like = torch.full(shape, math.nan, dtype=dtype)
    signs = rademacher(like, torch.Generator().manual_seed(0))
    assert signs.shape == like.shape
    assert signs.dtype == dtype
    assert (signs.abs() == 1).all()


def test_signs_are_fair_and_independent():
    count = 100_000
    signs = rademacher(torch.empty(8, count, dtype=torch.float64), torch.Generator().manual_seed(1))
    standard_error = count**-0.5
    assert signs.mean(dim=1).abs().max() < 4.5 * standard_error
    # Neighbours, the bits of a byte among them, the bytes and the words that they come from.
    line = signs.flatten()
    for lag in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128):
        correlation = float((line[lag:] * line[:-lag]).mean())
        assert abs(correlation) < 4.5 * line.numel() ** -0.5, lag
    per_bit = line[: 64 * (line.numel() // 64)].reshape(-1, 64).mean(dim=0)
    assert per_bit.abs().max() < 4.5 * (line.numel() / 64) ** -0.5


def test_signs_follow_their_generator():
    like = torch.empty(1000)
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    once = rademacher(like, first)
    assert torch.equal(once, rademacher(like, second))
    assert not torch.equal(once, rademacher(like, first)), "each call goes on"
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rademacher(like, first)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


def test_one_probe_is_what_the_formula_says():
    generator = torch.Generator().manual_seed(2)
    probe = {name: rademacher(part, generator) for name, part in PARAMETERS.items()}
    expected = flat(probe) * (GRAM @ flat(probe))
    torch.testing.assert_close(by_parameters(1, torch.Generator().manual_seed(2)), expected)
    generator = torch.Generator().manual_seed(2)
    signs = torch.cat([rademacher(part, generator).flatten() for part in RESIDUALS])
    torch.testing.assert_close(by_residuals(1, torch.Generator().manual_seed(2)), (JACOBIAN.T @ signs).square())


def draws(estimate, probes: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.stack([estimate(probes, generator) for _ in range(count)])


def theoretical_variance(kind: str) -> Tensor:
    """Per entry and probe: Σ_{j≠i} G_ij², and 2·((Σ J²)² - Σ J⁴)."""
    if kind == "parameters":
        return GRAM.square().sum(dim=1) - GRAM.diagonal().square()
    return 2 * (GRAM.diagonal().square() - JACOBIAN.pow(4).sum(dim=0))


@pytest.mark.parametrize(("kind", "estimate"), [("parameters", by_parameters), ("residuals", by_residuals)])
def test_one_probe_has_the_mean_and_variance_of_theory(kind, estimate):
    sample = draws(estimate, 1, 2000)
    expected = theoretical_variance(kind)
    error = (sample.mean(dim=0) - GRAM.diagonal()).abs()
    assert (error < 4.5 * (expected / 2000).sqrt()).all()
    torch.testing.assert_close(sample.var(dim=0), expected, rtol=0.25, atol=0)


def test_residual_probes_have_a_relative_variance_of_at_most_two_and_are_never_negative():
    sample = draws(by_residuals, 1, 2000)
    assert (sample >= 0).all()
    relative = sample.var(dim=0) / GRAM.diagonal().square()
    assert (theoretical_variance("residuals") / GRAM.diagonal().square() <= 2).all()
    assert (relative <= 2.3).all()
    parameters = draws(by_parameters, 1, 1000)
    assert (parameters < 0).any(), "parameter probes can be negative"
    assert (parameters.var(dim=0) / GRAM.diagonal().square() > relative).all(), "these parameters couple"


@pytest.mark.parametrize(("kind", "estimate"), [("parameters", by_parameters), ("residuals", by_residuals)])
def test_the_error_falls_with_the_root_of_the_number_of_probes(kind, estimate):
    counts = (4, 64, 1024)
    expected = theoretical_variance(kind).sum().sqrt() / GRAM.diagonal().norm()
    for count, repeats in zip(counts, (150, 40, 6), strict=True):
        sample = draws(estimate, count, repeats)
        error = ((sample - GRAM.diagonal()).square().sum(dim=1).mean().sqrt() / GRAM.diagonal().norm()).item()
        assert error == pytest.approx(expected.item() / math.sqrt(count), rel=0.4), count


class Linear(Objective):
    """½‖J θ - b‖² for each part of a batch, averaged; each part scales J by its number."""

    def __init__(self, given: frozenset[Oracle] = frozenset(Oracle)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
        }
        self.given = given
        self.calls: list[str] = []

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.values

    @property
    def oracles(self) -> frozenset[Oracle]:
        return self.given

    @property
    def length_scale(self) -> float:
        return 1.0

    @property
    def backend(self) -> str:
        return "dense"

    def parts(self, batch):
        return tuple((number,) for number in batch)

    def gradient(self, batch) -> Evaluation:
        self.calls.append("gradient")
        return Evaluation(0.0, self.vjp(batch, self.jvp(batch, self.values)), None, {})

    def empty_residuals(self, batch):
        return tuple(part for _ in batch for part in RESIDUALS)

    def jvp(self, batch, tangent):
        self.calls.append("jvp")
        return tuple(part * number / math.sqrt(len(batch)) for number in batch for part in jvp(tangent))

    def vjp(self, batch, cotangent):
        self.calls.append("vjp")
        total = {name: torch.zeros_like(value) for name, value in self.values.items()}
        for position, number in enumerate(batch):
            for name, part in vjp(cotangent[2 * position : 2 * position + 2]).items():
                total[name] += part * number / math.sqrt(len(batch))
        return total

    def exact_gauss_newton_diagonal(self, batch):
        self.calls.append("exact")
        square = sum(number**2 for number in batch) / len(batch)
        return {"first": square * GRAM.diagonal()[:6].reshape(3, 2), "second": square * GRAM.diagonal()[6:]}

    def exact_hvp(self, batch, tangent):
        square = sum(number**2 for number in batch) / len(batch)
        return {name: square * part for name, part in vjp(jvp(tangent)).items()}


@pytest.mark.parametrize(
    ("estimator", "calls"),
    [
        (Exact(), ["exact"]),
        (ParameterProbes(3), ["jvp", "vjp"] * 6),
        (ResidualProbes(2), ["vjp"] * 4),
    ],
)
def test_an_estimator_asks_for_what_it_needs_and_no_more(estimator, calls):
    objective = Linear(given=estimator.needs)
    assert isinstance(estimator, DiagonalEstimator)
    objective.gauss_newton_diagonal([1, 2], estimator, torch.Generator().manual_seed(0))
    assert objective.calls == calls
    for missing in estimator.needs:
        with pytest.raises(
            MissingOracleError, match=rf"{type(estimator).__name__}' needs .*{missing.value}.* Linear on the dense"
        ):
            Linear(frozenset({Oracle.GRADIENT})).gauss_newton_diagonal([1], estimator, torch.Generator())


@pytest.mark.parametrize("estimator", [ParameterProbes(2000), ResidualProbes(1000)])
def test_several_parts_are_averaged(estimator):
    objective = Linear()
    generator = torch.Generator().manual_seed(3)
    result = flat(objective.gauss_newton_diagonal([1, 2], estimator, generator))
    exact = flat(objective.gauss_newton_diagonal([1, 2], Exact()))
    torch.testing.assert_close(exact, 2.5 * GRAM.diagonal())
    assert float((result - exact).norm() / exact.norm()) < 0.12


def test_parts_get_probes_of_their_own():
    """The estimate of a batch is the mean of its views' estimates, not the square of a sum over views."""
    objective = Linear()
    generator = torch.Generator().manual_seed(3)
    alone = [flat(objective.gauss_newton_diagonal([n], ResidualProbes(), generator)).clone() for n in (1, 2)]
    both = flat(objective.gauss_newton_diagonal([1, 2], ResidualProbes(), torch.Generator().manual_seed(3)))
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("kind", [ParameterProbes, ResidualProbes])
@pytest.mark.parametrize("count", [0, -3])
def test_no_probes_are_refused(kind, count):
    with pytest.raises(InputError, match=rf"probes must be at least 1, got {count}; .*Exact"):
        kind(count)


@pytest.mark.parametrize("estimator", [ParameterProbes(), ResidualProbes()])
def test_probes_without_a_generator_are_refused(estimator):
    with pytest.raises(ValueError, match=r"hand it the run's torch.Generator, got None"):
        Linear().gauss_newton_diagonal([1], estimator)


def test_hessian_products_agree_where_the_loss_is_a_square():
    objective = Linear()
    kept = {name: value.clone() for name, value in objective.values.items()}
    tangent = {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    assert isinstance(ExactHessian(), HessianProduct)
    exact = objective.hvp([1, 2], tangent, ExactHessian())
    differences = objective.hvp([1, 2], tangent, CentralDifference())
    torch.testing.assert_close(flat(exact), 2.5 * GRAM @ flat(tangent))
    torch.testing.assert_close(flat(differences), flat(exact), rtol=1e-8, atol=1e-8)
    assert all(torch.equal(objective.values[name], kept[name]) for name in SHAPES), "put back, bit for bit"
    only = {"second": tangent["second"]}
    torch.testing.assert_close(
        flat(objective.hvp([1], only, CentralDifference())),
        flat(objective.exact_hvp([1], {**only, "first": 0 * tangent["first"]})),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_of_a_central_difference(dtype):
    parameters = {"a": torch.tensor([3.0, 4.0], dtype=dtype)}
    places = []

    def cubic() -> dict[str, Tensor]:
        places.append(parameters["a"].clone())
        return {"a": parameters["a"] ** 3}

    product = central_difference(cubic, parameters, {"a": torch.tensor([0.0, 2.0], dtype=dtype)})
    step = 1e-4 * (1 + 5) / 2
    for place, sign in zip(places, (1, -1), strict=True):
        torch.testing.assert_close(place, torch.tensor([3.0, 4 + sign * 2 * step], dtype=dtype))
    # The truncation of a cubic gradient is (h v)² v.
    expected = 3 * 16 * 2 + (2 * step) ** 2 * 2
    rounding = 64 * torch.finfo(dtype).eps / (2 * step * expected)
    torch.testing.assert_close(product["a"], torch.tensor([0.0, expected], dtype=dtype), rtol=4 * rounding, atol=0)
    assert central_difference(cubic, parameters, {"a": torch.ones(2, dtype=dtype)}, 1e-2)["a"][0] > 27.0


def test_a_central_difference_puts_the_parameters_back_after_an_error():
    parameters = {"a": torch.tensor([1.1, -2.3])}

    def failing() -> dict[str, Tensor]:
        raise RuntimeError("no gradient today")

    with pytest.raises(RuntimeError, match="today"):
        central_difference(failing, parameters, {"a": torch.ones(2)})
    assert torch.equal(parameters["a"], torch.tensor([1.1, -2.3]))
    zero = central_difference(failing, parameters, {"a": torch.zeros(2)})
    assert torch.equal(zero["a"], torch.zeros(2))


@pytest.mark.parametrize("step", [0.0, -1e-3, math.nan, math.inf])
def test_a_step_without_sense_is_refused(step):
    with pytest.raises(InputError, match="relative step"):
        CentralDifference(step)


def test_an_objective_without_oracles_refuses_by_name():
    class Bare(Linear):
        jvp = Objective.jvp
        vjp = Objective.vjp
        empty_residuals = Objective.empty_residuals
        exact_gauss_newton_diagonal = Objective.exact_gauss_newton_diagonal
        exact_hvp = Objective.exact_hvp

    bare = Bare(frozenset({Oracle.GRADIENT}))
    tangent = PARAMETERS
    for call, name in (
        (lambda: bare.residuals([1]), "jvp"),
        (lambda: bare.jvp([1], tangent), "jvp"),
        (lambda: bare.vjp([1], RESIDUALS), "vjp"),
        (lambda: bare.exact_gauss_newton_diagonal([1]), "gauss_newton_diagonal"),
        (lambda: bare.gauss_newton_blocks([1]), "gauss_newton_blocks"),
        (lambda: bare.exact_hvp([1], tangent), "hvp"),
    ):
        with pytest.raises(
            MissingOracleError, match=rf"{name} was asked for, which Bare on the dense .*gives gradient\); choose"
        ):
            call()
    with pytest.raises(MissingOracleError, match="'ExactHessian' needs hvp"):
        bare.hvp([1], tangent, ExactHessian())
