"""The comparison itself: it must see wrong gradients that a test at 1e-4 is meant to catch."""

from __future__ import annotations

import pytest
import torch

from raster.cases import find_case
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.raster.problem import WeightedSum
from splatopt.raster.reference import ReferenceRenderer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """A real gradient, that of the positions, whose rows differ in size by orders of magnitude."""
    case = find_case("degree_1")
    cloud = case.cloud()
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    ReferenceRenderer().accumulate_gradient(cloud, case.problem(), WeightedSum(gradient), seen)
    return gradient["means"]


def test_float32_rounding_passes(truth):
    rounded = truth.float()
    assert relative_vector_error(rounded, truth) < 1e-7
    assert worst_elementwise_error(rounded, truth) < 1e-7


def test_scale_of_one_in_a_thousand_is_seen(truth):
    wrong = truth * 1.001
    assert relative_vector_error(wrong, truth) == pytest.approx(1e-3)
    assert worst_elementwise_error(wrong, truth) > 5 * TOLERANCE


def test_one_flipped_sign_is_seen_whichever_row(truth):
    for row in truth.norm(dim=1).nonzero().squeeze(1):
        wrong = truth.clone()
        wrong[row] = -wrong[row]
        assert worst_elementwise_error(wrong, truth) > TOLERANCE or truth[row].abs().max() < 1e-6 * truth.abs().max()
    largest = truth.norm(dim=1).argmax()
    wrong = truth.clone()
    wrong[largest] = -wrong[largest]
    assert relative_vector_error(wrong, truth) > 0.1


def test_one_zeroed_row_is_seen_whichever_row(truth):
    sizes = truth.abs().amax(dim=1)
    checked = 0
    for row in (sizes > 2e-6 * sizes.max()).nonzero().squeeze(1):
        wrong = truth.clone()
        wrong[row] = 0
        assert worst_elementwise_error(wrong, truth) > TOLERANCE
        checked += 1
    assert checked > 50


def test_zero_truth_wants_zeros():
    zeros = torch.zeros(4, 3)
    assert relative_vector_error(zeros, zeros) == 0
    assert worst_elementwise_error(zeros, zeros) == 0
    assert worst_elementwise_error(zeros + 0.5, zeros) == 0.5
    assert relative_vector_error(zeros + 0.5, zeros) > TOLERANCE


def test_nan_is_an_infinite_error(truth):
    wrong = truth.clone()
    wrong[0, 0] = float("nan")
    assert relative_vector_error(wrong, truth) == float("inf")
    assert worst_elementwise_error(wrong, truth) == float("inf")


def test_empty_tensors_agree():
    empty = torch.zeros(0, 3)
    assert worst_elementwise_error(empty, empty) == 0
    assert relative_vector_error(empty, empty) == 0
