"""The Triton renderer, on a GPU or interpreted, against the float64 reference: one rule, every oracle."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TinyView, tiny
from raster.compare import relative_vector_error, worst_elementwise_error
from raster.pixel_loops import PixelLoops, observed_by, row_sums, statistics_of
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.row_statistics import absolute_error
from splatopt.core.schema import PACKED_BLOCK
from splatopt.raster.gpu import TritonRenderer
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.problem import WeightedSum
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import Footprint
from splatopt.scene.gaussians import GaussianCloud

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VIEWS = (
    tiny("degree_3", count=12, size=(18, 17)),
    tiny("needles", Footprint.ANTIALIASED, count=12, size=(18, 17)),
    tiny("degree_0", count=12, size=(18, 17)),
)
IDS = [view.name for view in VIEWS]


def as_taken(renderer, view: TinyView) -> GaussianCloud:
    """Float64 for the reference; float32, on the GPU where there is one, for the kernels."""
    if isinstance(renderer, ReferenceRenderer):
        return view.cloud()
    return view.cloud().to(torch.float32).map(lambda tensor: tensor.to(DEVICE))


def scene(renderer, view: TinyView, loss: Loss | None = None):
    return as_taken(renderer, view), view.case.problem(loss)


def empty(cloud: GaussianCloud) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in cloud.tensors.items()}


def direction(renderer, view: TinyView) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    like = as_taken(renderer, view).tensors
    return {name: torch.randn(t.shape, generator=generator).to(t) * 0.3 for name, t in like.items()}


def image_and_gradient(renderer, view: TinyView):
    cloud, problem = scene(renderer, view)
    rendering = renderer.render(cloud, problem.camera, problem.options)
    gradient, seen = empty(cloud), torch.ones(len(cloud), dtype=torch.bool, device=cloud.means.device)
    loss = renderer.accumulate_gradient(cloud, problem, WeightedSum(gradient, 0.5, overwrite=True), seen)
    assert renderer.value(cloud, problem) == loss
    sums = torch.tensor([loss.loss, loss.squared_error], dtype=torch.float64)
    return gradient | {"image": rendering.image, "alpha": rendering.alpha, "depth": rendering.depth, "loss": sums}


def products(renderer, view: TinyView, kind: Loss):
    view_of = scene(renderer, view, kind)
    residuals = renderer.residuals(*view_of)
    jvp_value = renderer.jvp(*view_of, direction(renderer, view))
    cotangent = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(6)).to(residuals)
    vjp_value, both = empty(view_of[0]), empty(view_of[0])
    renderer.vjp(*view_of, cotangent, WeightedSum(vjp_value, 0.5, overwrite=True))
    renderer.gauss_newton_product(*view_of, direction(renderer, view), WeightedSum(both, 0.5, overwrite=True))
    return vjp_value | {f"{name} of JTJv": value for name, value in both.items()} | {"r": residuals, "Jv": jvp_value}


def curvature(renderer, view: TinyView, kind: Loss):
    view_of = scene(renderer, view, kind)
    diagonal = empty(view_of[0])
    blocks = torch.full((len(view_of[0]), PACKED_BLOCK), float("nan")).to(view_of[0].means)
    rest = torch.full_like(view_of[0].sh_rest, float("nan"))
    renderer.accumulate_diagonal(*view_of, WeightedSum(diagonal, 0.5, overwrite=True))
    renderer.accumulate_blocks(*view_of, WeightedSum({"blocks": blocks, "sh_rest": rest}, 0.5, overwrite=True))
    return diagonal | {"blocks": blocks, "rest": rest}


def statistics(renderer, view: TinyView, kind: Loss):
    cloud, problem = scene(renderer, view, kind)
    camera = problem.camera
    random = torch.rand(camera.height, camera.width, generator=torch.Generator().manual_seed(8))
    masked = replace(problem, weights=random * (random > 1 / 3))
    observed = observed_by(renderer, cloud, masked)[0]
    # What is seen differs: an ended ray hides a row from the reference alone.
    hidden = PixelLoops(view.cloud(), masked).run(absolute_error).observed["views"] == 0
    for name in ("views", "max_radius"):
        observed[name][torch.tensor(hidden)] = 0
    once = statistics_of(renderer, cloud, masked)
    twice = {name: value.clone() for name, value in once.items()}
    renderer.statistics(cloud, masked, absolute_error, WeightedSum(twice, 0.5))
    return once | observed | {f"{name} of two": value for name, value in twice.items()}


@functools.cache
def answers(ask, kernels: bool, *question) -> dict[str, torch.Tensor]:
    renderer = TritonRenderer() if kernels else ReferenceRenderer()
    return {name: value.detach().cpu() for name, value in ask(renderer, *question).items()}


def compare(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], element: float = 1e-3) -> None:
    for name, value in truth.items():
        assert relative_vector_error(found[name], value) < 1e-4, name
        assert worst_elementwise_error(found[name], value, 2e-2) < element, name


@pytest.mark.parametrize("index", range(len(VIEWS)), ids=IDS)
def test_images_losses_and_gradients_agree_with_the_reference(index: int):
    compare(*(answers(image_and_gradient, kernels, VIEWS[index]) for kernels in (True, False)))


@pytest.mark.parametrize("kind", [L1Ssim(), SquaredError()], ids=lambda kind: type(kind).__name__)
def test_residuals_and_products_agree_with_the_reference(kind: Loss):
    compare(*(answers(products, kernels, VIEWS[0], kind) for kernels in (True, False)))


@pytest.mark.parametrize("index", [0, 2], ids=[IDS[0], IDS[2]])
def test_diagonal_and_blocks_agree_with_the_reference(index: int):
    compare(*(answers(curvature, kernels, VIEWS[index], L1Ssim()) for kernels in (True, False)))


@pytest.mark.parametrize(("index", "kind"), [(0, SquaredError()), (1, L1Ssim())], ids=[IDS[0], IDS[1]])
def test_statistics_of_rows_agree_with_the_reference(index: int, kind: Loss):
    compare(*(answers(statistics, kernels, VIEWS[index], kind) for kernels in (True, False)))


def test_the_cross_term_may_be_left_out():
    renderer = TritonRenderer()
    cloud, problem = scene(renderer, VIEWS[0])
    whole, some = statistics_of(renderer, cloud, problem), row_sums(cloud)
    del some["color_cross"]
    renderer.statistics(cloud, problem, absolute_error, WeightedSum(some, overwrite=True))
    assert all(torch.equal(value, whole[name]) for name, value in some.items())


def test_what_is_observed_may_leave_out_what_costs_more():
    renderer = TritonRenderer()
    cloud, problem = scene(renderer, VIEWS[0])
    some, gradient = observed_by(renderer, cloud, problem, absolute=False, splitting=False)
    assert set(some) == {"views", "gradient", "max_radius"}
    whole, other = observed_by(renderer, cloud, problem)
    assert all(torch.equal(value, whole[name]) for name, value in some.items())
    assert all(torch.equal(value, other[name]) for name, value in gradient.items())


def test_the_comparison_sees_a_gradient_that_is_off_by_a_thousandth():
    truth = answers(image_and_gradient, False, VIEWS[0])
    wrong = truth | {"quats": truth["quats"] * 1.001}
    with pytest.raises(AssertionError, match="quats"):
        compare(wrong, truth)


def test_what_is_seen_is_what_may_reach_a_pixel():
    view, renderer = VIEWS[0], TritonRenderer()
    cloud, problem = scene(renderer, view)
    cloud.means[3, 2] = -100.0  # behind the camera
    seen = torch.zeros(len(cloud), dtype=torch.bool, device=DEVICE)
    renderer.accumulate_gradient(cloud, problem, WeightedSum(empty(cloud), overwrite=True), seen)
    assert not seen[3]
    assert seen.sum() > 5
    earlier = torch.ones_like(seen)
    renderer.accumulate_gradient(cloud, problem, WeightedSum(empty(cloud)), earlier)
    assert earlier.all(), "what an earlier view saw stays seen"


def test_nothing_is_drawn_of_an_empty_cloud():
    view, renderer = tiny("degree_3", count=0), TritonRenderer()
    cloud, camera, options = as_taken(renderer, view), view.case.camera, view.case.options
    rendering = renderer.render(cloud, camera, options)
    expected = torch.tensor(options.background).expand(camera.height, camera.width, 3)
    torch.testing.assert_close(rendering.image.cpu(), expected)
    assert rendering.alpha.abs().max() == 0


def test_it_says_what_it_does_not_give_and_what_it_does_not_take():
    renderer = TritonRenderer()
    assert renderer.oracles == frozenset(Oracle) - {Oracle.HVP}
    cloud, problem = scene(renderer, VIEWS[0])
    camera, options = problem.camera, problem.options
    with pytest.raises(MissingOracleError, match="the triton renderer does not give"):
        renderer.hvp(cloud, problem, cloud.tensors, WeightedSum(cloud.tensors))
    with pytest.raises(ValueError, match="means is torch.float64"):
        renderer.render(cloud.to(torch.float64), camera, options)
    strided = GaussianCloud(**cloud.tensors | {"quats": cloud.quats.t().contiguous().t()})
    with pytest.raises(ValueError, match="quats is torch.float32"):
        renderer.render(strided, camera, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_with_one_sentence(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs, "propagate_env", False)  # else it comes back through the environment
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InputError, match="needs a GPU"):
        TritonRenderer()


def test_memory_is_counted_by_gaussians_pixels_pairs_and_what_is_asked():
    needed = functools.partial(TritonRenderer().memory_needed, 1000, 500)
    gradient, curved = frozenset({Oracle.GRADIENT}), frozenset({Oracle.GAUSS_NEWTON_BLOCKS})
    assert needed(2001, gradient) - needed(2000, gradient) == 44
    assert needed(2001, curved) - needed(2000, curved) == 152
    assert needed(0, frozenset({Oracle.JVP})) > needed(0, gradient)
    counted = frozenset({Oracle.STATISTICS})
    assert needed(2001, counted) - needed(2000, counted) == 56, "twelve sums in place of nine"
