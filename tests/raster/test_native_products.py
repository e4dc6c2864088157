"""The native Jacobian products, diagonal and blocks against the float64 reference."""

from __future__ import annotations

import functools

import pytest
import torch

from raster.cases import RENDER_CASES, RenderCase, find_case, make_camera
from raster.compare import relative_vector_error, worst_elementwise_error
from raster.test_native import isas
from splatopt.core import native
from splatopt.core.schema import BLOCK_SIZE, PACKED_BLOCK
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import WeightedSum
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")

LOSSES = (L1Ssim(), SquaredError())
TINY = (
    *((name, Footprint.CLASSIC) for name in ("degree_0", "degree_3", "needles", "opaque_giants", "all_around")),
    *((name, Footprint.ANTIALIASED) for name in ("degree_0", "degree_3", "blades_antialiased")),
)


@pytest.fixture(scope="module", params=isas())
def renderer(request: pytest.FixtureRequest) -> NativeRenderer:
    return NativeRenderer(threads=2, isa=request.param)


def random_like(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A direction whose entries are as large as the parameters themselves."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).float().double()
        * (tensor.abs().mean() if tensor.numel() else 1.0)
        for name, tensor in tensors.items()
    }


def in_float32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items()}


def products(renderer, cloud: GaussianCloud, case: RenderCase, kind: Loss, tangent, cotangent):
    view = (cloud, case.problem(kind))
    gradient = {name: torch.full_like(tensor, float("nan")) for name, tensor in cloud.tensors.items()}
    forward = renderer.jvp(*view, tangent)
    renderer.vjp(*view, cotangent, WeightedSum(gradient, overwrite=True))
    return renderer.residuals(*view), forward, gradient


@functools.cache
def reference_products(name: str, kind: Loss):
    """A direction, a cotangent and what the reference makes of them, once for all instruction sets."""
    case = find_case(name)
    cloud = case.cloud()
    tangent = random_like(cloud.tensors, 1)
    shape = (kind.components, case.camera.height, case.camera.width, 3)
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    return tangent, cotangent, products(ReferenceRenderer(), cloud, case, kind, tangent, cotangent)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("case", RENDER_CASES, ids=lambda case: case.name)
def test_residuals_and_products_agree_with_the_reference(renderer, case: RenderCase, kind: Loss) -> None:
    tangent, cotangent, truth = reference_products(case.name, kind)
    cloud = case.cloud().to(torch.float32)
    result = products(renderer, cloud, case, kind, in_float32(tangent), cotangent.float())
    assert relative_vector_error(result[0], truth[0]) < 1e-4
    assert relative_vector_error(result[1], truth[1]) < 1e-4
    for name, gradient in truth[2].items():
        assert relative_vector_error(result[2][name], gradient) < 1e-4, name
        # Random cotangents cancel over a Gaussian's pixels as a photograph's do not, and take digits with them.
        assert worst_elementwise_error(result[2][name], gradient, 2e-2) < 1e-3, name
    # ⟨J v, u⟩ = ⟨v, Jᵀ u⟩ of the native passes alone.
    left = (result[1].double() * cotangent).sum()
    right = sum((result[2][name].double() * direction).sum() for name, direction in tangent.items())
    assert abs(left - right) <= 1e-5 * result[1].double().norm() * cotangent.double().norm()


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("name", ["degree_3", "needles"])
def test_the_gauss_newton_product_draws_once_and_is_both_products(renderer, name: str, kind: Loss) -> None:
    case = find_case(name)
    cloud = case.cloud().to(torch.float32)
    view = (cloud, case.problem(kind))
    tangent = in_float32(random_like(case.cloud().tensors, 1))
    expected = {name: torch.ones_like(tensor) for name, tensor in cloud.tensors.items()}
    found = {name: torch.ones_like(tensor) for name, tensor in cloud.tensors.items()}
    renderer.vjp(*view, renderer.jvp(*view, tangent), WeightedSum(expected, 0.25))
    drawn = []
    draw = renderer.draw
    renderer.draw = lambda *arguments, **named: drawn.append(None) or draw(*arguments, **named)
    try:
        renderer.gauss_newton_product(*view, tangent, WeightedSum(found, 0.25))
    finally:
        del renderer.draw
    assert len(drawn) == 1
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_the_value_is_the_loss_that_comes_with_the_gradient(renderer: NativeRenderer) -> None:
    case = find_case("degree_3")
    cloud = case.cloud().to(torch.float32)
    view = (cloud, case.problem())
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    assert renderer.value(*view) == renderer.accumulate_gradient(*view, WeightedSum(gradient), seen)


def test_a_missing_tangent_is_zero(renderer: NativeRenderer) -> None:
    case = find_case("ordinary")
    cloud = case.cloud().to(torch.float32)
    view = (cloud, case.problem(L1Ssim()))
    only = torch.ones_like(cloud.means)
    full = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()} | {"means": only}
    assert torch.equal(renderer.jvp(*view, {"means": only}), renderer.jvp(*view, full))
    assert renderer.jvp(*view, {}).abs().max() == 0


