"""Each loss's two faces, its derivatives, and pixels of weight zero in every answer of a renderer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.interpreter import NO_TRITON
from raster.cases import RenderCase, find_case, make_camera, random_cloud
from raster.compare import relative_vector_error
from raster.test_ssim import naive_ssim, pair
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.objective import Oracle
from splatopt.raster.losses import Charbonnier, L1Ssim, Loss, PixelLoss, SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud

LOSSES = (L1Ssim(), L1Ssim(0.0), L1Ssim(1.0), SquaredError(), Charbonnier(0.03), Charbonnier(ssim_weight=0.0))
"""Every loss that has a native pass, and SSIM's whole range."""

named = pytest.mark.parametrize("loss", LOSSES, ids=str)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_for(image: Tensor, seed: int = 0) -> Tensor:
    """Weights (H, W, 1) of which a third is zero, and the rest between 0 and 1."""
    drawn = torch.rand(*image.shape[:2], 1, generator=torch.Generator().manual_seed(seed), dtype=image.dtype)
    return torch.where(drawn < 0.3, torch.zeros_like(drawn), drawn)


def as_called(seed: int = 0, size: tuple[int, int] = (7, 6)) -> tuple[Tensor, Tensor, Tensor]:
    """An image, a photograph and weights, as a view problem hands them to a loss."""
    image, target = pair(*size, seed)
    weights = weights_for(image, seed)
    assert float((image - target).abs().min()) > 1e-5, "away from the kink of L1"
    return image * (weights > 0), target * (weights > 0), weights


@pytest.mark.parametrize("ssim_weight", [0.0, 0.2, 1.0])
def test_the_loss_of_3dgs_is_the_weighted_sum(ssim_weight):
    image, target = pair(20, 15)
    absolute = (image - target).abs().mean()
    similarity = naive_ssim(image.numpy(), target.numpy()).mean()
    expected = (1 - ssim_weight) * float(absolute) + ssim_weight * (1 - similarity)
    everywhere = torch.ones(20, 15, 1, dtype=torch.float64)
    assert float(L1Ssim(ssim_weight).value(image, target, everywhere)) == pytest.approx(expected, rel=1e-10)
    assert float(L1Ssim(ssim_weight).value(image, image, everywhere)) == pytest.approx(0, abs=1e-14)


@named
def test_half_the_squared_residuals_are_the_value(loss: Loss):
    called = as_called()
    residuals = loss.residuals(*called)
    assert residuals.shape == (loss.components, 7, 6, 3)
    assert float(0.5 * residuals.square().sum()) == pytest.approx(float(loss.value(*called)), rel=1e-12)


@named
def test_the_value_has_the_derivatives_of_finite_differences(loss: Loss):
    image, target, weights = as_called(size=(4, 3))
    image.requires_grad_()
    value = lambda x: loss.value(x * (weights > 0), target, weights)  # noqa: E731
    assert torch.autograd.gradcheck(value, (image,), eps=1e-7, atol=1e-7, rtol=1e-4)
    assert torch.autograd.gradgradcheck(value, (image,), eps=1e-6, atol=1e-6, rtol=1e-3)


def free(loss: PixelLoss) -> PixelLoss:
    """The loss with floors that act nowhere."""
    floors = {name: 1e-12 for name in ("floor_absolute", "floor_dissimilarity") if name in vars(loss)}
    return replace(loss, **floors)


@named
def test_the_residuals_have_the_derivatives_of_autograd(loss: PixelLoss):
    # A residual of weight 0 is √0, whose slope autograd does not know; tests of whole renderers have such pixels.
    image, target = pair(7, 6)
    loss, weights = free(loss), weights_for(image) + 0.05
    dense = torch.func.jacrev(lambda x: loss.residuals(x, target, weights))(image)
    generator = torch.Generator().manual_seed(1)
    tangent = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(loss.components, *image.shape, generator=generator, dtype=torch.float64)
    jvp = loss.residual_jvp(image, target, weights, tangent)
    torch.testing.assert_close(jvp, torch.tensordot(dense, tangent, 3), rtol=1e-8, atol=1e-12)
    vjp = loss.residual_vjp(image, target, weights, cotangent)
    torch.testing.assert_close(vjp, torch.tensordot(cotangent, dense, 4), rtol=1e-8, atol=1e-12)
    count = image.numel()
    own = dense.reshape(loss.components, count, count).diagonal(dim1=1, dim2=2).square().sum(dim=0)
    curvature = loss.pixel_curvature(image, target, weights)
    torch.testing.assert_close(curvature.flatten(), own, rtol=1e-8, atol=1e-14)


