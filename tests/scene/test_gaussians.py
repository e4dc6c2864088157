"""The cloud: its checks, its conversions and its row edits."""

from __future__ import annotations

import pytest
import torch

from raster.cases import random_cloud
from splatopt.core.checks import InputError
from splatopt.core.scene_edit import SceneEdit
from splatopt.scene.gaussians import GaussianCloud


@pytest.fixture
def cloud() -> GaussianCloud:
    return random_cloud(torch.Generator().manual_seed(0), 6, sh_degree=2)


def test_names_and_length(cloud):
    assert list(cloud.tensors) == ["means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest"]
    assert len(cloud) == 6


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_degree_is_read_off_the_shape(degree):
    assert random_cloud(torch.Generator(), 2, degree).sh_degree == degree


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("log_scales", (6, 2)),
        ("quats", (5, 4)),
        ("logit_opacities", (6, 1)),
        ("sh_dc", (6, 4)),
        ("sh_rest", (6, 24)),
        ("means", (6, 2)),
    ],
)
def test_wrong_shapes_are_named(cloud, name, shape):
    with pytest.raises(ValueError, match=rf"{name} must have shape .*got \({shape[0]}"):
        GaussianCloud(**{**cloud.tensors, name: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize("count", [1, 4, 16, 24])
def test_other_coefficient_counts_are_refused(cloud, count):
    with pytest.raises(ValueError, match=f"0, 3, 8 or 15 coefficients .* got {count}"):
        GaussianCloud(**{**cloud.tensors, "sh_rest": torch.zeros(6, count, 3, dtype=torch.float64)})


def test_mixed_types_are_refused(cloud):
    with pytest.raises(ValueError, match=r"quats is torch\.float32 but means are torch\.float64"):
        GaussianCloud(**{**cloud.tensors, "quats": cloud.quats.float()})


def test_clone_shares_nothing_and_is_detached(cloud):
    cloud.means.requires_grad_()
    copy = cloud.clone()
    for name, tensor in copy.tensors.items():
        assert torch.equal(tensor, getattr(cloud, name))
        assert tensor.data_ptr() != getattr(cloud, name).data_ptr()
        assert not tensor.requires_grad


def test_to_and_map(cloud):
    assert all(tensor.dtype == torch.float32 for tensor in cloud.to(torch.float32).tensors.values())
    doubled = cloud.map(lambda tensor: 2 * tensor)
    assert torch.equal(doubled.quats, 2 * cloud.quats)


def test_with_sh_degree_drops_and_pads(cloud):
    lower = cloud.with_sh_degree(1)
    assert torch.equal(lower.sh_rest, cloud.sh_rest[:, :3])
    assert lower.sh_rest.is_contiguous()
    higher = cloud.with_sh_degree(3)
    assert torch.equal(higher.sh_rest[:, :8], cloud.sh_rest)
    assert higher.sh_rest.shape == (6, 15, 3)
    assert not higher.sh_rest[:, 8:].any()
    assert cloud.with_sh_degree(0).sh_rest.shape == (6, 0, 3)
    assert cloud.with_sh_degree(2).sh_degree == cloud.sh_degree == 2


def test_edit_rows_gathers_every_tensor(cloud):
    before = cloud.clone()
    source = torch.tensor([5, 0, 0, 3])
    cloud.edit_rows(SceneEdit(source, torch.tensor([False, False, True, False])))
    assert len(cloud) == 4
    for name, tensor in cloud.tensors.items():
        assert torch.equal(tensor, getattr(before, name)[source])


@pytest.mark.parametrize("name", ["means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_tensor_and_rows(cloud, name, value):
    cloud.check_finite("here")
    getattr(cloud, name)[1] = value
    getattr(cloud, name).view(6, -1)[4, -1] = value
    with pytest.raises(InputError, match=f"here: {name} holds NaN or infinite values in 2 of 6 rows"):
        cloud.check_finite("here")


def test_check_finite_passes_empty_clouds():
    random_cloud(torch.Generator(), 0).check_finite("here")
    random_cloud(torch.Generator(), 3, sh_degree=0).check_finite("here")