def tiny(name: str, footprint: Footprint) -> tuple[RenderCase, GaussianCloud]:
    """A dozen Gaussians of a case on a small image, for the dense reference."""
    case = find_case(name)
    options = RenderOptions(background=(0.2, 0.5, 0.9), footprint=footprint)
    cloud = case.cloud().map(lambda tensor: tensor[:8].clone())
    return RenderCase(name, case.builder, make_camera(17, 14), options), cloud


def curvature(renderer, cloud: GaussianCloud, case: RenderCase, kind: Loss):
    view = (cloud, case.problem(kind))
    diagonal = {name: torch.full_like(tensor, float("nan")) for name, tensor in cloud.tensors.items()}
    blocks = torch.full((len(cloud), PACKED_BLOCK), float("nan"), dtype=cloud.means.dtype)
    rest = torch.full_like(cloud.sh_rest, float("nan"))
    renderer.accumulate_diagonal(*view, WeightedSum(diagonal, overwrite=True))
    renderer.accumulate_blocks(*view, WeightedSum({"blocks": blocks, "sh_rest": rest}, overwrite=True))
    return diagonal, blocks, rest


@functools.cache
def reference_curvature(name: str, footprint: Footprint, kind: Loss):
    """What the reference finds, once for all instruction sets."""
    case, cloud = tiny(name, footprint)
    return curvature(ReferenceRenderer(), cloud, case, kind)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize(("name", "footprint"), TINY)
def test_diagonal_and_blocks_agree_with_the_reference(renderer, name: str, footprint: Footprint, kind) -> None:
    case, cloud = tiny(name, footprint)
    diagonal, blocks, rest = curvature(renderer, cloud.to(torch.float32), case, kind)
    true_diagonal, true_blocks, true_rest = reference_curvature(name, footprint, kind)
    assert true_blocks.abs().max() > 0
    for tensor_name, truth in true_diagonal.items():
        assert relative_vector_error(diagonal[tensor_name], truth) < 1e-4, tensor_name
        assert worst_elementwise_error(diagonal[tensor_name], truth) < 2e-4, tensor_name
    assert relative_vector_error(blocks, true_blocks) < 1e-4
    assert relative_vector_error(rest, true_rest) < 1e-4
    # Entry (i, j) against √(B_ii B_jj): small parameters' entries count as much as large ones'.
    rows, columns = torch.tril_indices(BLOCK_SIZE, BLOCK_SIZE)
    on_diagonal = true_blocks[:, rows == columns].sqrt()
    scale = on_diagonal[:, rows] * on_diagonal[:, columns]
    error = (blocks.double() - true_blocks).abs() / (scale + 1e-6 * scale.max())
    assert error.max() < 2e-4


def test_the_blocks_diagonal_is_the_diagonal(renderer: NativeRenderer) -> None:
    case = find_case("degree_3")
    cloud = case.cloud().to(torch.float32)
    diagonal, blocks, rest = curvature(renderer, cloud, case, L1Ssim())
    positions = [i * (i + 3) // 2 for i in range(BLOCK_SIZE)]
    parts = [diagonal[name].reshape(len(cloud), -1) for name in ("means", "log_scales", "quats")]
    parts += [diagonal["logit_opacities"][:, None], diagonal["sh_dc"]]
    torch.testing.assert_close(blocks[:, positions], torch.cat(parts, dim=1), rtol=1e-4, atol=0)
    torch.testing.assert_close(rest, diagonal["sh_rest"])


def test_what_is_not_seen_has_no_curvature_and_no_nan(renderer: NativeRenderer) -> None:
    case = find_case("behind")
    diagonal, blocks, rest = curvature(renderer, case.cloud().to(torch.float32), case, L1Ssim())
    assert all(tensor.abs().max() == 0 for tensor in (*diagonal.values(), blocks, rest))


def test_curvature_is_added_with_its_weight(renderer: NativeRenderer) -> None:
    case = find_case("degree_1")
    cloud = case.cloud().to(torch.float32)
    diagonal, blocks, rest = curvature(renderer, cloud, case, L1Ssim())
    view = (cloud, case.problem(L1Ssim()))
    doubled = {name: tensor.clone() for name, tensor in diagonal.items()}
    more_blocks, more_rest = blocks.clone(), rest.clone()
    renderer.accumulate_diagonal(*view, WeightedSum(doubled, 0.5))
    renderer.accumulate_blocks(*view, WeightedSum({"blocks": more_blocks, "sh_rest": more_rest}, 0.5))
    for name, tensor in diagonal.items():
        torch.testing.assert_close(doubled[name], 1.5 * tensor)
    torch.testing.assert_close(more_blocks, 1.5 * blocks)
    torch.testing.assert_close(more_rest, 1.5 * rest)


@pytest.mark.parametrize("threads", [1, 5])
def test_any_number_of_threads_gives_the_same_curvature(threads: int) -> None:
    case = find_case("all_around")
    cloud = case.cloud().to(torch.float32)
    first, second = (curvature(NativeRenderer(count), cloud, case, L1Ssim()) for count in (2, threads))
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert torch.equal(first[1], second[1])
