"""Statistics of rows: every renderer against loops over pixels, and their meaning by derivatives."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from raster.cases import find_case, make_camera, random_cloud
from raster.compare import relative_vector_error, worst_elementwise_error
from raster.pixel_loops import CASES, Loops, PixelLoops, StatisticsCase, observed_by, row_sums, statistics_of
from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.constants import SH_C0
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import GradientStatistics, absolute_error
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.losses import SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.reference_blend import blend_splats, over_background, pixel_centers
from splatopt.raster.reference_projection import project_reference
from splatopt.raster.renderer import Renderer
from splatopt.scene.gaussians import GaussianCloud

module = native.load()
ISAS = module.supported_isas() if module else []
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squared_error(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (image - target).square().mean(dim=-1)


@functools.cache
def truth(case: StatisticsCase) -> Loops:
    return PixelLoops(case.cloud(), case.problem()).run(squared_error)


def compare(found: dict[str, torch.Tensor], expected: dict, vector: float, element: float) -> None:
    for name, value in expected.items():
        wanted = torch.tensor(value)
        assert relative_vector_error(found[name].cpu(), wanted) < vector, name
        assert worst_elementwise_error(found[name].cpu(), wanted, 2e-2) < element, name


@every_case
def test_the_reference_gives_what_loops_over_pixels_give(case: StatisticsCase) -> None:
    renderer, cloud, problem = ReferenceRenderer(), case.cloud(), case.problem()
    compare(statistics_of(renderer, cloud, problem, squared_error), truth(case).rows, 1e-8, 1e-8)
    compare(observed_by(renderer, cloud, problem)[0], truth(case).observed, 1e-8, 1e-8)


@pytest.mark.parametrize("isa", ISAS)
@every_case
def test_the_native_renderer_gives_what_loops_over_pixels_give(case: StatisticsCase, isa: str) -> None:
    renderer, cloud, problem = NativeRenderer(2, isa), case.cloud().to(torch.float32), case.problem()
    compare(statistics_of(renderer, cloud, problem, squared_error), truth(case).rows, 1e-4, 1e-3)
    found, drawn = observed_by(renderer, cloud, problem)[0], torch.tensor(truth(case).observed["views"])
    assert (found["views"] >= drawn).all(), "what reached a pixel must count as drawn"
    # A row whose footprint may reach a pixel counts as seen, whether or not its ray had ended.
    found |= {name: found[name] * drawn for name in ("views", "max_radius")}
    compare(found, truth(case).observed, 1e-4, 1e-3)


def test_the_cases_hold_every_exception_of_the_rule() -> None:
    counts = {name: sum(truth(case).counts[name] for case in CASES) for name in ("clamped", "ended", "skipped")}
    assert min(counts.values()) > 50, counts
    undrawn = [case.title for case in CASES if (truth(case).observed["views"] == 0).any()]
    assert any(title.startswith("all_around") for title in undrawn)
    around = next(case for case in CASES if case.name == "all_around")
    splats = project_reference(around.cloud(), around.case.camera, around.case.options)
    assert (splats.opacities == 0).any(), "some lie behind the camera"
    assert (splats.means < 0).any(), "some lie beside the image"
    assert (splats.means[splats.opacities > 0] > 24).any()


def test_the_comparison_sees_one_wrong_number() -> None:
    case = CASES[0]
    for found, expected in (
        (statistics_of(ReferenceRenderer(), case.cloud(), case.problem(), squared_error), truth(case).rows),
        (observed_by(ReferenceRenderer(), case.cloud(), case.problem())[0], truth(case).observed),
    ):
        for name in expected:
            wrong = {key: value.clone() for key, value in found.items()}
            wrong[name].view(-1)[wrong[name].abs().argmax()] *= 1.002
            with pytest.raises(AssertionError, match=name):
                compare(wrong, expected, 1e-4, 1e-3)


# ---------------------------------------------------------------------- sums


def renderers() -> list[Renderer]:
    return [ReferenceRenderer(), *([NativeRenderer(2)] if module else [])]


every_renderer = pytest.mark.parametrize("renderer", renderers(), ids=lambda one: one.name)


@every_renderer
def test_sums_take_their_weight_and_the_greatest_weight_none(renderer: Renderer) -> None:
    case = CASES[0]
    cloud = case.cloud().to(torch.float32)
    once = statistics_of(renderer, cloud, case.problem())
    into = row_sums(cloud, 2.0)
    for weight in (0.25, 0.5):
        renderer.statistics(cloud, case.problem(), absolute_error, WeightedSum(into, weight))
    assert torch.equal(into.pop("max_weight"), torch.full_like(once["weight"], 2.0))
    for name, value in into.items():
        torch.testing.assert_close(value, 2 + 0.75 * once[name], rtol=1e-5, atol=1e-5)


@every_renderer
def test_the_cross_term_may_be_left_out(renderer: Renderer) -> None:
    case = CASES[1]
    cloud, problem = case.cloud().to(torch.float32), case.problem()
    whole, some = statistics_of(renderer, cloud, problem), row_sums(cloud)
    del some["color_cross"]
    renderer.statistics(cloud, problem, absolute_error, WeightedSum(some, overwrite=True))
    for name, value in some.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=0, msg=name)


@every_renderer
def test_what_is_observed_is_added_and_leaves_the_gradient_alone(renderer: Renderer) -> None:
    case = CASES[1]
    cloud, problem = case.cloud().to(torch.float32), case.problem()
    whole, gradient = observed_by(renderer, cloud, problem)
    some, other = observed_by(renderer, cloud, problem, absolute=False, splitting=False)
    assert set(some) == {"views", "gradient", "max_radius"}
    plain = {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}
    seen = torch.zeros(len(cloud), dtype=torch.bool)
    renderer.accumulate_gradient(cloud, problem, WeightedSum(plain, 0.25), seen)
    for name, value in plain.items():
        assert torch.equal(gradient[name], value), name
        assert torch.equal(other[name], value), name
    observed = GradientStatistics(cloud.tensors, absolute=True, splitting=True)
    for _ in range(2):
        renderer.accumulate_gradient(cloud, problem, WeightedSum(plain), seen, observed)
    for name, value in whole.items():
        factor = 1 if name == "max_radius" else 2
        assert torch.equal(getattr(observed, name), factor * value), name
        assert name not in some or torch.equal(some[name], value), name


@pytest.mark.parametrize("name", ["behind", "zero_gaussians"])
@every_renderer
def test_what_is_not_drawn_has_zeros(renderer: Renderer, name: str) -> None:
    case = find_case(name)
    cloud = case.cloud().to(torch.float32)
    found = statistics_of(renderer, cloud, case.problem()) | observed_by(renderer, cloud, case.problem())[0]
    assert not any(value.any() for value in found.values())


@every_renderer
def test_errors_that_are_no_number_count_nowhere_where_the_weight_is_zero(renderer: Renderer) -> None:
    case = CASES[1]
    cloud, problem = case.cloud().to(torch.float32), case.problem()
    assert problem.weights is not None

    def broken(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert not (image[problem.weights == 0]).any()
        return absolute_error(image, target).masked_fill(problem.weights == 0, torch.nan)

    found = statistics_of(renderer, cloud, problem, broken)
    for name, value in statistics_of(renderer, cloud, problem).items():
        assert torch.equal(found[name], value), name


@every_renderer
def test_an_image_of_errors_has_one_number_a_pixel(renderer: Renderer) -> None:
    case = CASES[0]
    with pytest.raises(ValueError, match=r"must be \(H, W\) = \(20, 24\), got \(20, 24, 3\)"):
        statistics_of(renderer, case.cloud().to(torch.float32), case.problem(), lambda image, target: image - target)


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_gives_the_same_bits(isa: str) -> None:
    problem = find_case("ordinary").problem()
    cloud = random_cloud(torch.Generator().manual_seed(5), 2000, scale=0.05).to(torch.float32)
    answers = []
    for threads in (1, 2, 8):
        renderer = NativeRenderer(threads, isa)
        answers.append(statistics_of(renderer, cloud, problem) | observed_by(renderer, cloud, problem)[0])
    for name, value in answers[0].items():
        assert value.any(), name
        assert all(torch.equal(value, other[name]) for other in answers[1:]), name


@pytest.mark.skipif(module is None, reason="the native module is not installed")
def test_a_view_that_is_held_is_drawn_once_for_its_statistics_and_its_depth_again() -> None:
    case, renderer = CASES[0], NativeRenderer(1)
    cloud, problem = case.cloud().to(torch.float32), case.problem()
    depth = renderer.render(cloud, problem.camera, problem.options).depth
    with renderer.fixed_parameters():
        renderer.render(cloud, problem.camera, problem.options)
        found = statistics_of(renderer, cloud, problem)
        again = observed_by(renderer, cloud, problem)[0]
        assert torch.equal(renderer.render(cloud, problem.camera, problem.options).depth, depth)
    for name, value in statistics_of(renderer, cloud, problem).items():
        assert torch.equal(found[name], value), name
    for name, value in observed_by(renderer, cloud, problem)[0].items():
        assert torch.equal(again[name], value), name


@pytest.mark.skipif(module is None, reason="the native module is not installed")
def test_statistics_take_the_buffers_of_the_gradient() -> None:
    case, renderer = CASES[0], NativeRenderer(1)
    cloud, problem = case.cloud().to(torch.float32), case.problem()
    observed_by(renderer, cloud, problem)
    before = renderer.rasterizer.memory_bytes
    statistics_of(renderer, cloud, problem)
    assert renderer.rasterizer.memory_bytes == before
    alone, both = (renderer.memory_needed(10, 100, 5, frozenset(asked)) for asked in ([], [Oracle.STATISTICS]))
    assert both - alone == 5200, "what is made of the image, 52 bytes a pixel"


# ---------------------------------------------------------------------- what they mean


def wide_scene(camera: Camera) -> tuple[GaussianCloud, ViewProblem]:
    """A few Gaussians that cover the whole image: no α is cut off or clamped, whichever way they move a little."""
    cloud = random_cloud(torch.Generator().manual_seed(2), 3, sh_degree=0, scale=1.0)
    cloud.means *= 0.2
    cloud.log_scales = cloud.log_scales.clamp(0.2, 0.6)
    cloud.logit_opacities = cloud.logit_opacities.clamp(-0.5, 0.5)
    target = torch.randint(
        0, 256, (camera.height, camera.width, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return cloud, ViewProblem(camera, target, loss=SquaredError())


def image_gradient(cloud: GaussianCloud, problem: ViewProblem) -> torch.Tensor:
    image = ReferenceRenderer().render(cloud, problem.camera, problem.options).image
    return problem.loss_gradient(image)[1].reshape(-1, 3)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_splitting_is_the_second_derivative_by_the_centre_but_for_how_centres_project(row: int) -> None:
    # With r = ∂L/∂C held, L(μ) = Σ r·C(m(μ)) of one row's own α: ∇²L = Pᵀ S₂D P + Σ_k (∂L/∂m_k) ∇²m_k. What S leaves
    # out is the second term.
    cloud, problem = wide_scene(make_camera(12, 10))
    camera, along = problem.camera, image_gradient(cloud, problem)
    fixed = project_reference(cloud, camera, problem.options)
    place = int((fixed.index == row).nonzero())

    def centre(mean: torch.Tensor) -> torch.Tensor:
        means = torch.cat([cloud.means[:row], mean[None], cloud.means[row + 1 :]])
        splats = project_reference(replace(cloud, means=means), camera, problem.options)
        return splats.means[int((splats.index == row).nonzero())]

    def loss_at(center: torch.Tensor) -> torch.Tensor:
        means = torch.cat([fixed.means[:place], center[None], fixed.means[place + 1 :]])
        blend = blend_splats(replace(fixed, means=means), pixel_centers(means, range(10), range(12)))
        return (over_background(blend, problem.options) * along).sum()

    mean = cloud.means[row]
    second = _second_differences(lambda at: loss_at(centre(at)), mean)
    slope = torch.autograd.functional.jacobian(loss_at, fixed.means[place])
    omitted = sum(slope[k] * _second_differences(lambda at, k=k: centre(at)[k], mean) for k in range(2))
    splitting = observed_by(ReferenceRenderer(), cloud, problem)[0]["splitting"][row]
    found = splitting[[0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(3, 3)
    torch.testing.assert_close(found, second - omitted, rtol=1e-5, atol=1e-5 * float(found.abs().max()))
    assert float(omitted.abs().max()) > 1e-3 * float(found.abs().max()), "or it would not show"


def _second_differences(function, at: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """∇² by central differences, (3, 3)."""
    axes = step * torch.eye(3, dtype=at.dtype)
    found = torch.zeros(3, 3, dtype=at.dtype)
    for i in range(3):
        for j in range(3):
            corners = [s * t * function(at + s * axes[i] + t * axes[j]) for s in (1, -1) for t in (1, -1)]
            found[i, j] = sum(corners) / (4 * step**2)
    return found


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_the_cross_term_is_what_two_children_of_half_the_opacity_change(axis: int, channel: int) -> None:
    # Across the view of a camera that is far away, where a move changes no footprint to speak of and no order.
    near = make_camera(12, 10)
    pose = near.world_to_camera.clone()
    pose[2, 3] += 4000.0
    camera = replace(near, world_to_camera=pose, fx=1000 * near.fx, fy=1000 * near.fy)
    cloud, problem = wide_scene(camera)
    along = image_gradient(cloud, problem)
    delta = pose[axis, :3]

    def loss_of_children(row: int, move: float, change: float) -> float:
        first, second = (
            cloud.map(lambda tensor: tensor.clone()),
            cloud.map(lambda tensor: tensor[row : row + 1].clone()),
        )
        half = torch.logit(torch.sigmoid(cloud.logit_opacities[row]) / 2)
        for child, sign in ((first, 1), (second, -1)):
            at = row if child is first else 0
            child.means[at] += sign * move * delta
            child.sh_dc[at, channel] += sign * change / SH_C0
            child.logit_opacities[at] = half
        both = GaussianCloud(
            **{name: torch.cat([first.tensors[name], value]) for name, value in second.tensors.items()}
        )
        return float((ReferenceRenderer().render(both, camera, problem.options).image.reshape(-1, 3) * along).sum())

    step = 1e-2
    cross = statistics_of(ReferenceRenderer(), cloud, problem)["color_cross"]
    for row in range(len(cloud)):
        corners = [s * t * loss_of_children(row, s * step, t * step) for s in (1, -1) for t in (1, -1)]
        expected = sum(corners) / (4 * step**2)
        found = float(delta @ cross[row, :, channel])
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3 * float(cross[row].abs().max())), row
