"""sin(u)/u: value and derivatives against many digits, and against finite differences."""

from __future__ import annotations

import mpmath
import pytest
import torch

from splatopt.fields.sinc import sinc

POINTS = [0.0, 1e-30, 1e-8, -1e-4, 0.01, 0.3, -0.9999, 0.9999, 1.0, 1.0001, 2.5, -5.0, 30.0]


def derivatives(u: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Value and ``count`` derivatives by autograd, each of the one before."""
    found = [sinc(u)]
    for _ in range(count):
        found.append(torch.autograd.grad(found[-1].sum(), u, create_graph=True)[0])
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1.5e-6), (torch.float64, 3e-15)])
def test_value_and_three_derivatives_near_zero_and_away(dtype, tolerance):
    u = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
    with mpmath.workdps(40):
        for order, got in enumerate(derivatives(u, 3)):
            exact = [mpmath.taylor(mpmath.sinc, point, order)[order] * mpmath.factorial(order) for point in u.tolist()]
            expected = torch.tensor([float(value) for value in exact], dtype=torch.float64)
            assert (got.detach().double() - expected).abs().max() < tolerance, f"derivative {order}"


def test_derivatives_agree_with_finite_differences():
    u = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sinc, (u,))
    assert torch.autograd.gradgradcheck(sinc, (u,))


def test_vmap_gives_what_a_loop_does():
    u = torch.tensor(POINTS, dtype=torch.float64)
    assert torch.equal(torch.func.vmap(sinc)(u), sinc(u))
    second = torch.func.grad(torch.func.grad(sinc))
    assert torch.allclose(torch.func.vmap(second)(u), torch.stack([second(one) for one in u]), rtol=1e-13)


def test_a_derivative_that_nobody_asks_for_is_not_computed():
    assert not sinc(torch.ones(3)).requires_grad
