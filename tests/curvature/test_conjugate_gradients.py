"""Conjugate gradients against dense solutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from splatopt.curvature.conjugate_gradients import conjugate_gradients, inner


def problem(size: int, condition: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A, x and b = A x with eigenvalues from 1 to ``condition``."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = rotation @ torch.diag(torch.logspace(0, math.log10(condition), size, dtype=torch.float64)) @ rotation.T
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    return matrix, x, matrix @ x


def test_n_steps_are_exact():
    matrix, x, right = problem(12, 10.0)
    found = conjugate_gradients(lambda v: matrix @ v, right, iterations=12)
    assert found.iterations == 12
    torch.testing.assert_close(found.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.residual, right - matrix @ found.x, rtol=0, atol=1e-9)


def test_as_many_steps_as_different_eigenvalues_are_enough():
    rotation, _ = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    matrix = rotation @ torch.diag(torch.tensor([1.0, 1, 1, 5, 5, 5, 5, 30, 30], dtype=torch.float64)) @ rotation.T
    x = torch.arange(9, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, matrix @ x, iterations=3)
    torch.testing.assert_close(found.x, x, rtol=1e-9, atol=1e-9)


def test_the_error_falls_as_chebyshev_promises():
    """‖x_k - x‖_A ≤ 2 ((√κ - 1)/(√κ + 1))^k ‖x‖_A."""
    matrix, x, right = problem(60, 50.0)
    start = math.sqrt(inner(x, matrix @ x))
    root = math.sqrt(50.0)
    energies = []
    for count in range(1, 30):
        found = conjugate_gradients(lambda v: matrix @ v, right, iterations=count).x
        error = found - x
        assert math.sqrt(inner(error, matrix @ error)) <= 2 * ((root - 1) / (root + 1)) ** count * start
        energies.append(float(0.5 * inner(found, matrix @ found) - inner(right, found)))
    assert energies == sorted(energies, reverse=True)


def test_a_preconditioner_that_is_the_inverse_needs_one_step():
    matrix, x, right = problem(20, 1e4)
    inverse = torch.linalg.inv(matrix)
    found = conjugate_gradients(lambda v: matrix @ v, right, iterations=1, precondition=lambda r: inverse @ r)
    torch.testing.assert_close(found.x, x, rtol=1e-8, atol=1e-8)


def test_jacobi_helps_where_the_diagonal_varies():
    matrix, x, _ = problem(40, 10.0)
    scale = torch.logspace(-3, 3, 40, dtype=torch.float64)
    matrix = scale[:, None] * matrix * scale
    right = matrix @ x
    inverse = matrix.diagonal().reciprocal()

    def error(**settings) -> float:
        off = conjugate_gradients(lambda v: matrix @ v, right, iterations=25, **settings).x - x
        return inner(off, matrix @ off)

    assert error(precondition=lambda r: inverse * r) < 1e-6 * error()


def test_the_tolerance_ends_it():
    matrix, _, right = problem(40, 1e3)
    counts = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        found = conjugate_gradients(lambda v: matrix @ v, right, iterations=200, tolerance=tolerance)
        assert found.relative_residual <= tolerance
        assert found.relative_residual == pytest.approx(float(found.residual.norm() / right.norm()), rel=1e-6)
        counts.append(found.iterations)
    assert counts[0] < counts[1] < counts[2] < 200


def test_what_the_preconditioner_drops_stays_zero():
    matrix, _, right = problem(10, 10.0)
    kept = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, right, iterations=10, precondition=lambda r: kept * r)
    assert torch.equal(found.x[kept == 0], torch.zeros(3, dtype=torch.float64))
    inside = kept.bool()
    expected = torch.linalg.solve(matrix[inside][:, inside], right[inside])
    torch.testing.assert_close(found.x[inside], expected, rtol=1e-9, atol=1e-9)


def test_rows_without_curvature_and_gradient_stay_zero():
    matrix, x, _ = problem(6, 10.0)
    larger = torch.zeros(8, 8, dtype=torch.float64)
    larger[:6, :6] = matrix
    right = torch.cat([matrix @ x, torch.zeros(2, dtype=torch.float64)])
    found = conjugate_gradients(lambda v: larger @ v, right, iterations=20)
    torch.testing.assert_close(found.x[:6], x, rtol=1e-8, atol=1e-8)
    assert torch.equal(found.x[6:], torch.zeros(2, dtype=torch.float64))


def test_nothing_to_solve_asks_for_nothing():
    def refuse(_vector: Tensor) -> Tensor:
        raise AssertionError

    found = conjugate_gradients(refuse, torch.zeros(4), iterations=5)
    assert (found.iterations, found.relative_residual) == (0, 0.0)
    assert torch.equal(found.x, torch.zeros(4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_product_that_is_no_curvature_ends_it_where_it_was(value):
    found = conjugate_gradients(lambda v: value * v, torch.ones(4), iterations=5)
    assert found.iterations == 1
    assert torch.equal(found.x, torch.zeros(4))


def test_inner_products_are_summed_in_double():
    ones = torch.ones(1 << 20)
    ones[0] = 1e8
    assert inner(ones, torch.ones_like(ones)) == 1e8 + (1 << 20) - 1
