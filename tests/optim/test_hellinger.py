"""Trust radii against the distance that they bound, and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.core.schema import GAUSSIAN_TENSORS, rotation_matrices
from splatopt.optim.hellinger import (
    HellingerRadii,
    PublishedBounds,
    RadiusBounds,
    _covariance,
    mean_variances,
    quaternion_curvature,
    quaternion_lengths_kept,
    squared_distances,
)

COUNT = 1000


def random_cloud(seed: int = 0, count: int = COUNT, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Gaussians with scale ratios up to about 20 and opacities from about 0.02 to 0.98."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "means": draw(count, 3),
        "log_scales": -3 + draw(count, 3),
        "quats": draw(count, 4),
        "logit_opacities": 1.3 * draw(count),
        "sh_dc": draw(count, 3).clamp(-1.4, 3),
        "sh_rest": 0.1 * draw(count, 3, 3),
    }


def reached(cloud: dict[str, Tensor], radii: dict[str, Tensor], name: str, epsilon: float) -> Tensor:
    """H²/ε of each Gaussian when one entry of ``name`` is pushed far either way and clipped; the largest."""
    worst = torch.zeros(COUNT, dtype=torch.float64)
    columns = cloud[name].reshape(COUNT, -1).shape[1]
    radius = radii[name].expand(cloud[name].shape).reshape(COUNT, -1)
    for column in range(columns):
        for far in (-1e3, 1e3):
            moved = cloud[name].clone()
            step = torch.full((COUNT,), far, dtype=torch.float64)
            moved.view(COUNT, -1)[:, column] += step.clamp(-radius[:, column], radius[:, column])
            color = column if name == "sh_dc" else None
            worst = torch.maximum(worst, squared_distances(cloud, cloud | {name: moved}, color) / epsilon)
    return worst


def test_the_distance_in_closed_form_is_the_integral():
    """A sum over a grid of ±6 standard deviations, for two Gaussians that differ in everything."""
    pair = random_cloud(seed=4, count=2)
    pair["log_scales"] = torch.tensor([[0.0, -0.5, 0.3], [0.2, -0.3, 0.1]], dtype=torch.float64)
    pair["means"][1] = pair["means"][0] + 0.3
    before, after = ({name: value[row : row + 1] for name, value in pair.items()} for row in (0, 1))
    axis = torch.linspace(-8, 8, 81, dtype=torch.float64)
    points = pair["means"][0] + torch.cartesian_prod(axis, axis, axis)
    roots = []
    for cloud in (before, after):
        offset = points - cloud["means"]
        inverse = torch.linalg.inv(_covariance(cloud["log_scales"], cloud["quats"])[0])
        shape = torch.exp(-0.5 * torch.einsum("ni,ij,nj->n", offset, inverse, offset)) / (2 * math.pi) ** 1.5
        color = 0.5 + SH_C0 * cloud["sh_dc"][0, 1]
        roots.append((cloud["logit_opacities"].sigmoid() * color * shape).sqrt())
    cell = float(axis[1] - axis[0]) ** 3
    integral = 0.5 * (roots[0] - roots[1]).square().sum() * cell / before["log_scales"].sum().exp()
    closed = squared_distances(before, after, channel=1)
    assert closed.item() == pytest.approx(integral.item(), rel=1e-6)
    assert squared_distances(before, before).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize(
    ("name", "theory"),
    [("means", 1.0), ("log_scales", 0.75), ("quats", 0.5), ("logit_opacities", 0.5), ("sh_dc", 0.5)],
)
@pytest.mark.parametrize("bounds", [RadiusBounds, PublishedBounds])
def test_the_distance_reached_is_that_of_theory(bounds, name, theory, epsilon):
    cloud = random_cloud()
    radii = HellingerRadii(bounds(mean_variance="conditional")).radii(cloud, epsilon)
    ratio = reached(cloud, radii, name, epsilon)
    assert ratio.median().item() == pytest.approx(theory, rel=0.05 if epsilon < 1e-4 else 0.1)
    # Geometry keeps to ε. Opacity and colour pass it where they are near 0 or 1, beyond the quadratic picture.
    limits = {"logit_opacities": 9.0 if bounds is PublishedBounds else 1.0, "sh_dc": 1.0}
    assert ratio.max().item() < limits.get(name, 1.1)


def test_the_published_radius_of_a_mean_passes_the_bound_by_the_ratio_of_variances():
    """Σ_cc is the variance along c with the other axes integrated out, but the others stand still."""
    cloud = random_cloud()
    radii = HellingerRadii(PublishedBounds()).radii(cloud, 1e-6)
    marginal = mean_variances(cloud["log_scales"], cloud["quats"], "marginal")
    conditional = mean_variances(cloud["log_scales"], cloud["quats"], "conditional")
    worst = (marginal / conditional).amax(dim=1)
    torch.testing.assert_close(reached(cloud, radii, "means", 1e-6), worst, rtol=2e-2, atol=0)
    assert worst.median().item() > 2
    assert worst.max().item() > 20


def test_mean_variances_are_those_of_the_covariance():
    cloud = random_cloud(count=50)
    sigma = _covariance(cloud["log_scales"], cloud["quats"])
    marginal = mean_variances(cloud["log_scales"], cloud["quats"], "marginal")
    conditional = mean_variances(cloud["log_scales"], cloud["quats"], "conditional")
    torch.testing.assert_close(marginal, sigma.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(conditional, 1 / torch.linalg.inv(sigma).diagonal(dim1=1, dim2=2))


def test_the_closed_form_of_beta_is_the_second_derivative():
    cloud = random_cloud(count=20)
    closed = quaternion_curvature(cloud["log_scales"], cloud["quats"])
    for row in range(20):
        quat, scales = cloud["quats"][row], cloud["log_scales"][row].exp()
        rotation = rotation_matrices(quat[None])[0]

        def norm_squared(moved: Tensor, rotation: Tensor = rotation, scales: Tensor = scales) -> Tensor:
            rotated = rotation.T @ rotation_matrices(moved[None])[0]
            return (scales[:, None] * rotated / scales[None, :]).square().sum()

        dense = torch.func.hessian(norm_squared)(quat).diagonal()
        torch.testing.assert_close(closed[row], dense, rtol=1e-8, atol=1e-10)


def test_a_sphere_turns_by_the_cap():
    cloud = random_cloud(count=4)
    cloud["log_scales"][:] = -2.0
    assert torch.equal(quaternion_curvature(cloud["log_scales"], cloud["quats"]), torch.zeros(4, 4).double())
    radius = HellingerRadii(RadiusBounds()).radii(cloud, 1e-6)["quats"]
    torch.testing.assert_close(radius, (0.1 * cloud["quats"].norm(dim=1, keepdim=True)).expand(4, 4))


def test_the_radii_of_one_gaussian_by_hand():
    """α = ½, scales 1, 2 and 4, turned by 90° about z: x and y change places."""
    half = math.sqrt(0.5)
    cloud = {
        "means": torch.zeros(1, 3, dtype=torch.float64),
        "log_scales": torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64).log(),
        "quats": torch.tensor([[half, 0.0, 0.0, half]], dtype=torch.float64),
        "logit_opacities": torch.zeros(1, dtype=torch.float64),
        "sh_dc": torch.tensor([[0.0, 1.0, -5.0]], dtype=torch.float64),
        "sh_rest": torch.zeros(1, 3, 3, dtype=torch.float64),
    }
    epsilon = 1e-4
    radii = HellingerRadii(RadiusBounds(higher_bands=0.5, max_mean=0.05), length_scale=3.0).radii(cloud, epsilon)
    factor = -8 * math.log(1 - 2e-4)
    assert radii["means"][0].tolist() == pytest.approx([math.sqrt(factor * 4), math.sqrt(factor), 0.15])
    assert radii["log_scales"].expand(1, 3)[0].tolist() == pytest.approx([0.02] * 3)
    assert radii["logit_opacities"].tolist() == pytest.approx([math.sqrt(4 * 0.5 * epsilon) / 0.25])
    colors = [math.sqrt(4 * color * 2e-4) / SH_C0 for color in (0.5, 0.5 + SH_C0, 0.01)]
    assert radii["sh_dc"][0].tolist() == pytest.approx(colors)
    rest = radii["sh_rest"].expand(1, 3, 3)
    assert rest[0, 2].tolist() == pytest.approx([color / 2 for color in colors])
    # v_w and v_z turn about z, v_x and v_y about x and y in equal parts; (r - 1/r)² is 2.25, 14.0625, 2.25.
    about_z, about_xy = 8 * 0.5 * 2.25, 8 * 0.5 * (2.25 + 14.0625)
    betas = (about_z, about_xy, about_xy, about_z)
    assert radii["quats"][0].tolist() == pytest.approx([math.sqrt(factor / beta) for beta in betas])


@pytest.mark.parametrize("bounds", [RadiusBounds(), PublishedBounds(), RadiusBounds(mean_variance="conditional")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_are_finite_and_within_the_bounds_wherever_a_cloud_may_go(bounds, dtype):
    cloud = random_cloud(dtype=dtype)
    cloud["logit_opacities"][:200] = 90.0
    cloud["logit_opacities"][200:400] = -90.0
    cloud["log_scales"][::3, 0] = -60.0
    cloud["log_scales"][::5, 1] = 30.0
    cloud["quats"][::7] = 0.0
    cloud["sh_dc"][::4] = -100.0
    for epsilon in (1e-8, 1e-3, 1.0):
        radii = HellingerRadii(bounds).radii(cloud, epsilon)
        assert tuple(radii) == GAUSSIAN_TENSORS
        for name, radius in radii.items():
            assert radius.dtype == dtype
            assert torch.isfinite(radius).all(), name
            assert (radius >= 0).all(), name
            assert torch.broadcast_shapes(radius.shape, cloud[name].shape) == cloud[name].shape
        assert radii["log_scales"].max() <= bounds.max_log_scale * (1 + 1e-6)
        assert radii["logit_opacities"].max() <= bounds.max_logit
        assert radii["sh_dc"].max() <= bounds.max_color / SH_C0 * (1 + 1e-6)
        assert (radii["quats"] <= bounds.max_quat * cloud["quats"].norm(dim=1, keepdim=True) * (1 + 1e-6)).all()


def test_parameters_of_anything_else_share_one_constant():
    radii = HellingerRadii(RadiusBounds()).radii({"means": torch.ones(2, 3), "weights": torch.ones(5)}, 1e-4)
    assert {name: radius.item() for name, radius in radii.items()} == pytest.approx(
        {"means": math.sqrt(8e-4), "weights": math.sqrt(8e-4)}
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("opacity_floor", 0.0),
        ("max_relative_distance", 1.0),
        ("max_quat", -0.1),
        ("max_quat", 0.5),
        ("max_color", float("inf")),
    ],
)
def test_bounds_without_sense_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        RadiusBounds(**{field: value})


def test_quaternions_keep_their_lengths_and_unmoved_ones_every_bit():
    cloud = random_cloud(count=8, dtype=torch.float32)
    before = cloud["quats"].clone()
    with quaternion_lengths_kept(cloud):
        cloud["quats"][:4] += 0.1
    torch.testing.assert_close(cloud["quats"].norm(dim=1), before.norm(dim=1))
    rotated = torch.nn.functional.normalize(before[:4] + 0.1, dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(cloud["quats"][:4], dim=1), rotated)
    assert torch.equal(cloud["quats"][4:], before[4:])
    others = {"quats": torch.ones(2, 4)}
    with quaternion_lengths_kept(others):
        others["quats"] += 1
    assert torch.equal(others["quats"], torch.full((2, 4), 2.0))
