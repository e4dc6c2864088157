"""The reference renderer against a per-pixel loop written from the formulae, and its own contract."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from raster.cases import RENDER_CASES, RenderCase, find_case, make_camera, random_cloud
from raster.compare import relative_vector_error
from splatopt.core.camera import Camera
from splatopt.core.constants import SH_C0
from splatopt.core.objective import Oracle
from splatopt.core.schema import rotation_matrices
from splatopt.raster.losses import L1Ssim
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, ambiguous_pixels, render_reference
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

ALL_CASES = pytest.mark.parametrize("case", RENDER_CASES, ids=lambda case: case.name)


def real_spherical_harmonic(degree: int, order: int, direction: np.ndarray) -> float:
    """Real spherical harmonic with the Condon-Shortley phase, from SciPy's complex one."""
    polar, azimuth = math.acos(max(-1.0, min(1.0, direction[2]))), math.atan2(direction[1], direction[0])
    value = sph_harm_y(degree, abs(order), polar, azimuth)
    if order == 0:
        return float(value.real)
    return float(math.sqrt(2) * (value.imag if order < 0 else value.real))


def splats_by_loop(cloud: GaussianCloud, camera: Camera, options: RenderOptions) -> list[dict]:
    """Project one Gaussian at a time with NumPy, in order of depth."""
    pose = camera.world_to_camera.numpy()
    arrays = {name: tensor.numpy() for name, tensor in cloud.tensors.items()}
    degree = cloud.sh_degree if options.sh_degree is None else min(cloud.sh_degree, options.sh_degree)
    eye = -np.linalg.inv(pose[:3, :3]) @ pose[:3, 3]
    splats = []
    for i in range(len(cloud)):
        x, y, z = pose[:3, :3] @ arrays["means"][i] + pose[:3, 3]
        if z <= 0.01:
            continue
        rotation = Rotation.from_quat(arrays["quats"][i], scalar_first=True).as_matrix()
        covariance = rotation @ np.diag(np.exp(arrays["log_scales"][i]) ** 2) @ rotation.T
        margin_x, margin_y = 0.3 * 0.5 * camera.width / camera.fx, 0.3 * 0.5 * camera.height / camera.fy
        tx = z * min(max(x / z, -(camera.cx / camera.fx + margin_x)), (camera.width - camera.cx) / camera.fx + margin_x)
        ty = z * min(
            max(y / z, -(camera.cy / camera.fy + margin_y)), (camera.height - camera.cy) / camera.fy + margin_y
        )
        jacobian = np.array([[camera.fx / z, 0, -camera.fx * tx / z**2], [0, camera.fy / z, -camera.fy * ty / z**2]])
        projected = jacobian @ pose[:3, :3] @ covariance @ pose[:3, :3].T @ jacobian.T
        blurred = projected + 0.3 * np.eye(2)
        opacity = 1 / (1 + math.exp(-arrays["logit_opacities"][i]))
        if options.footprint is Footprint.ANTIALIASED:
            opacity *= math.sqrt(max(0.0, np.linalg.det(projected) / np.linalg.det(blurred)))
        direction = (arrays["means"][i] - eye) / np.linalg.norm(arrays["means"][i] - eye)
        color = 0.5 + real_spherical_harmonic(0, 0, direction) * arrays["sh_dc"][i]
        for k in range((degree + 1) ** 2 - 1):
            band = math.isqrt(k + 1)
            order = k + 1 - band * band - band
            color = color + real_spherical_harmonic(band, order, direction) * arrays["sh_rest"][i, k]
        center = np.array([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy])
        splats.append(
            {"z": z, "mean": center, "conic": np.linalg.inv(blurred), "opacity": opacity, "color": np.maximum(0, color)}
        )
    return sorted(splats, key=lambda splat: splat["z"])


def pixel_by_loop(splats: list[dict], row: int, column: int, background: tuple) -> tuple[np.ndarray, float, float]:
    """Blend one pixel, one splat at a time, as the rule says."""
    color, transmittance, depth = np.zeros(3), 1.0, 0.0
    for splat in splats:
        offset = np.array([column + 0.5, row + 0.5]) - splat["mean"]
        alpha = min(0.999, splat["opacity"] * math.exp(-0.5 * offset @ splat["conic"] @ offset))
        if alpha < 1 / 255:
            continue
        if transmittance * (1 - alpha) < 1e-4:
            break
        color = color + transmittance * alpha * splat["color"]
        depth += transmittance * alpha * splat["z"]
        transmittance *= 1 - alpha
    return color + transmittance * np.array(background), 1 - transmittance, depth


