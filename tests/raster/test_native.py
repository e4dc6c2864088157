"""The native renderer against the float64 reference, on every instruction set that this machine has."""

from __future__ import annotations

import pytest
import torch

from raster.cases import RENDER_CASES, RenderCase, find_case, make_camera, random_cloud
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.core import native
from splatopt.core.constants import SH_C0
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.losses import L1Ssim
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, render_reference
from splatopt.raster.render import make_renderer, render, renderer_in_use
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")

# A sum over pixels keeps an absolute precision: elements below this share of the tensor's largest are
# compared with that share and not with themselves.
FLOOR = 2e-2


def isas() -> list[str]:
    module = native.load()
    return module.supported_isas() if module else ["portable"]


@pytest.fixture(scope="module", params=isas())
def renderer(request: pytest.FixtureRequest) -> NativeRenderer:
    return NativeRenderer(threads=2, isa=request.param)


def gradient_of(renderer, cloud: GaussianCloud, case: RenderCase, ssim_weight: float = 0.2, weight: float = 1.0):
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    problem = case.problem(L1Ssim(ssim_weight))
    loss = renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient, weight), seen)
    return loss, gradient, seen


@pytest.mark.parametrize("case", RENDER_CASES, ids=lambda case: case.name)
def test_image_alpha_and_depth_agree_with_the_reference(renderer: NativeRenderer, case: RenderCase) -> None:
    cloud = case.cloud()
    truth = render_reference(cloud, case.camera, case.options)
    result = renderer.render(cloud.to(torch.float32), case.camera, case.options)
    assert (result.image.double() - truth.image).abs().max() < 1e-5
    assert (result.alpha.double() - truth.alpha).abs().max() < 1e-5
    # Depth is in world units, here about 4: the same relative precision.
    assert (result.depth.double() - truth.depth).abs().max() < 5e-5


@pytest.mark.parametrize("case", RENDER_CASES, ids=lambda case: case.name)
def test_loss_and_every_gradient_agree_with_the_reference(renderer: NativeRenderer, case: RenderCase) -> None:
    cloud = case.cloud()
    loss, gradient, seen = gradient_of(renderer, cloud.to(torch.float32), case)
    true_loss, true_gradient, true_seen = gradient_of(ReferenceRenderer(), cloud, case)
    assert loss.loss == pytest.approx(true_loss.loss, rel=1e-6)
    assert loss.squared_error == pytest.approx(true_loss.squared_error, rel=1e-5)
    assert (seen | ~true_seen).all(), "what reached a pixel must count as seen"
    for name, truth in true_gradient.items():
        assert relative_vector_error(gradient[name], truth) < 1e-4, name
        assert worst_elementwise_error(gradient[name], truth, FLOOR) < 1e-4, name


@pytest.mark.parametrize("ssim_weight", [0.0, 1.0])
@pytest.mark.parametrize("name", ["ordinary", "one_row", "one_column", "seventeen", "giants"])
def test_each_part_of_the_loss_alone(renderer: NativeRenderer, name: str, ssim_weight: float) -> None:
    case = find_case(name)
    loss, gradient, _ = gradient_of(renderer, case.cloud().to(torch.float32), case, ssim_weight)
    true_loss, true_gradient, _ = gradient_of(ReferenceRenderer(), case.cloud(), case, ssim_weight)
    assert loss.loss == pytest.approx(true_loss.loss, rel=1e-6)
    for name_, truth in true_gradient.items():
        assert relative_vector_error(gradient[name_], truth) < 1e-4, name_


def test_gradients_are_added_with_their_weight(renderer: NativeRenderer) -> None:
    case = find_case("ordinary_black")
    cloud = case.cloud().to(torch.float32)
    _, once, _ = gradient_of(renderer, cloud, case)
    gradient = {name: torch.ones_like(tensor) for name, tensor in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    for weight in (0.25, 0.5):
        renderer.accumulate_gradient(cloud, case.problem(), WeightedSum(gradient, weight), seen)
    for name, tensor in once.items():
        torch.testing.assert_close(gradient[name], 1 + 0.75 * tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda _: ReferenceRenderer(), lambda native_one: native_one])
def test_overwriting_forgets_what_was_there(renderer: NativeRenderer, make) -> None:
    case, chosen = find_case("all_around"), make(renderer)
    cloud = case.cloud().to(torch.float32)
    _, truth, true_seen = gradient_of(chosen, cloud, case)
    gradient = {name: torch.full_like(tensor, float("nan")) for name, tensor in cloud.tensors.items()}
    seen = torch.ones(len(cloud), dtype=torch.bool)
    chosen.accumulate_gradient(cloud, case.problem(), WeightedSum(gradient, overwrite=True), seen)
    assert not true_seen.all()
    assert torch.equal(seen, true_seen)
    for name, tensor in truth.items():
        assert torch.equal(gradient[name], tensor), name


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(isa: str, threads: int) -> None:
    case = find_case("ordinary")
    cloud = random_cloud(torch.Generator().manual_seed(5), 5000, scale=0.05).to(torch.float32)
    few, many = NativeRenderer(2, isa), NativeRenderer(threads, isa)
    loss, gradient, seen = gradient_of(few, cloud, case)
    other_loss, other_gradient, other_seen = gradient_of(many, cloud, case)
    assert loss == other_loss
    assert torch.equal(seen, other_seen)
    for name in gradient:
        assert torch.equal(gradient[name], other_gradient[name]), name
    images = [renderer.render(cloud, case.camera, case.options).image for renderer in (few, many)]
    assert torch.equal(*images)


