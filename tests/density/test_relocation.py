"""The formulas by which a Gaussian is shared among copies of itself, and the draw of rows."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from splatopt.density.relocation import MAX_COPIES, draw_rows, relocation


def mass(opacity: float, copies: int) -> float:
    """∫ 1 - (1 - o' e^(-x²/2))ⁿ dx/√(2π), by quadrature."""

    def layers(x: float) -> float:
        return -math.expm1(copies * math.log1p(-opacity * math.exp(-x * x / 2))) / math.sqrt(2 * math.pi)

    return 2 * quad(layers, 0, 12, epsabs=1e-13, epsrel=1e-12, limit=200)[0]


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20, 51])
@pytest.mark.parametrize("opacity", [1e-4, 0.005, 0.1, 0.6, 0.99, 1 - 1e-7])
def test_copies_keep_the_mass_along_a_line(opacity, copies):
    shared, factor = relocation(torch.tensor([opacity], dtype=torch.float64), torch.tensor([copies]))
    assert (1 - float(shared)) ** copies == pytest.approx(1 - opacity, rel=1e-9)
    assert float(factor) == pytest.approx(opacity / mass(float(shared), copies), rel=1e-8)
    if copies == 1:
        assert float(shared) == pytest.approx(opacity, rel=1e-12)
        assert float(factor) == pytest.approx(1.0, rel=1e-12)


def test_the_stated_values():
    shared, factor = relocation(torch.tensor([0.6, 0.6]), torch.tensor([2, 51]))
    assert shared.tolist() == pytest.approx([0.368, 0.0178], abs=5e-4)
    assert factor.tolist() == pytest.approx([0.938, 0.883], abs=5e-4)


def test_more_copies_count_as_51():
    opacities = torch.tensor([0.6, 0.6])
    shared, factor = relocation(opacities, torch.tensor([MAX_COPIES, 400]))
    assert shared[0] == shared[1]
    assert factor[0] == factor[1]


def test_rows_are_drawn_in_proportion():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    drawn = draw_rows(weights, 80_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=6) / 80_000
    assert shares[[0, 3, 5]].tolist() == [0, 0, 0]
    # Three standard deviations of a share of a half are 0.0053.
    torch.testing.assert_close(shares, weights / 8, rtol=0, atol=0.006)


def test_nothing_is_drawn_where_no_weight_is_positive():
    generator = torch.Generator().manual_seed(0)
    for weights in (torch.zeros(4), torch.zeros(0), torch.tensor([math.nan, 0.0])):
        assert len(draw_rows(weights, 5, generator)) == 0
    assert draw_rows(torch.tensor([math.nan, 1.0, math.inf]), 5, generator).tolist() == [1] * 5
    assert len(draw_rows(torch.ones(3), 0, generator)) == 0