@ALL_CASES
def test_pixels_equal_a_loop_written_from_the_formula(case: RenderCase):
    cloud = case.cloud()
    rendering = render_reference(cloud, case.camera, case.options)
    splats = splats_by_loop(cloud, case.camera, case.options)
    generator = np.random.default_rng(0)
    touched = rendering.alpha.flatten().nonzero().squeeze(1).tolist() or [0]
    pixels = [*generator.choice(touched, 12), *generator.integers(0, rendering.alpha.numel(), 3)]
    for pixel in pixels:
        row, column = divmod(int(pixel), case.camera.width)
        color, alpha, depth = pixel_by_loop(splats, row, column, case.options.background)
        np.testing.assert_allclose(rendering.image[row, column].numpy(), color, rtol=0, atol=1e-9)
        assert float(rendering.alpha[row, column]) == pytest.approx(alpha, abs=1e-9)
        assert float(rendering.depth[row, column]) == pytest.approx(depth, abs=1e-8)


@pytest.mark.parametrize("footprint", Footprint)
def test_whole_image_of_a_handful_equals_the_loop(footprint):
    cloud = random_cloud(torch.Generator().manual_seed(5), 7, scale=0.5)
    camera, options = make_camera(13, 9), RenderOptions((0.1, 0.6, 0.3), footprint)
    rendering = render_reference(cloud, camera, options)
    splats = splats_by_loop(cloud, camera, options)
    assert len(splats) == 7
    for row in range(9):
        for column in range(13):
            color, alpha, depth = pixel_by_loop(splats, row, column, options.background)
            np.testing.assert_allclose(rendering.image[row, column].numpy(), color, rtol=0, atol=1e-12)
            assert float(rendering.alpha[row, column]) == pytest.approx(alpha, abs=1e-12)
            assert float(rendering.depth[row, column]) == pytest.approx(depth, abs=1e-12)
    assert float(rendering.alpha.max()) > 0.3


def test_spherical_harmonics_equal_scipys():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    basis = spherical_harmonics_basis(directions, 3)
    expected = [
        [real_spherical_harmonic(band, order, row) for band in (1, 2, 3) for order in range(-band, band + 1)]
        for row in directions.numpy()
    ]
    np.testing.assert_allclose(basis.numpy(), expected, atol=1e-12)
    assert pytest.approx(1 / (2 * math.sqrt(math.pi)), abs=1e-15) == SH_C0
    for degree, count in ((0, 0), (1, 3), (2, 8)):
        torch.testing.assert_close(spherical_harmonics_basis(directions, degree), basis[:, :count])


def test_rotations_equal_scipys_at_any_length():
    quats = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quats *= torch.logspace(-3, 3, 30, dtype=torch.float64)[:, None]
    expected = Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix()
    np.testing.assert_allclose(rotation_matrices(quats).numpy(), expected, atol=1e-14)
    torch.testing.assert_close(rotation_matrices(torch.zeros(1, 4))[0], torch.eye(3))


@ALL_CASES
def test_cases_hold_no_ambiguous_pixel_and_are_repeatable(case: RenderCase):
    assert not ambiguous_pixels(case.cloud(), case.camera, case.options).any()
    for name, tensor in case.cloud().tensors.items():
        assert torch.equal(tensor, getattr(case.cloud(), name))
        assert torch.equal(tensor, tensor.float().double())
    assert len(case.cloud()) <= 300
    assert case.camera.width <= 64
    assert case.camera.height <= 48


@ALL_CASES
def test_float32_stays_within_rounding_of_float64(case: RenderCase):
    rendering = render_reference(case.cloud(), case.camera, case.options)
    single = render_reference(case.cloud().to(torch.float32), case.camera, case.options)
    assert single.image.dtype == torch.float32
    assert float((single.image - rendering.image).abs().max()) < 1e-5


@ALL_CASES
def test_renderer_by_blocks_equals_the_dense_image(case: RenderCase):
    dense = render_reference(case.cloud(), case.camera, case.options)
    blocks = ReferenceRenderer().render(case.cloud(), case.camera, case.options)
    for name in ("image", "alpha", "depth"):
        torch.testing.assert_close(getattr(blocks, name), getattr(dense, name), rtol=0, atol=1e-12)
    assert not blocks.image.requires_grad