def test_a_large_image_with_giants_and_needles_agrees(renderer: NativeRenderer) -> None:
    # Wider than 64 blocks, so that a giant's row of blocks needs more than one word of bits.
    camera = make_camera(331, 37, focal=0.5)
    generator = torch.Generator().manual_seed(11)
    cloud = random_cloud(generator, 40, sh_degree=1)
    cloud.log_scales[:10] += 2.5
    cloud.log_scales[10:20, 0] += 4.0
    cloud = cloud.to(torch.float32)
    truth = render_reference(cloud.to(torch.float64), camera)
    error = (renderer.render(cloud, camera, RenderOptions()).image.double() - truth.image).abs()
    # This one is not combed for pixels at a cut-off, where one pair may fall either way (1/255 of a colour).
    assert error.max() < 5e-3
    assert (error > 1e-5).double().mean() < 1e-3


def test_autograd_gives_the_same_gradient_as_the_reference() -> None:
    case = find_case("ordinary_antialiased")
    probe = torch.randn(case.camera.height, case.camera.width, 3, generator=torch.Generator().manual_seed(0))
    leaves = case.cloud().to(torch.float32).map(lambda tensor: tensor.clone().requires_grad_())
    (render(leaves, case.camera, case.options).image * probe).sum().backward()
    truths = case.cloud().map(lambda tensor: tensor.clone().requires_grad_())
    (render_reference(truths, case.camera, case.options).image * probe.double()).sum().backward()
    for name, leaf in leaves.tensors.items():
        assert relative_vector_error(leaf.grad, truths.tensors[name].grad) < 1e-4, name


def test_points_that_are_black_can_still_become_brighter(renderer: NativeRenderer) -> None:
    # A start from black points puts colours on the clamp at 0 exactly; a gradient must still pass.
    case = find_case("degree_0")
    cloud = case.cloud().to(torch.float32)
    cloud.sh_dc[:] = torch.tensor(-0.5 / SH_C0)
    _, gradient, seen = gradient_of(renderer, cloud, case)
    assert seen.any()
    assert (gradient["sh_dc"][seen].abs().sum(dim=1) > 0).float().mean() > 0.9


def test_wrong_types_are_refused_by_name() -> None:
    case = find_case("ordinary")
    with pytest.raises(ValueError, match="means is torch.float64"):
        NativeRenderer().render(case.cloud(), case.camera, case.options)
    wide = case.cloud().to(torch.float32)
    wide.quats = wide.quats.t().contiguous().t()
    with pytest.raises(ValueError, match="quats"):
        NativeRenderer().render(wide, case.camera, case.options)


def test_renderers_are_found_by_name() -> None:
    assert renderer_in_use("auto")[0] == "native"
    assert isinstance(make_renderer("native", 1), NativeRenderer)
    assert isinstance(make_renderer("reference"), ReferenceRenderer)
    with pytest.raises(ValueError, match="reference"):
        make_renderer("referense")
    with pytest.raises(ValueError, match="sse9"):
        NativeRenderer(isa="sse9")


def test_adam_step_of_each_instruction_set_agrees_with_torch() -> None:
    for isa in isas():
        generator = torch.Generator().manual_seed(3)
        parameter = torch.nn.Parameter(torch.randn(1003, generator=generator))
        twin, moments = parameter.detach().clone(), [torch.zeros(1003), torch.zeros(1003)]
        optimizer = torch.optim.Adam([parameter], lr=0.01, eps=1e-15)
        for step in range(1, 21):
            parameter.grad = torch.randn(1003, generator=generator)
            native.workers(2, isa).adam_step(
                twin, parameter.grad, *moments, rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-15, step=step
            )
            optimizer.step()
        torch.testing.assert_close(twin, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_photographs_and_weights_may_lie_anyhow_in_memory() -> None:
    camera = make_camera(40, 30)
    cloud = random_cloud(torch.Generator().manual_seed(3), 20, 1).to(torch.float32)
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (3, 30, 40), generator=generator, dtype=torch.uint8).permute(1, 2, 0)
    weights = torch.rand(40, 30, generator=generator).T
    plain = NativeRenderer().value(cloud, ViewProblem(camera, image.contiguous(), weights=weights.contiguous()))
    assert NativeRenderer().value(cloud, ViewProblem(camera, image, weights=weights)) == plain
    with pytest.raises(ValueError, match="needs weights of torch.float32 on the CPU, got torch.float64"):
        NativeRenderer().value(cloud, ViewProblem(camera, image, weights=weights.double()))
