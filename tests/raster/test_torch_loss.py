"""Losses that others write: their derivatives, what they refuse, and the native twin of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from raster.cases import find_case
from raster.compare import relative_vector_error
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.raster.check_loss import check_loss
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.loss_registry import LOSSES, find_loss, register_loss
from splatopt.raster.losses import Charbonnier, L1Ssim, SquaredError
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.ssim import ssim_map_reference
from splatopt.raster.torch_loss import TorchLoss, weight_per_value
from splatopt.scene.photometric import PhotometricObjective


@dataclass(frozen=True)
class Twin(TorchLoss):
    """Charbonnier without SSIM, by autograd."""

    pixelwise: ClassVar[bool] = True
    epsilon: float = 0.02

    def residuals(self, image, target, weights):
        penalty = ((image - target).square() + self.epsilon**2).sqrt()
        return (weight_per_value(weights).sqrt() * (2 * penalty).sqrt())[None]


@dataclass(frozen=True)
class ValueAlone(TorchLoss):
    """A power of the difference, which is no sum of squares."""

    power: float = 1.5

    def value(self, image, target, weights):
        return (weight_per_value(weights) * ((image - target).square() + 1e-4) ** (self.power / 2)).sum()


@dataclass(frozen=True)
class Similarity(TorchLoss):
    """1 - mean SSIM, whose residuals look at their neighbours."""

    def residuals(self, image, target, weights):
        return (weight_per_value(weights).sqrt() * (2 - 2 * ssim_map_reference(image, target)).sqrt())[None]


OWN = (L1Ssim(), L1Ssim(0.0), L1Ssim(1.0), SquaredError(), Charbonnier(0.03), Charbonnier(ssim_weight=0.0))
OTHERS = (Twin(), ValueAlone(), Similarity())


@pytest.mark.parametrize("loss", [*OWN, *OTHERS], ids=repr)
def test_every_loss_passes_the_check(loss):
    check_loss(loss)
    check_loss(loss, seed=1)


def test_what_a_loss_gives_follows_from_what_it_defines():
    assert Twin().oracles == frozenset(Oracle)
    assert ValueAlone().oracles == {Oracle.GRADIENT, Oracle.HVP, Oracle.STATISTICS}
    assert Similarity().oracles == frozenset(Oracle) - {Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.GAUSS_NEWTON_BLOCKS}


class WrongValue(Twin):
    def value(self, image, target, weights):
        return 2 * super().value(image, target, weights)


class WrongGradient(Twin):
    def value_and_gradient(self, image, target, weights):
        value, gradient = super().value_and_gradient(image, target, weights)
        return value, 1.001 * gradient


class WrongJvp(Twin):
    def residual_jvp(self, image, target, weights, tangent):
        return -super().residual_jvp(image, target, weights, tangent)


class WrongVjp(Twin):
    def residual_vjp(self, image, target, weights, cotangent):
        return super().residual_vjp(image, target, weights, cotangent).flip(0)


class WrongCurvature(Twin):
    def pixel_curvature(self, image, target, weights):
        return 1.01 * super().pixel_curvature(image, target, weights)


class NotPixelwise(Similarity):
    pixelwise = True


class BlindToWeights(Twin):
    def residuals(self, image, target, weights):
        return super().residuals(image, target, torch.ones_like(weights))


class RootOfWeights(Twin):
    def residuals(self, image, target, weights):
        penalty = ((image - target).square() + self.epsilon**2).sqrt()
        return (2 * weight_per_value(weights) * penalty).sqrt()[None]


class WrongShape(Twin):
    components = 2


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (WrongValue(), "half the squared norm of the residuals is off by"),
        (WrongGradient(), "the gradient is off by"),
        (WrongJvp(), "residual_jvp is off by"),
        (WrongVjp(), "⟨v, Jᵀu⟩ is off by"),
        (WrongCurvature(), "pixel_curvature is off by"),
        (NotPixelwise(), "pixel"),
        (BlindToWeights(), "with a border of weight zero, the value is off by"),
        (RootOfWeights(), "with a border of weight zero, the gradient is off by nan"),
        (WrongShape(), r"residuals must have the shape \(2, 7, 9, 3\), got \(1, 7, 9, 3\)"),
    ],
)
def test_the_check_finds_what_is_wrong(loss, said):
    with pytest.raises(InputError, match=f"the loss {type(loss).__name__} fails its check: .*{said}"):
        check_loss(loss)


# ---------------------------------------------------------------------- renderers


def problem_with(case, loss) -> ViewProblem:
    problem = case.problem(loss)
    weights = torch.rand(problem.camera.height, problem.camera.width, generator=torch.Generator().manual_seed(0))
    return ViewProblem(problem.camera, problem.image, problem.options, loss, weights * (weights > 0.3))


def answers(renderer, cloud, problem) -> dict[str, torch.Tensor]:
    """All that a renderer answers about a view, as flat vectors."""

    def sums() -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(value) for name, value in cloud.tensors.items()}

    generator = torch.Generator().manual_seed(1)
    tangent = {name: torch.randn(value.shape, generator=generator) for name, value in cloud.tensors.items()}
    gradient, diagonal, product = sums(), sums(), sums()
    value = renderer.accumulate_gradient(
        cloud, problem, WeightedSum(gradient), torch.zeros(len(cloud), dtype=torch.bool)
    )
    renderer.accumulate_diagonal(cloud, problem, WeightedSum(diagonal))
    renderer.gauss_newton_product(cloud, problem, tangent, WeightedSum(product))
    blocks = {"blocks": torch.zeros(len(cloud), 105), "sh_rest": torch.zeros_like(cloud.sh_rest)}
    renderer.accumulate_blocks(cloud, problem, WeightedSum(blocks))
    found = {"gradient": gradient, "diagonal": diagonal, "product": product, "blocks": blocks}
    return {
        "loss": torch.tensor([value.loss]),
        "residuals": renderer.residuals(cloud, problem).reshape(-1),
        "jvp": renderer.jvp(cloud, problem, tangent).reshape(-1),
        **{name: torch.cat([part.reshape(-1) for part in parts.values()]) for name, parts in found.items()},
    }


@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
def test_on_the_native_renderer_a_plugin_is_its_native_twin():
    case = find_case("ordinary_black")
    cloud, renderer = case.cloud().to(torch.float32), NativeRenderer(1)
    ours = answers(renderer, cloud, problem_with(case, Charbonnier(0.02, ssim_weight=0.0)))
    theirs = answers(renderer, cloud, problem_with(case, Twin(0.02)))
    for name, value in ours.items():
        assert relative_vector_error(theirs[name], value) < 2e-5, name


def test_the_reference_takes_it_as_well():
    case = find_case("ordinary_black")
    cloud = case.cloud().to(torch.float32)
    ours = answers(ReferenceRenderer(), cloud, problem_with(case, Charbonnier(0.02, ssim_weight=0.0)))
    theirs = answers(ReferenceRenderer(), cloud, problem_with(case, Twin(0.02)))
    for name, value in ours.items():
        assert relative_vector_error(theirs[name], value) < 2e-5, name


@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
def test_a_masked_pixel_leaves_no_trace_in_a_plugins_loss():
    case = find_case("ordinary_black")
    cloud, problem = case.cloud().to(torch.float32), problem_with(case, Twin())
    changed = problem.image.clone()
    changed[problem.weights == 0] = 255 - changed[problem.weights == 0]
    other = ViewProblem(problem.camera, changed, problem.options, problem.loss, problem.weights)
    before, after = (answers(NativeRenderer(1), cloud, one) for one in (problem, other))
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------------- optimizers


def objective_with(loss) -> PhotometricObjective:
    case = find_case("ordinary_black")
    problem = case.problem(loss)
    cloud = case.cloud().to(torch.float32)
    return PhotometricObjective(cloud, [problem.camera], [problem.image], ReferenceRenderer(), loss=loss)


@pytest.mark.parametrize(
    ("name", "loss", "said"),
    [
        ("tr2", ValueAlone(), "'DiagonalGaussNewton' needs gauss_newton_diagonal, which the loss ValueAlone does not"),
        ("block-gn", Similarity(), "needs gauss_newton_blocks.*, which the loss Similarity does not give"),
        ("lm", ValueAlone(), "jvp, vjp, which the loss ValueAlone does not give"),
    ],
)
def test_an_optimizer_that_needs_more_than_the_loss_gives_is_refused(name, loss, said):
    entry = find_optimizer(name)
    with pytest.raises(MissingOracleError, match=said):
        entry.optimizer(objective_with(loss), entry.options(), torch.Generator().manual_seed(0))


def test_probes_need_residuals_alone():
    entry = find_optimizer("tr2")
    objective = objective_with(Similarity())
    options = entry.options(estimator="residual")
    optimizer = entry.optimizer(objective, options, torch.Generator().manual_seed(0))
    before = objective.value((0,))
    for step in range(3):
        optimizer.step((0,), Progress(step, 10))
    assert objective.value((0,)) < before
    with pytest.raises(MissingOracleError, match="curvature of single pixels was asked for, which the loss Similarity"):
        objective.exact_gauss_newton_diagonal((0,))


# ---------------------------------------------------------------------- names


def test_own_losses_have_names():
    assert [find_loss(name).loss for name in ("l1-ssim", "squared", "charbonnier")] == [
        L1Ssim,
        SquaredError,
        Charbonnier,
    ]
    with pytest.raises(InputError, match="no loss is named 'charbonier'; did you mean charbonnier?"):
        find_loss("charbonier")


@dataclass(frozen=True)
class Empty(TorchLoss):
    pass


@dataclass(frozen=True)
class Demanding(Twin):
    epsilon: float = 0.1
    strength: float = None  # type: ignore[assignment]

    def __post_init__(self):
        raise TypeError("strength is missing")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Empty, r"the loss 'mine' in .*test_torch_loss\.py:\d+ gives neither residuals nor value; Empty must define"),
        (Demanding, r"cannot be made without arguments .*; give every field a default"),
    ],
)
def test_a_class_that_is_no_loss_is_refused(loss, said):
    with pytest.raises(InputError, match=said):
        register_loss("mine", loss)
    assert "mine" not in LOSSES.names()
