"""Oracles of the photometric objective over batches, on a tiny scene in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from optim.quadratic import Quadratic
from raster.cases import look_from, make_camera, random_cloud
from splatopt.core.objective import MissingOracleError, Objective, Oracle
from splatopt.core.row_statistics import GradientStatistics, absolute_error
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.curvature.blocks import apart, block_diagonal, higher_bands_curvature, unpack_blocks
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes, rademacher
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.microbatches import Microbatched
from splatopt.scene.photometric import PhotometricObjective
from train.toys import ToyRenderer

FREE = L1Ssim(floor_absolute=1e-12, floor_dissimilarity=1e-12)
SIZES = ((12, 10), (9, 7), (12, 10))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(
    loss: Loss | None = None, renderer=None, dtype: torch.dtype = torch.float64, sh_degree: int = 1
) -> PhotometricObjective:
    """Three views, one of another size, of six Gaussians of which the last lies behind all cameras."""
    cloud = random_cloud(torch.Generator().manual_seed(3), 6, sh_degree=sh_degree, scale=0.6)
    cloud.logit_opacities = cloud.logit_opacities.clamp(-1.5, 1.5)
    cloud.means[5, 2] = -40.0
    places = [(0.7, -0.3, -4.0), (0.2, 0.1, -3.5), (-0.4, 0.2, -4.5)]
    cameras = [
        replace(make_camera(*size), world_to_camera=look_from(place, 0.1, 0.0), name=str(place))
        for size, place in zip(SIZES, places, strict=True)
    ]
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8) for w, h in SIZES]
    return PhotometricObjective(
        cloud.to(dtype),
        cameras,
        images,
        renderer or ReferenceRenderer(),
        RenderOptions(background=(0.3, 0.1, 0.8)),
        loss=loss,
    )


def flat(tensors) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in GAUSSIAN_TENSORS]).clone()


def random_tangent(objective: PhotometricObjective, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in objective.parameters.items()
    }


def test_it_offers_everything_with_the_reference_renderer():
    assert make().oracles == set(Oracle)
    make().require(frozenset(Oracle), "anything")
    assert make().loss == L1Ssim()


@pytest.mark.parametrize("options", [FREE, SquaredError()])
def test_residuals_have_the_loss_as_half_their_square(options):
    objective = make(options)
    residuals = objective.residuals([0, 1])
    shapes = [(options.components, h, w, 3) for w, h in SIZES[:2]]
    assert [tuple(part.shape) for part in residuals] == shapes
    assert [tuple(part.shape) for part in objective.empty_residuals([0, 1])] == shapes
    half = sum(float(0.5 * part.square().sum()) for part in residuals)
    single = [float(0.5 * objective.residuals([view])[0].square().sum()) for view in (0, 1)]
    assert half == pytest.approx(sum(single) / 2, rel=1e-12)
    assert half == pytest.approx(objective.gradient([0, 1]).loss, rel=1e-12)


def test_the_residuals_pulled_back_are_the_gradient_of_the_batch():
    objective = make(FREE)
    vjp_value = objective.vjp([0, 1, 2], objective.residuals([0, 1, 2]))
    torch.testing.assert_close(flat(vjp_value), flat(objective.gradient([0, 1, 2]).gradient), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("options", [L1Ssim(), SquaredError()])
def test_products_are_adjoint_over_batches(options):
    objective = make(options)
    tangent = random_tangent(objective, 2)
    generator = torch.Generator().manual_seed(3)
    cotangent = tuple(
        torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in objective.empty_residuals([1, 2])
    )
    jvp_value = objective.jvp([1, 2], tangent)
    left = sum(float((a * b).sum()) for a, b in zip(jvp_value, cotangent, strict=True))
    assert left == pytest.approx(float(flat(objective.vjp([1, 2], cotangent)) @ flat(tangent)), rel=1e-11)
    assert abs(left) > 1e-4


@pytest.mark.parametrize("options", [L1Ssim(), SquaredError()])
def test_the_gauss_newton_product_is_both_products_one_view_at_a_time(options):
    objective = make(options)
    v = random_tangent(objective, 6)
    expected = flat(objective.vjp([0, 1, 2], objective.jvp([0, 1, 2], v)))
    found = objective.gauss_newton_product([0, 1, 2], v)
    torch.testing.assert_close(flat(found), expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(flat(Objective.gauss_newton_product(objective, [0, 1, 2], v)), expected)
    means = {"means": v["means"]}
    kept = flat(objective.gauss_newton_product([1], means))
    torch.testing.assert_close(kept, flat(objective.vjp([1], objective.jvp([1], means))), rtol=1e-9, atol=1e-13)


def test_the_value_is_the_loss_that_comes_with_the_gradient():
    objective = make()
    for batch in ([0], [2, 0, 1]):
        kept = objective.gradient(batch)
        before = flat(kept.gradient)
        assert objective.value(batch) == pytest.approx(kept.loss, rel=1e-12)
        assert torch.equal(flat(kept.gradient), before), "the value leaves the gradient's buffers alone"
    with pytest.raises(ValueError, match="at least one view"):
        objective.value([])


def test_batches_are_split_evenly():
    objective = make()
    assert objective.split([0, 1, 2, 1, 0], 2) == ([0, 2, 0], [1, 1])
    assert objective.split((0, 1), 5) == ((0,), (1,))
    assert objective.split((0, 1), 1) == ((0, 1),)


def test_views_are_those_of_the_batch_and_wrapped_ones_say_the_same():
    objective = make()
    assert list(objective.views((2, 0))) == [2, 0]
    assert list(Microbatched(objective, lambda max_parts: None).views((2, 0))) == [2, 0]
    assert list(Quadratic().views(None)) == []


def test_the_blocks_names_are_those_of_the_blocks():
    objective = make()
    assert objective.block_names == objective.gauss_newton_blocks([0]).names


def test_a_jvp_is_the_change_of_the_residuals():
    objective = make(SquaredError())
    tangent = random_tangent(objective, 2)
    jvp_value = objective.jvp([0, 1], tangent)
    found = []
    for step in (1e-6, -2e-6):
        for name, value in objective.parameters.items():
            value.add_(tangent[name], alpha=step)
        found.append(objective.residuals([0, 1]))
    for ahead, behind, expected in zip(*found, jvp_value, strict=True):
        torch.testing.assert_close((ahead - behind) / 2e-6, expected, rtol=1e-5, atol=1e-8)


def dense_gram(objective: PhotometricObjective, batch: list[int]) -> Tensor:
    """JᵀJ from one JVP per parameter."""
    columns = []
    for name, value in objective.parameters.items():
        for index in range(value.numel()):
            tangent = torch.zeros_like(value)
            tangent.view(-1)[index] = 1
            columns.append(torch.cat([part.flatten() for part in objective.jvp(batch, {name: tangent})]))
    jacobian = torch.stack(columns, dim=1)
    return jacobian.T @ jacobian


def test_curvature_of_a_batch_is_that_of_its_stacked_residuals():
    objective = make(SquaredError())
    gram = dense_gram(objective, [0, 1])
    diagonal = flat(objective.gauss_newton_diagonal([0, 1], Exact()))
    torch.testing.assert_close(diagonal, gram.diagonal(), rtol=1e-9, atol=1e-18)
    result = objective.gauss_newton_blocks([0, 1])
    assert result.names == ("means", "log_scales", "quats", "logit_opacities", "sh_dc")
    assert result.blocks.shape == (6, 105)
    assert tuple(result.diagonal) == ("sh_rest",)
    torch.testing.assert_close(result.diagonal["sh_rest"].flatten(), diagonal[-54:])
    parts = torch.arange(gram.shape[0]).split([value.numel() for value in objective.parameters.values()])
    shaped = {
        name: part.reshape(objective.parameters[name].shape) for name, part in zip(GAUSSIAN_TENSORS, parts, strict=True)
    }
    for row, block in enumerate(unpack_blocks(result.blocks)):
        own = torch.cat([shaped[name][row].flatten() for name in result.names])
        torch.testing.assert_close(block, gram[own][:, own], rtol=1e-8, atol=1e-12 * float(gram.abs().max()))


@pytest.mark.parametrize("degree", [1, 3])
def test_the_colours_own_curvature_bounds_the_higher_bands_from_every_direction(degree):
    """One direction reaches (K-1)/K of the bound, the zeroth coefficient having the rest; several stay below it."""
    objective = make(SquaredError(), sh_degree=degree)
    coefficients = (degree + 1) ** 2
    for views in ([0], [1], [0, 1, 2]):
        result = objective.gauss_newton_blocks(views)
        color = apart(block_diagonal(result.blocks), shapes_of(objective, result.names))["sh_dc"]
        bound = higher_bands_curvature(color, coefficients)
        for row in (0, 1, 2):
            columns = []
            for coefficient in range(coefficients - 1):
                tangent = torch.zeros_like(objective.parameters["sh_rest"])
                tangent[row, coefficient, 1] = 1
                columns.append(torch.cat([part.flatten() for part in objective.jvp(views, {"sh_rest": tangent})]))
            jacobian = torch.stack(columns, dim=1)
            largest = float(torch.linalg.eigvalsh(jacobian.T @ jacobian)[-1])
            alone = (coefficients - 1) / coefficients
            assert float(bound[row, 0, 1]) > 0
            if len(views) == 1:
                assert largest / float(bound[row, 0, 1]) == pytest.approx(alone, rel=1e-9)
            else:
                assert 0.2 < largest / float(bound[row, 0, 1]) < alone


def shapes_of(objective: PhotometricObjective, names: tuple[str, ...]) -> dict[str, torch.Size]:
    return {name: objective.parameters[name].shape for name in names}


def test_probes_follow_their_formulae_view_by_view():
    objective = make()
    generator = torch.Generator().manual_seed(0)
    by_parameters, by_residuals = [], []
    for view in (0, 1):
        probe = {name: rademacher(value, generator) for name, value in objective.parameters.items()}
        by_parameters.append(flat(probe) * flat(objective.vjp([view], objective.jvp([view], probe))))
    for view in (0, 1):
        signs = tuple(rademacher(part, generator) for part in objective.residuals([view]))
        by_residuals.append(flat(objective.vjp([view], signs)).square())
    generator = torch.Generator().manual_seed(0)
    for estimator, expected in ((ParameterProbes(), by_parameters), (ResidualProbes(), by_residuals)):
        result = flat(objective.gauss_newton_diagonal([0, 1], estimator, generator))
        assert result.abs().max() > 1e-6
        torch.testing.assert_close(result, (expected[0] + expected[1]) / 2, rtol=1e-12, atol=0)


def test_residual_probes_come_near_the_exact_diagonal():
    objective = make(SquaredError())
    exact = flat(objective.gauss_newton_diagonal([0, 1], Exact()))
    estimate = flat(objective.gauss_newton_diagonal([0, 1], ResidualProbes(40), torch.Generator().manual_seed(0)))
    # A relative variance of at most 2 a probe and a view, over 40 of both.
    assert float((estimate - exact).norm() / exact.norm()) < 2 * (2 / 80) ** 0.5


def test_the_central_difference_agrees_with_the_exact_product():
    """The step is smaller than the default: the photograph has kinks of |x - y| nearby."""
    objective = make()
    tangent = random_tangent(objective, 4)
    before = flat(objective.parameters)
    exact = flat(objective.hvp([0, 1], tangent, ExactHessian()))
    difference = flat(objective.hvp([0, 1], tangent, CentralDifference(1e-6)))
    assert torch.equal(before, flat(objective.parameters))
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(difference, exact, rtol=1e-5, atol=1e-7)


def test_unseen_gaussians_have_no_curvature():
    objective = make()
    generator = torch.Generator().manual_seed(0)
    tangent = random_tangent(objective, 4)
    tensors = []
    for estimator in (Exact(), ParameterProbes(2), ResidualProbes(2)):
        tensors += objective.gauss_newton_diagonal([0, 1, 2], estimator, generator).values()
    blocks = objective.gauss_newton_blocks([0, 1, 2])
    tensors += [blocks.blocks, *blocks.diagonal.values()]
    for method in (ExactHessian(), CentralDifference()):
        tensors += objective.hvp([0, 1, 2], tangent, method).values()
    for tensor in tensors:
        assert torch.isfinite(tensor).all()
        assert not tensor[5].any()
        assert tensor[:5].any()


def test_each_oracle_has_buffers_of_its_own_that_follow_edits_of_rows():
    objective = make()
    gradient = objective.gradient([0]).gradient
    kept = flat(gradient)
    diagonal = objective.exact_gauss_newton_diagonal([0])
    vjp_value = objective.vjp([0], objective.residuals([0]))
    objective.exact_hvp([0], random_tangent(objective, 1))
    assert torch.equal(flat(gradient), kept)
    assert objective.exact_gauss_newton_diagonal([1])["means"].data_ptr() == diagonal["means"].data_ptr()
    assert vjp_value["means"].data_ptr() != diagonal["means"].data_ptr()
    first = flat(objective.exact_gauss_newton_diagonal([1]))
    objective.exact_gauss_newton_diagonal([0, 2])
    assert torch.equal(first, flat(objective.exact_gauss_newton_diagonal([1]))), "cleared between calls"
    objective.edit_rows(SceneEdit(torch.tensor([3, 3, 0]), torch.tensor([False, True, False])))
    assert objective.gauss_newton_blocks([0]).blocks.shape == (3, 105)
    assert objective.exact_gauss_newton_diagonal([0])["sh_rest"].shape == (3, 3, 3)
    assert objective.vjp([0], objective.residuals([0]))["quats"].shape == (3, 4)


def test_bands_above_the_rendered_degree_have_no_curvature():
    objective = make()
    objective.sh_degree = 0
    diagonal = objective.gauss_newton_diagonal([0], Exact())
    assert not diagonal["sh_rest"].any()
    assert diagonal["sh_dc"].any()


def statistics(objective, batch) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vars(objective.statistics(batch, absolute_error)).items()}


def test_statistics_are_means_over_the_views_and_the_greatest_weight_of_all():
    objective = make(loss=FREE)
    singles = [statistics(objective, [view]) for view in range(3)]
    whole = statistics(objective, [0, 1, 2])
    for name, value in whole.items():
        parts = torch.stack([single[name] for single in singles])
        expected = parts.amax(dim=0) if name == "max_weight" else parts.mean(dim=0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15, msg=name)
        assert value[:5].flatten(1).any(dim=1).all() if value.dim() > 1 else (value[:5] > 0).all(), name
        assert not value[5].any(), "it lies behind all cameras"
    some = objective.statistics([0, 1, 2], absolute_error, False)
    assert some.color_cross is None
    assert torch.equal(some.weight, whole["weight"])
    guarded = Microbatched(objective, lambda max_parts: None)
    guarded.max_parts = 1
    for name, value in statistics(guarded, [0, 1, 2]).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-15, msg=name)


def test_while_it_is_set_every_view_of_every_gradient_adds_to_what_is_observed():
    objective, singles = make(loss=FREE), []
    objective.gradient([0])
    for view in range(3):
        objective.observed = GradientStatistics(objective.parameters, absolute=True, splitting=True)
        objective.gradient([view])
        singles.append(objective.observed)
    objective.observed = observed = GradientStatistics(objective.parameters, absolute=True, splitting=True)
    objective.gradient([0, 2])
    objective.gradient([1])
    objective.observed = None
    objective.gradient([0, 1, 2])
    assert observed.views.tolist() == [3, 3, 3, 3, 3, 0]
    for name, value in observed.tensors().items():
        parts = torch.stack([single.tensors()[name] for single in singles])
        expected = parts.amax(dim=0) if name.endswith("max_radius") else parts.sum(dim=0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15, msg=name)
        assert value[:5].flatten(1).any(dim=1).all() if value.dim() > 1 else value[:5].all(), name


def test_statistics_and_what_is_observed_follow_an_edit_of_rows():
    objective = make()
    objective.observed = GradientStatistics(objective.parameters)
    objective.gradient([0])
    before = statistics(objective, [0])
    edit = SceneEdit(torch.tensor([2, 0, 5, 2]), torch.zeros(4, dtype=torch.bool))
    objective.edit_rows(edit)
    objective.observed.edit_rows(edit, objective.parameters)
    objective.gradient([0])
    assert objective.observed.views.tolist() == [2, 2, 0, 2]
    after = statistics(objective, [0])
    assert all(len(value) == 4 for value in after.values())
    assert torch.equal(after["pixels"], before["pixels"][[2, 0, 5, 2]])


def test_what_the_renderer_lacks_is_refused_by_name():
    objective = make(renderer=ToyRenderer())
    assert objective.oracles == {Oracle.GRADIENT}
    with pytest.raises(MissingOracleError, match=r"'Exact' needs gauss_newton_diagonal.* toy backend"):
        objective.gauss_newton_diagonal([0], Exact())
    with pytest.raises(MissingOracleError, match=r"toy renderer does not give jvp .*take a renderer that does"):
        objective.jvp([0], {})
    with pytest.raises(MissingOracleError, match="gauss_newton_blocks"):
        objective.gauss_newton_blocks([0])
    with pytest.raises(MissingOracleError, match="toy renderer does not give statistics"):
        objective.statistics([0], absolute_error)
    product = objective.hvp([0], random_tangent(objective, 0), CentralDifference())
    assert any(part.any() for part in product.values()), "a difference of gradients needs the gradient alone"


def test_empty_and_unfitting_batches_are_refused():
    objective = make()
    for call in (objective.residuals, objective.exact_gauss_newton_diagonal, objective.gauss_newton_blocks):
        with pytest.raises(ValueError, match="at least one view"):
            call([])
    with pytest.raises(ValueError, match="each of 2 views, got 1"):
        objective.vjp([0, 1], objective.residuals([0]))


@pytest.mark.parametrize("named", [GAUSSIAN_TENSORS, ("sh_dc", "logit_opacities")])
@pytest.mark.parametrize("ssim_weight", [0.2, 1.0])
def test_in_float32_the_central_difference_keeps_three_digits(named, ssim_weight):
    """With a step of 1e-4, within which no |x - y| of this scene changes its sign."""
    double, single = make(), make(dtype=torch.float32)
    double.loss = single.loss = L1Ssim(ssim_weight)
    generator = torch.Generator().manual_seed(0)
    tangent = {name: rademacher(single.parameters[name], generator) for name in named}
    exact = flat(double.hvp([0], {name: part.double() for name, part in tangent.items()}, ExactHessian()))
    result = flat(single.hvp([0], tangent, CentralDifference(1e-4)))
    assert result.dtype == torch.float32
    assert float((result.double() - exact).norm() / exact.norm()) < 2e-3