@named
def test_the_residuals_transposed_are_the_gradient(loss: PixelLoss):
    image, target, weights = as_called()
    # A pixel of weight 0 is 0 in both images, where no slope of |x - y| counts.
    loss, leaf = free(loss), image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.value(leaf, target, weights), leaf)
    vjp = loss.residual_vjp(image, target, weights, loss.residuals(image, target, weights))
    torch.testing.assert_close(vjp, gradient, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [{"ssim_weight": 1.5}, {"ssim_weight": float("nan")}, {"floor_absolute": 0.0}, {"floor_dissimilarity": -1.0}],
)
def test_numbers_without_sense_are_refused(options):
    with pytest.raises(InputError, match="must"):
        L1Ssim(**options)
    shared = {name: value for name, value in options.items() if name != "floor_absolute"} or {"epsilon": 0.0}
    with pytest.raises(InputError, match="must"):
        Charbonnier(**shared)


def test_charbonnier_lies_between_the_absolute_and_the_squared_error():
    image, target = pair(6, 5)
    everywhere = torch.ones(6, 5, 1, dtype=torch.float64)
    near = float(Charbonnier(1e-6, ssim_weight=0.0).value(image, target, everywhere))
    assert near == pytest.approx(float(L1Ssim(0.0).value(image, target, everywhere)), rel=1e-6)
    far = float(Charbonnier(1e3, ssim_weight=0.0).value(image, target, everywhere))
    assert (far - 1e3) * 1e3 == pytest.approx(float(SquaredError().value(image, target, everywhere)), rel=1e-4)


# ---------------------------------------------------------------------- weights in every answer


def renderers() -> list:
    found = [pytest.param(ReferenceRenderer, torch.float64, id="reference")]
    if native.available():
        from splatopt.raster.cpu import NativeRenderer

        isas = native.load().supported_isas()
        found += [pytest.param(lambda isa=isa: NativeRenderer(2, isa), torch.float32, id=isa) for isa in isas]
    return found


WIDTH, HEIGHT = 18, 15

in_each_renderer = pytest.mark.parametrize(("make", "dtype"), renderers())


def answers(renderer: Renderer, cloud: GaussianCloud, problem: ViewProblem) -> dict[str, Tensor]:
    """All that a renderer says of one view; cotangents are larger where more pixels are compared."""
    zeros = lambda: {name: torch.full_like(value, float("nan")) for name, value in cloud.tensors.items()}  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    tangent = {name: torch.randn(v.shape, generator=generator).to(v) for name, v in cloud.tensors.items()}
    gradient, transposed, product, diagonal = zeros(), zeros(), zeros(), zeros()
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    loss = renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient, overwrite=True), seen)
    assert renderer.value(cloud, problem) == loss
    residuals, jvp = renderer.residuals(cloud, problem), renderer.jvp(cloud, problem, tangent)
    renderer.vjp(cloud, problem, residuals, WeightedSum(transposed, overwrite=True))
    renderer.gauss_newton_product(cloud, problem, tangent, WeightedSum(product, overwrite=True))
    renderer.accumulate_diagonal(cloud, problem, WeightedSum(diagonal, overwrite=True))
    blocks = cloud.means.new_empty(len(cloud), 105)
    into = WeightedSum({"blocks": blocks, "sh_rest": torch.empty_like(cloud.sh_rest)}, overwrite=True)
    renderer.accumulate_blocks(cloud, problem, into)
    found = {"loss": torch.tensor([loss.loss, loss.squared_error], dtype=torch.float64), "blocks": blocks}
    sums = {"gradient": gradient, "vjp": transposed, "product": product, "diagonal": diagonal}
    if Oracle.HVP in renderer.oracles:
        sums["hvp"] = zeros()
        renderer.hvp(cloud, problem, tangent, WeightedSum(sums["hvp"], overwrite=True))
    found |= {"residuals": residuals.square().sum(), "jvp": jvp.square().sum()}
    return found | {f"{what} {name}": value for what, tensors in sums.items() for name, value in tensors.items()}


def scene(dtype: torch.dtype) -> tuple[GaussianCloud, ViewProblem]:
    cloud = random_cloud(torch.Generator().manual_seed(3), 6, sh_degree=1, scale=0.5).to(torch.float32).to(dtype)
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return cloud, ViewProblem(make_camera(WIDTH, HEIGHT), image, RenderOptions(background=(0.3, 0.1, 0.8)))


def compare(found: dict[str, Tensor], truth: dict[str, Tensor], limit: float) -> None:
    for name, value in truth.items():
        assert torch.isfinite(found[name]).all(), name
        assert relative_vector_error(found[name].double(), value.double()) < limit, name