def dense_gradient(case: RenderCase, ssim_weight: float) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient by autograd through the dense image."""
    cloud = case.cloud().map(lambda tensor: tensor.requires_grad_())
    image = render_reference(cloud, case.camera, case.options).image
    loss = case.problem(L1Ssim(ssim_weight)).loss_of(image)
    tensors = cloud.tensors
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(tensors, found, strict=True))


@ALL_CASES
def test_renderer_by_blocks_accumulates_the_dense_gradient(case: RenderCase):
    cloud = case.cloud()
    loss, expected = dense_gradient(case, 0.2)
    gradient = {name: torch.ones_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    result = ReferenceRenderer().accumulate_gradient(cloud, case.problem(), WeightedSum(gradient, 0.25), seen)
    assert result.loss == pytest.approx(loss, rel=1e-12)
    image = render_reference(cloud, case.camera, case.options).image
    squared = float((image - case.target().double() / 255).square().mean())
    assert result.squared_error == pytest.approx(squared, rel=1e-12)
    for name, total in gradient.items():
        assert torch.isfinite(total).all()
        torch.testing.assert_close(total - 1, 0.25 * expected[name], rtol=1e-9, atol=1e-14)
    moved = torch.zeros_like(seen)
    for part in expected.values():
        moved |= (part.reshape(len(cloud), -1) != 0).any(dim=1) if part.numel() else False
    assert not (moved & ~seen).any(), "what has a gradient was drawn"


def test_seen_is_what_is_blended_and_is_only_added_to():
    camera = make_camera(20, 12, rotated=False)
    cloud = random_cloud(torch.Generator().manual_seed(0), 4, sh_degree=0)
    cloud.means = torch.tensor([[0, 0, 0.0], [0, 0, -9.0], [50, 0, 0.0], [0, 0, 1.0]], dtype=torch.float64)
    cloud.log_scales = torch.full((4, 3), -1.0, dtype=torch.float64)
    cloud.logit_opacities = torch.tensor([2.0, 2.0, 2.0, -8.0], dtype=torch.float64)
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.tensor([False, True, False, False])
    target = torch.zeros(12, 20, 3, dtype=torch.uint8)
    ReferenceRenderer().accumulate_gradient(cloud, ViewProblem(camera, target), WeightedSum(gradient), seen)
    assert seen.tolist() == [True, True, False, False]


def test_cases_reach_the_awkward_branches():
    """Each awkward case does what its name says, so that passing it means something."""
    giants = find_case("opaque_giants")
    solid = render_reference(giants.cloud(), giants.camera, giants.options).alpha
    assert float(solid.max()) > 0.999
    for name in ("behind", "zero_gaussians"):
        case = find_case(name)
        rendering = render_reference(case.cloud(), case.camera, case.options)
        background = torch.tensor(case.options.background, dtype=torch.float64)
        assert torch.equal(rendering.image, background.expand(23, 37, 3))
        assert not rendering.alpha.any()
        assert not rendering.depth.any()
    corner = find_case("one_corner")
    alpha = render_reference(corner.cloud(), corner.camera, corner.options).alpha
    assert not alpha[:, 32:].any()
    near = find_case("near_plane")
    depth = near.cloud().means[:, 2] + 4
    assert (depth <= 0.01).sum() > 20
    assert ((depth > 0.01) & (depth < 0.1)).any()
    scales = find_case("needles").cloud().log_scales
    assert float((scales.amax(1) - scales.amin(1)).exp().min()) > 1e3


def test_rays_end_before_the_gaussian_that_would_cross_the_threshold():
    """Three opaque layers: the third would take T from 1e-2·1e-1 to below 1e-4, so it is left out."""
    camera = Camera(torch.eye(4, dtype=torch.float64), 10.0, 10.0, 0.5, 0.5, 1, 1)
    cloud = random_cloud(torch.Generator().manual_seed(0), 4, sh_degree=0)
    cloud.means = torch.tensor([[0, 0, 4.0], [0, 0, 1.0], [0, 0, 3.0], [0, 0, 2.0]], dtype=torch.float64)
    cloud.sh_dc = (torch.eye(4, 3, dtype=torch.float64) - 0.5) / SH_C0
    opacity = torch.tensor([0.5, 0.99, 0.95, 0.9], dtype=torch.float64)
    cloud.logit_opacities = torch.logit(opacity)
    rendering = render_reference(cloud, camera, RenderOptions((1.0, 1.0, 1.0)))
    # Front to back: rows 1 (0.99), 3 (0.9), then row 2 (0.95) would leave 5e-5 and ends the ray.
    expected = torch.tensor([0.0, 0.99, 0.0], dtype=torch.float64) + 1e-3
    torch.testing.assert_close(rendering.image[0, 0], expected, rtol=0, atol=1e-12)
    assert float(rendering.alpha) == pytest.approx(0.999, abs=1e-12)
    assert float(rendering.depth) == pytest.approx(0.99 * 1 + 0.01 * 0.9 * 2, abs=1e-12)


def test_alpha_is_clamped_and_pairs_below_the_cut_are_skipped():
    camera = Camera(torch.eye(4, dtype=torch.float64), 10.0, 10.0, 0.5, 0.5, 1, 1)
    cloud = random_cloud(torch.Generator().manual_seed(0), 1, sh_degree=0)
    cloud.means = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)

    def alpha(opacity: float) -> float:
        cloud.logit_opacities = torch.logit(torch.tensor([opacity], dtype=torch.float64))
        return float(render_reference(cloud, camera).alpha)

    assert alpha(1 - 1e-6) == pytest.approx(0.999, abs=1e-14)
    assert alpha(0.99 / 255) == 0
    assert alpha(1.01 / 255) == pytest.approx(1.01 / 255, rel=1e-12)


def test_order_is_by_depth_then_by_row():
    case = find_case("degree_1")
    cloud = case.cloud()
    image = render_reference(cloud, case.camera, case.options).image
    shuffled = cloud.map(lambda tensor: tensor[torch.randperm(100, generator=torch.Generator().manual_seed(3))])
    torch.testing.assert_close(render_reference(shuffled, case.camera, case.options).image, image, rtol=0, atol=1e-13)

    camera = Camera(torch.eye(4, dtype=torch.float64), 10.0, 10.0, 0.5, 0.5, 1, 1)
    twins = random_cloud(torch.Generator().manual_seed(0), 2, sh_degree=0)
    twins.means = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    twins.logit_opacities = torch.zeros(2, dtype=torch.float64)
    twins.sh_dc = (torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64) - 0.5) / SH_C0
    expected = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(render_reference(twins, camera).image[0, 0], expected)


def test_background_shines_through_what_is_left():
    case = find_case("degree_2")
    black = render_reference(case.cloud(), case.camera, replace(case.options, background=(0.0, 0.0, 0.0)))
    grey = render_reference(case.cloud(), case.camera, case.options)
    background = torch.tensor(case.options.background, dtype=torch.float64)
    torch.testing.assert_close(grey.image - black.image, (1 - black.alpha)[:, :, None] * background)


def test_active_degree_equals_storing_no_more():
    case = find_case("degree_3")
    for degree in range(4):
        options = replace(case.options, sh_degree=degree)
        lower = case.cloud().with_sh_degree(degree)
        expected = render_reference(lower, case.camera, case.options).image
        assert torch.equal(render_reference(case.cloud(), case.camera, options).image, expected)
    above = render_reference(lower.with_sh_degree(1), case.camera, replace(case.options, sh_degree=3)).image
    assert torch.equal(above, render_reference(lower.with_sh_degree(1), case.camera, case.options).image)


def test_memory_chunks_change_nothing(monkeypatch):
    case = find_case("ordinary")
    whole = render_reference(case.cloud(), case.camera, case.options).image
    monkeypatch.setattr("splatopt.raster.reference._PAIRS_AT_ONCE", 40_000)
    chunks = render_reference(case.cloud(), case.camera, case.options).image
    assert relative_vector_error(chunks, whole) < 1e-14


def test_oracles_are_named():
    renderer = ReferenceRenderer()
    assert renderer.name == "reference"
    assert renderer.oracles == set(Oracle)


def one_on_axis(opacity: float, *depths: float) -> GaussianCloud:
    """Wide Gaussians on the optical axis of a one-pixel camera."""
    count = len(depths)
    cloud = random_cloud(torch.Generator().manual_seed(0), count, sh_degree=0)
    cloud.means = torch.tensor([[0.0, 0.0, z] for z in depths], dtype=torch.float64)
    cloud.logit_opacities = torch.logit(torch.full((count,), opacity, dtype=torch.float64))
    return cloud


@pytest.mark.parametrize(
    ("cloud", "expected"),
    [
        (one_on_axis(1.00005 / 255, 2.0), True),
        (one_on_axis(0.99995 / 255, 2.0), True),
        (one_on_axis(1.0003 / 255, 2.0), False),
        (one_on_axis(0.99895, 2.0), True),
        (one_on_axis(0.9985, 2.0), False),
        (one_on_axis(0.99, 1.0, 2.0), True),  # T = 1e-4 exactly
        (one_on_axis(0.989, 1.0, 2.0), False),
        (one_on_axis(0.3, 2.0, 2.0 + 1e-7), True),  # float32 may swap them
        (one_on_axis(0.3, 2.0, 2.0 + 1e-4), False),
        (one_on_axis(0.3, 2.0, 2.0), False),  # same row of numbers: same z everywhere
        (one_on_axis(0.97, 1.0, 1.5, 2.5, 3.0, 3.0 + 1e-7), False),  # behind the end of the ray
    ],
)
def test_ambiguous_pixels_are_those_at_a_threshold(cloud, expected):
    camera = Camera(torch.eye(4, dtype=torch.float64), 10.0, 10.0, 0.5, 0.5, 1, 1)
    assert bool(ambiguous_pixels(cloud, camera)) is expected
