"""Jacobian products, Gauss-Newton curvature and Hessian products of the reference, against dense truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from raster.cases import find_case, make_camera, random_cloud
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.core.objective import MissingOracleError
from splatopt.core.schema import BLOCK_SIZE, BLOCK_TENSORS, GAUSSIAN_TENSORS
from splatopt.curvature.blocks import pack_blocks, unpack_blocks
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, ambiguous_pixels, render_reference
from splatopt.raster.ssim import ssim_center_derivative_reference, ssim_map_reference
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from train.toys import ToyRenderer

RENDERER = ReferenceRenderer()
FREE = L1Ssim(ssim_weight=0.3, floor_absolute=1e-12, floor_dissimilarity=1e-12)
"""Floors that act nowhere in these scenes."""
LOSSES = (FREE, L1Ssim(), SquaredError())


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Scene:
    """A tiny scene; its third Gaussian lies behind the camera."""

    cloud: GaussianCloud
    camera: Camera
    target: Tensor
    options: RenderOptions

    def asked(self, loss: Loss) -> tuple[GaussianCloud, ViewProblem]:
        return self.cloud, ViewProblem(self.camera, self.target, self.options, loss)

    def zeros(self) -> dict[str, Tensor]:
        return {name: torch.full_like(tensor, math.nan) for name, tensor in self.cloud.tensors.items()}


@cache
def scene(footprint: Footprint = Footprint.CLASSIC) -> Scene:
    cloud = random_cloud(torch.Generator().manual_seed(3), 6, sh_degree=1, scale=0.6)
    cloud.logit_opacities = cloud.logit_opacities.clamp(-1.5, 1.5)
    cloud.means[2, 2] = -40.0
    camera = make_camera(12, 10)
    options = RenderOptions(background=(0.3, 0.1, 0.8), footprint=footprint)
    assert not ambiguous_pixels(cloud, camera, options, relative=1e-3).any()
    target = torch.randint(0, 256, (10, 12, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Scene(cloud, camera, target, options)


def block_sum(blocks: Tensor, rest: Tensor, weight: float = 1.0, *, overwrite: bool = False) -> WeightedSum:
    return WeightedSum({"blocks": blocks, "sh_rest": rest}, weight, overwrite)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in GAUSSIAN_TENSORS])


def shaped(vector: Tensor, cloud: GaussianCloud) -> dict[str, Tensor]:
    parts = vector.split([tensor.numel() for tensor in cloud.tensors.values()])
    return {name: part.reshape(cloud.tensors[name].shape) for name, part in zip(GAUSSIAN_TENSORS, parts, strict=True)}


def random_tangent(cloud: GaussianCloud, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in cloud.tensors.items()
    }


def image_at(place: Scene, vector: Tensor) -> Tensor:
    return render_reference(GaussianCloud(**shaped(vector, place.cloud)), place.camera, place.options).image


@cache
def image_jacobian(footprint: Footprint = Footprint.CLASSIC) -> Tensor:
    """Return ∂image/∂θ, (3HW, T), by forward differentiation of one parameter at a time."""
    place = scene(footprint)
    vector = flat(place.cloud.tensors)
    columns = torch.func.vmap(
        lambda along: torch.func.jvp(lambda x: image_at(place, x), (vector,), (along,))[1], chunk_size=32
    )(torch.eye(vector.numel(), dtype=torch.float64))
    return columns.reshape(vector.numel(), -1).T


def residual_jacobian(place: Scene, options: Loss) -> Tensor:
    """Return ∂r/∂image, (k·3HW, 3HW), by rows, of the formulae with their floors."""
    image, target = render_reference(place.cloud, place.camera, place.options).image, place.target.double() / 255
    count = image.numel()
    if isinstance(options, SquaredError):
        return torch.eye(count, dtype=torch.float64) / math.sqrt(count)
    difference = (image - target).flatten()
    scale = ((1 - options.ssim_weight) / (2 * count * difference.abs().clamp_min(options.floor_absolute))).sqrt()
    if not options.ssim_weight:
        return torch.diag(difference.sign() * scale)
    of_ssim = torch.func.jacrev(ssim_map_reference)(image, target).reshape(count, count)
    loss = (1 - ssim_map_reference(image, target)).flatten().clamp_min(options.floor_dissimilarity)
    return torch.cat(
        [torch.diag(difference.sign() * scale), -(options.ssim_weight / (2 * count * loss)).sqrt()[:, None] * of_ssim]
    )


def vjp(place: Scene, options: Loss, cotangent: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
    product = place.zeros()
    RENDERER.vjp(*place.asked(options), cotangent, WeightedSum(product, weight, overwrite=True))
    return product


def test_where_no_floor_acts_the_jacobian_is_that_of_the_residuals():
    place = scene()
    image, target = render_reference(place.cloud, place.camera, place.options).image, place.target.double() / 255
    assert (image - target).abs().min() > FREE.floor_absolute
    dense = torch.func.jacrev(lambda x: FREE.residuals(x, target, torch.ones_like(x[..., :1])))(image)
    torch.testing.assert_close(residual_jacobian(place, FREE), dense.reshape(-1, image.numel()), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("options", LOSSES, ids=["no floors", "3dgs", "squares"])
def test_half_the_squared_residuals_are_the_loss(options):
    place = scene()
    image, target = render_reference(place.cloud, place.camera, place.options).image, place.target.double() / 255
    residuals = RENDERER.residuals(*place.asked(options))
    assert residuals.shape == (options.components, 10, 12, 3)
    absolute, ssim = (image - target).abs().mean(), ssim_map_reference(image, target).mean()
    loss = (
        0.5 * (image - target).square().mean()
        if isinstance(options, SquaredError)
        else (1 - options.ssim_weight) * absolute + options.ssim_weight * (1 - ssim)
    )
    assert float(0.5 * residuals.square().sum()) == pytest.approx(float(loss), rel=1e-12)


@pytest.mark.parametrize("footprint", Footprint)
@pytest.mark.parametrize("options", LOSSES, ids=["no floors", "3dgs", "squares"])
def test_products_agree_with_the_dense_jacobian(options, footprint):
    place = scene(footprint)
    jacobian = residual_jacobian(place, options) @ image_jacobian(footprint)
    tangent = random_tangent(place.cloud, 5)
    jvp_value = RENDERER.jvp(*place.asked(options), tangent)
    torch.testing.assert_close(jvp_value.flatten(), jacobian @ flat(tangent), rtol=1e-9, atol=1e-12)
    cotangent = torch.randn(jvp_value.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    vjp_value = flat(vjp(place, options, cotangent))
    torch.testing.assert_close(vjp_value, jacobian.T @ cotangent.flatten(), rtol=1e-9, atol=1e-12)
    assert float(jvp_value.flatten() @ cotangent.flatten()) == pytest.approx(
        float(flat(tangent) @ vjp_value), rel=1e-11
    )


@pytest.mark.parametrize("name", GAUSSIAN_TENSORS)
def test_what_a_tangent_does_not_name_is_zero(name):
    place = scene()
    tangent = random_tangent(place.cloud, 7)
    whole = {other: part if other == name else torch.zeros_like(part) for other, part in tangent.items()}
    alone = RENDERER.jvp(*place.asked(L1Ssim()), {name: tangent[name]})
    assert alone.abs().max() > 1e-5
    assert torch.equal(alone, RENDERER.jvp(*place.asked(L1Ssim()), whole))


def test_the_residuals_pulled_back_are_the_gradient():
    place = scene()
    gradient, seen = place.zeros(), torch.zeros(6, dtype=torch.bool)
    RENDERER.accumulate_gradient(*place.asked(FREE), WeightedSum(gradient, overwrite=True), seen)
    vjp_value = vjp(place, FREE, RENDERER.residuals(*place.asked(FREE)))
    torch.testing.assert_close(flat(vjp_value), flat(gradient), rtol=1e-9, atol=1e-13)


def test_what_is_added_is_weighted():
    place = scene()
    cotangent = torch.randn(2, 10, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = vjp(place, L1Ssim(), cotangent)
    sums = {name: torch.ones_like(part) for name, part in once.items()}
    RENDERER.vjp(*place.asked(L1Ssim()), cotangent, WeightedSum(sums, 0.25))
    torch.testing.assert_close(flat(sums), 1 + 0.25 * flat(once))
    diagonal, blocks, rest = place.zeros(), torch.ones(6, 105).double(), torch.ones(6, 3, 3).double()
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(diagonal, 1.0, overwrite=True))
    half = {name: torch.ones_like(part) for name, part in diagonal.items()}
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(half, 0.5))
    torch.testing.assert_close(flat(half), 1 + 0.5 * flat(diagonal))
    RENDERER.accumulate_blocks(*place.asked(L1Ssim()), block_sum(blocks, rest, 0.5))
    torch.testing.assert_close(rest, half["sh_rest"])
    torch.testing.assert_close(blocks[:, 0], half["means"][:, 0])


def test_the_central_derivative_of_ssim_is_the_jacobians_diagonal():
    place = scene()
    image, target = render_reference(place.cloud, place.camera, place.options).image, place.target.double() / 255
    dense = torch.func.jacrev(ssim_map_reference)(image, target).reshape(360, 360)
    central = ssim_center_derivative_reference(image, target)
    torch.testing.assert_close(central.flatten(), dense.diagonal(), rtol=1e-10, atol=1e-13)


def own_pixel_weights(place: Scene, options: Loss) -> Tensor:
    """Return Σ_k (∂r_kp/∂x_p)² from the dense Jacobian."""
    count = place.camera.height * place.camera.width * 3
    return residual_jacobian(place, options).reshape(-1, count, count).diagonal(dim1=1, dim2=2).square().sum(dim=0)


@pytest.mark.parametrize("footprint", Footprint)
@pytest.mark.parametrize("options", LOSSES, ids=["no floors", "3dgs", "squares"])
def test_diagonal_and_blocks_agree_with_the_dense_jacobian(options, footprint):
    place = scene(footprint)
    jacobian = image_jacobian(footprint)
    weighted = jacobian * own_pixel_weights(place, options).sqrt()[:, None]
    dense = weighted.T @ weighted
    diagonal = place.zeros()
    RENDERER.accumulate_diagonal(*place.asked(options), WeightedSum(diagonal, 1.0, overwrite=True))
    torch.testing.assert_close(flat(diagonal), dense.diagonal(), rtol=1e-9, atol=1e-18)

    blocks, rest = torch.full((6, 105), math.nan).double(), torch.full((6, 3, 3), math.nan).double()
    RENDERER.accumulate_blocks(*place.asked(options), block_sum(blocks, rest, 1.0, overwrite=True))
    torch.testing.assert_close(rest, diagonal["sh_rest"], rtol=1e-12, atol=0)
    index = shaped(torch.arange(dense.shape[0]), place.cloud)
    for row, block in enumerate(unpack_blocks(blocks)):
        own = torch.cat([index[name][row].flatten() for name in BLOCK_TENSORS])
        assert own.numel() == BLOCK_SIZE
        expected = dense[own][:, own]
        torch.testing.assert_close(block, expected, rtol=1e-8, atol=1e-10 * float(dense.abs().max()))


@pytest.mark.parametrize("options", [L1Ssim(ssim_weight=0.0, floor_absolute=1e-12), SquaredError()])
def test_without_ssim_the_diagonal_is_exact(options):
    place = scene()
    jacobian = residual_jacobian(place, options) @ image_jacobian()
    diagonal = place.zeros()
    RENDERER.accumulate_diagonal(*place.asked(options), WeightedSum(diagonal, 1.0, overwrite=True))
    torch.testing.assert_close(flat(diagonal), jacobian.square().sum(dim=0), rtol=1e-9, atol=1e-18)


def test_memory_chunks_change_nothing(monkeypatch):
    place = scene()
    whole, chunked = place.zeros(), place.zeros()
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(whole, 1.0, overwrite=True))
    monkeypatch.setattr("splatopt.raster.reference_products._PAIRS_AT_ONCE", 200)
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(chunked, 1.0, overwrite=True))
    torch.testing.assert_close(flat(chunked), flat(whole), rtol=1e-12, atol=0)


def test_packing_is_the_lower_triangle_by_row():
    blocks = torch.arange(9.0).reshape(1, 3, 3)
    assert pack_blocks(blocks).tolist() == [[0.0, 3.0, 4.0, 6.0, 7.0, 8.0]]
    symmetric = blocks + blocks.transpose(1, 2)
    assert torch.equal(unpack_blocks(pack_blocks(symmetric)), symmetric)
    with pytest.raises(ValueError, match="b·"):
        unpack_blocks(torch.zeros(2, 104))


def test_the_hessian_product_is_that_of_finite_differences():
    place = scene()
    tangent = random_tangent(place.cloud, 9)
    product = place.zeros()
    RENDERER.hvp(*place.asked(L1Ssim()), tangent, WeightedSum(product, overwrite=True))
    gradients = []
    for step in (1e-6, -1e-6):
        moved = GaussianCloud(**{name: place.cloud.tensors[name] + step * tangent[name] for name in GAUSSIAN_TENSORS})
        gradient, seen = place.zeros(), torch.zeros(6, dtype=torch.bool)
        problem = place.asked(L1Ssim())[1]
        RENDERER.accumulate_gradient(moved, problem, WeightedSum(gradient, overwrite=True), seen)
        gradients.append(flat(gradient))
    expected = (gradients[0] - gradients[1]) / 2e-6
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(flat(product), expected, rtol=1e-6, atol=1e-8)
    other = random_tangent(place.cloud, 10)
    second = place.zeros()
    RENDERER.hvp(*place.asked(L1Ssim()), other, WeightedSum(second, overwrite=True))
    assert float(flat(product) @ flat(other)) == pytest.approx(float(flat(second) @ flat(tangent)), rel=1e-9)


def at_zero_error() -> Scene:
    """A scene whose photograph is what is rendered: a flat background that 8 bits hold exactly."""
    place = scene()
    cloud = place.cloud.clone()
    cloud.logit_opacities.fill_(-3.0)
    cloud.sh_dc.fill_((0.4 - 0.5) / SH_C0)
    cloud.sh_rest.zero_()
    options = RenderOptions(background=(0.4, 0.4, 0.4))
    return Scene(cloud, place.camera, torch.full((10, 12, 3), 102, dtype=torch.uint8), options)


def test_at_zero_error_everything_is_finite():
    place = at_zero_error()
    residuals = RENDERER.residuals(*place.asked(L1Ssim()))
    assert residuals.abs().max() < 1e-6
    tangent = random_tangent(place.cloud, 2)
    jvp_value = RENDERER.jvp(*place.asked(L1Ssim()), tangent)
    # |∂r₁/∂x| is at most √((1-λ) / (2n·floor)), times the change of the image.
    change = RENDERER.jvp(*place.asked(SquaredError()), tangent) * math.sqrt(360)
    limit = math.sqrt(0.8 / (2 * 360 / 255))
    assert (jvp_value[0].abs() <= limit * change[0].abs() * (1 + 1e-9)).all()
    diagonal, blocks, rest = place.zeros(), torch.zeros(6, 105).double(), torch.zeros(6, 3, 3).double()
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(diagonal, 1.0, overwrite=True))
    RENDERER.accumulate_blocks(*place.asked(L1Ssim()), block_sum(blocks, rest, 1.0))
    vjp_value = vjp(place, L1Ssim(), torch.ones_like(jvp_value))
    product = place.zeros()
    RENDERER.hvp(*place.asked(L1Ssim()), tangent, WeightedSum(product, overwrite=True))
    for part in (jvp_value, flat(diagonal), blocks, rest, flat(vjp_value), flat(product)):
        assert torch.isfinite(part).all()


def test_at_exactly_no_difference_the_absolute_error_has_no_slope():
    image = torch.full((2, 2, 3), 0.5, dtype=torch.float64)
    image[0, 0, 0] += 1e-9
    loss = L1Ssim(ssim_weight=0.0, floor_absolute=0.01)
    one = torch.ones_like(image)
    jvp_value = loss.residual_jvp(image, torch.full_like(image, 0.5), one[..., :1], one)
    assert float(jvp_value[0, 0, 0, 0]) == pytest.approx(math.sqrt(1 / (2 * 12 * 0.01)), rel=1e-12)
    assert jvp_value.shape == (1, 2, 2, 3)
    assert not jvp_value[0].flatten()[1:].any()


def degenerate() -> Scene:
    """What is not drawn: at the eye, before the near plane, behind, without volume, transparent."""
    place = scene()
    cloud, camera = place.cloud.clone(), place.camera
    rotation = camera.world_to_camera[:3, :3]
    cloud.means[0] = camera.center
    cloud.means[1] = camera.center + 0.005 * rotation[2]
    cloud.logit_opacities[3] = -30.0
    cloud.log_scales[4] = -400.0
    return replace(place, cloud=cloud)


@pytest.mark.parametrize("footprint", Footprint)
def test_rows_that_are_not_drawn_get_exactly_zero(footprint):
    place = degenerate()
    place = replace(place, options=replace(place.options, footprint=footprint))
    dark = [0, 1, 2, 3]
    diagonal, blocks, rest = place.zeros(), torch.full((6, 105), math.nan).double(), torch.zeros(6, 3, 3).double()
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(diagonal, 1.0, overwrite=True))
    RENDERER.accumulate_blocks(*place.asked(L1Ssim()), block_sum(blocks, rest, 1.0, overwrite=True))
    tangent = random_tangent(place.cloud, 3)
    jvp_value = RENDERER.jvp(*place.asked(L1Ssim()), tangent)
    vjp_value = vjp(place, L1Ssim(), torch.ones_like(jvp_value))
    product = place.zeros()
    RENDERER.hvp(*place.asked(L1Ssim()), tangent, WeightedSum(product, overwrite=True))
    per_row = [part for result in (diagonal, vjp_value, product) for part in result.values()]
    for part in (*per_row, blocks, rest):
        assert torch.isfinite(part).all()
        assert not part[dark].any()
        assert part[5].any()
    lit = {name: part.clone() for name, part in tangent.items()}
    for part in lit.values():
        part[dark] = 0
    assert torch.isfinite(jvp_value).all()
    assert torch.equal(jvp_value, RENDERER.jvp(*place.asked(L1Ssim()), lit))


def test_a_row_that_is_not_drawn_and_overflows_has_no_curvature():
    place = scene()
    cloud = place.cloud.clone()
    cloud.logit_opacities[1], cloud.log_scales[1] = -30.0, 200.0
    problem = place.asked(L1Ssim())[1]
    diagonal, blocks, rest = place.zeros(), torch.full((6, 105), math.nan).double(), torch.zeros(6, 3, 3).double()
    RENDERER.accumulate_diagonal(cloud, problem, WeightedSum(diagonal, overwrite=True))
    RENDERER.accumulate_blocks(cloud, problem, block_sum(blocks, rest, overwrite=True))
    for part in (*diagonal.values(), blocks, rest):
        assert torch.isfinite(part).all()
        assert not part[1].any()
        assert part[0].any()


@pytest.mark.parametrize("name", ["zero_gaussians", "degree_0", "degree_3_at_1", "behind"])
def test_awkward_shapes_work(name):
    case = find_case(name)
    cloud = GaussianCloud(**{key: tensor[:9] for key, tensor in case.cloud().tensors.items()})
    place = Scene(cloud, make_camera(8, 6), case.target()[:6, :8].contiguous(), case.options)
    count, coefficients = cloud.sh_rest.shape[:2]
    diagonal, blocks = place.zeros(), torch.zeros(count, 105).double()
    rest = torch.zeros(count, coefficients, 3).double()
    RENDERER.accumulate_diagonal(*place.asked(L1Ssim()), WeightedSum(diagonal, 1.0, overwrite=True))
    RENDERER.accumulate_blocks(*place.asked(L1Ssim()), block_sum(blocks, rest, 1.0))
    tangent = random_tangent(cloud, 1)
    jvp_value = RENDERER.jvp(*place.asked(L1Ssim()), tangent)
    vjp_value = vjp(place, L1Ssim(), jvp_value)
    product = place.zeros()
    RENDERER.hvp(*place.asked(L1Ssim()), tangent, WeightedSum(product, overwrite=True))
    torch.testing.assert_close(rest, diagonal["sh_rest"])
    assert float(jvp_value.square().sum()) == pytest.approx(float(flat(tangent) @ flat(vjp_value)), rel=1e-9, abs=1e-15)
    assert bool(flat(diagonal).any()) == (name in ("degree_0", "degree_3_at_1"))
    if name == "degree_3_at_1":
        assert diagonal["sh_rest"][:, :3].any()
        assert not diagonal["sh_rest"][:, 3:].any()


def test_a_renderer_without_them_refuses_by_name():
    place, toy = scene(), ToyRenderer()
    asked = place.asked(L1Ssim())
    buffers, blocks, rest = place.zeros(), torch.zeros(6, 105).double(), torch.zeros(6, 3, 3).double()
    calls = {
        "residuals": lambda: toy.residuals(*asked),
        "jvp": lambda: toy.jvp(*asked, {}),
        "vjp": lambda: toy.vjp(*asked, torch.zeros(2, 10, 12, 3), WeightedSum(buffers)),
        "gauss_newton_diagonal": lambda: toy.accumulate_diagonal(*asked, WeightedSum(buffers)),
        "gauss_newton_blocks": lambda: toy.accumulate_blocks(*asked, block_sum(blocks, rest)),
        "hvp": lambda: toy.hvp(*asked, {}, WeightedSum(buffers)),
    }
    for oracle, call in calls.items():
        with pytest.raises(MissingOracleError, match=rf"toy renderer does not give {oracle} \(it gives gradient\)"):
            call()


@pytest.mark.parametrize(
    "options", [{"ssim_weight": 1.2}, {"floor_absolute": 0.0}, {"floor_dissimilarity": -1.0}, {"ssim_weight": math.nan}]
)
def test_residual_options_without_sense_are_refused(options):
    with pytest.raises(InputError, match=f"(SSIM|{next(iter(options))}).* must"):
        L1Ssim(**options)