@in_each_renderer
@named
def test_a_frame_of_weight_zero_is_as_good_as_a_smaller_image(make, dtype, loss: Loss):
    """The one strict meaning of «no trace»: a masked border gives what the cropped view gives, in every answer."""
    cloud, whole = scene(dtype)
    top, left, height, width = 3, 2, 9, 13
    weights = torch.zeros(HEIGHT, WIDTH)
    weights[top : top + height, left : left + width] = 1
    camera = whole.camera
    cropped = replace(camera, cx=camera.cx - left, cy=camera.cy - top, width=width, height=height)
    inner = whole.image[top : top + height, left : left + width].contiguous()
    masked = replace(whole, loss=loss, weights=weights)
    # The projection's Jacobian is clamped to the image's edges: all Gaussians lie well inside both.
    cloud.means.mul_(0.3)
    found = answers(make(), cloud, masked)
    truth = answers(make(), cloud, replace(whole, loss=loss, camera=cropped, image=inner))
    compare(found, truth, 1e-9 if dtype == torch.float64 else 2e-4)


@in_each_renderer
@named
def test_what_lies_under_weight_zero_does_not_matter(make, dtype, loss: Loss):
    cloud, problem = scene(dtype)
    weights = weights_for(torch.zeros(HEIGHT, WIDTH, 3))[:, :, 0]
    noise = torch.randint(0, 256, problem.image.shape, generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    other = torch.where(weights[:, :, None] > 0, problem.image, noise)
    first, second = (
        answers(make(), cloud, replace(problem, loss=loss, weights=weights, image=image))
        for image in (problem.image, other)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    unmasked = answers(make(), cloud, replace(problem, loss=loss))
    assert relative_vector_error(first["gradient means"].double(), unmasked["gradient means"].double()) > 1e-3


@in_each_renderer
@named
def test_weights_of_one_are_no_weights_and_of_zero_are_no_view(make, dtype, loss: Loss):
    cloud, problem = scene(dtype)
    plain = answers(make(), cloud, replace(problem, loss=loss))
    compare(answers(make(), cloud, replace(problem, loss=loss, weights=torch.ones(HEIGHT, WIDTH))), plain, 1e-6)
    nothing = answers(make(), cloud, replace(problem, loss=loss, weights=torch.zeros(HEIGHT, WIDTH)))
    for name, value in nothing.items():
        assert not value.any(), name


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@named
@pytest.mark.parametrize("name", ["one_row", "seventeen"])
def test_native_passes_agree_with_the_reference_under_weights(name: str, loss: Loss):
    case: RenderCase = find_case(name)
    cloud = case.cloud().map(lambda tensor: tensor[:8].clone())
    weights = weights_for(torch.zeros(case.camera.height, case.camera.width, 3))[:, :, 0]
    problem = case.problem(loss, weights)
    truth = answers(ReferenceRenderer(), cloud, problem)
    for make, dtype in (parameter.values for parameter in renderers()[1:]):
        found = answers(make(), cloud.to(dtype), problem)
        compare(found, {key: value for key, value in truth.items() if not key.startswith("hvp")}, 2e-4)


def test_the_kernels_stand_back_where_they_do_not_know_a_loss(monkeypatch):
    pytest.importorskip("triton", reason=NO_TRITON)
    from splatopt.kernels import loss as kernels
    from splatopt.raster import gpu_loss

    monkeypatch.setattr(kernels, "photometric_loss", lambda *_: pytest.fail("another loss took its place"))
    _, problem = scene(torch.float32)
    image = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    gradient = torch.empty_like(image)
    for asked in (replace(problem, loss=SquaredError()), replace(problem, weights=torch.ones(HEIGHT, WIDTH))):
        found = gpu_loss.view_loss(image, asked, gradient)
        expected, slope = asked.loss_gradient(image)
        assert found == expected
        assert torch.equal(gradient, slope)


class HalfSquares(Loss):
    """A loss without a native pass: the squared error by another name."""

    inner = SquaredError()
    components = 1

    def value(self, image, target, weights):
        return self.inner.value(image, target, weights)

    def residuals(self, image, target, weights):
        return self.inner.residuals(image, target, weights)

    def residual_jvp(self, image, target, weights, tangent):
        return self.inner.residual_jvp(image, target, weights, tangent)

    def residual_vjp(self, image, target, weights, cotangent):
        return self.inner.residual_vjp(image, target, weights, cotangent)

    def pixel_curvature(self, image, target, weights):
        return self.inner.pixel_curvature(image, target, weights)


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_without_a_native_pass_is_taken_from_pytorch(weighted: bool):
    from splatopt.raster.cpu import NativeRenderer

    cloud, problem = scene(torch.float32)
    weights = weights_for(torch.zeros(HEIGHT, WIDTH, 3))[:, :, 0] if weighted else None
    found, expected = (
        answers(NativeRenderer(1), cloud, replace(problem, loss=loss, weights=weights))
        for loss in (HalfSquares(), SquaredError())
    )
    compare(found, expected, 1e-5)
