"""The schema of Gaussians: what every other room lays out by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from splatopt.core.constants import SH_C0
from splatopt.core.schema import (
    BLOCK_SIZE,
    BLOCK_TENSORS,
    BLOCK_WIDTHS,
    GAUSSIAN_TENSORS,
    PACKED_BLOCK,
    PARAMETER_TYPES,
    SH_REST_COUNTS,
    GaussianTensors,
    rotation_entries,
    rotation_matrices,
    sh_degree_of,
    tensor_shapes,
    unit_rotation_matrices,
)
from splatopt.raster.types import Gaussians
from splatopt.scene import GaussianCloud


def test_names_and_shapes_are_those_of_a_cloud():
    assert GAUSSIAN_TENSORS == ("means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest")
    assert tuple(tensor_shapes(5, 8)) == GAUSSIAN_TENSORS
    cloud = GaussianCloud(**{name: torch.zeros(shape) for name, shape in tensor_shapes(5, 8).items()})
    assert tuple(cloud.tensors) == GAUSSIAN_TENSORS
    assert isinstance(cloud, Gaussians)
    assert isinstance(GaussianTensors.of(cloud.tensors), Gaussians)
    assert cloud.sh_degree == 2


def test_a_block_holds_all_tensors_but_the_higher_bands():
    widths = {name: math.prod(shape[1:]) for name, shape in tensor_shapes(1, 0).items() if name != "sh_rest"}
    assert dict(BLOCK_WIDTHS) == widths
    assert tuple(BLOCK_WIDTHS) == BLOCK_TENSORS
    assert (BLOCK_SIZE, PACKED_BLOCK) == (14, 105)
    row, column = torch.tril_indices(BLOCK_SIZE, BLOCK_SIZE)
    assert torch.equal(row * (row + 1) // 2 + column, torch.arange(PACKED_BLOCK))


def test_types_of_parameters_are_place_shape_and_look():
    assert PARAMETER_TYPES == (("means",), ("log_scales", "quats"), ("logit_opacities", "sh_dc", "sh_rest"))


def test_the_constant_harmonic_integrates_to_one():
    assert 0.5 / math.sqrt(math.pi) == SH_C0
    assert SH_C0**2 * 4 * math.pi == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("degree", range(4))
def test_the_degree_follows_from_the_coefficients(degree):
    assert SH_REST_COUNTS[degree] == (degree + 1) ** 2 - 1
    assert sh_degree_of(torch.zeros(2, SH_REST_COUNTS[degree], 3)) == degree


def test_other_numbers_of_coefficients_are_refused():
    with pytest.raises(ValueError, match="0, 3, 8 or 15 coefficients per channel .* got 4"):
        sh_degree_of(torch.zeros(2, 4, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotations_are_orthogonal_and_know_no_length(dtype):
    quats = torch.randn(50, 4, dtype=dtype, generator=torch.Generator().manual_seed(4))
    found = rotation_matrices(quats)
    assert found.dtype == dtype
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=dtype).expand(50, 3, 3), atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(50, dtype=dtype), atol=tolerance, rtol=0)
    assert torch.equal(rotation_matrices(4 * quats), found)
    assert torch.equal(unit_rotation_matrices(normalize(quats, dim=1)), found)


def test_a_quarter_turn_about_z_takes_x_to_y():
    half = math.sqrt(0.5)
    expected = [0, -1, 0, 1, 0, 0, 0, 0, 1]
    assert rotation_entries(half, 0.0, 0.0, half) == pytest.approx(expected, abs=1e-15)
    turned = rotation_matrices(torch.tensor([[half, 0, 0, half]]).double())[0]
    assert turned.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_a_quaternion_of_zeros_is_the_identity():
    assert torch.equal(rotation_matrices(torch.zeros(2, 4)), torch.eye(3).expand(2, 3, 3))
