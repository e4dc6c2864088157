"""Projection, covariances and spherical harmonics against gsplat's published PyTorch twins, which run on a CPU."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from raster.compare import relative_vector_error
from splatopt.core.checks import InputError
from splatopt.torch_api import (
    compute_relocation,
    fully_fused_projection,
    quat_scale_to_covar_preci,
    spherical_harmonics,
)
from splatopt.torch_api.plain_rows import PinholeCameras, PlainGaussians
from splatopt.torch_api.projection import project
from torch_api.scenes import plain_scene

wrapper = pytest.importorskip("gsplat.cuda._wrapper", reason="gsplat is not installed")
relocation = pytest.importorskip("gsplat.relocation", reason="gsplat is not installed")
twins = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")

TYPES = [torch.float32, torch.float64]


def weighted(*tensors: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return sum((torch.randn(one.shape, generator=generator).to(one) * one).sum() for one in tensors)


@pytest.mark.parametrize("dtype", TYPES)
def test_projection_and_its_gradients_are_those_of_gsplats_twin(dtype: torch.dtype) -> None:
    """In float32 it is the native pass, in float64 PyTorch's; the twin is asked in float64."""
    size, found = (41, 30), []
    for kind in (dtype, torch.float64):
        scene = plain_scene(kind, rows=80, views=3, size=size)
        leaves = [scene[name] for name in ("means", "quats", "scales", "viewmats")]
        gaussians = PlainGaussians(*leaves[:3], scene["opacities"])
        if kind is dtype and not found:
            ours = project(gaussians, PinholeCameras(leaves[3], scene["Ks"], *size, antialiased=True))
            values = ours.means2d, ours.depths, ours.conics, ours.compensations
            drawn = ours.drawn
        else:
            covars, _ = twins._quat_scale_to_covar_preci(leaves[1], leaves[2], compute_preci=False)
            _, *values = twins._fully_fused_projection(
                leaves[0], covars, leaves[3], scene["Ks"], *size, calc_compensations=True
            )
        values = [value[drawn] for value in values]
        found.append((values, torch.autograd.grad(weighted(*values), leaves)))
    assert 30 < drawn.sum() < drawn.numel()
    (values, gradients), (true_values, true_gradients) = found
    precision = 1e-4 if dtype is torch.float32 else 1e-10
    for value, truth in zip(values, true_values, strict=True):
        assert relative_vector_error(value, truth) < precision
    for gradient, truth in zip(gradients, true_gradients, strict=True):
        assert relative_vector_error(gradient, truth) < 10 * precision


def test_what_is_drawn_reaches_into_the_image() -> None:
    """Radii are whole pixels, no smaller than where α falls to 1/255, and no larger than the twin's 3.33 σ."""
    scene = plain_scene(torch.float64, rows=80, views=2)
    gaussians = PlainGaussians(scene["means"], scene["quats"], scene["scales"], scene["opacities"])
    ours = project(gaussians, PinholeCameras(scene["viewmats"], scene["Ks"], 41, 30))
    covars, _ = twins._quat_scale_to_covar_preci(scene["quats"], scene["scales"], compute_preci=False)
    radii, *_ = twins._fully_fused_projection(scene["means"], covars, scene["viewmats"], scene["Ks"], 41, 30)
    assert (ours.radii[ours.drawn] <= radii[ours.drawn]).all()
    full = PlainGaussians(scene["means"], scene["quats"], scene["scales"], torch.ones(80, dtype=torch.float64))
    opaque = project(full, PinholeCameras(scene["viewmats"], scene["Ks"], 41, 30))
    assert ((opaque.radii - radii)[opaque.drawn].abs() <= 1).all()


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_fused_projection_is_gsplats_twin(dtype: torch.dtype, compensated: bool) -> None:
    scene = plain_scene(dtype, rows=80, views=3)
    means, quats, scales, viewmats = (scene[name] for name in ("means", "quats", "scales", "viewmats"))
    seen = viewmats, scene["Ks"], 41, 30
    triu, _ = quat_scale_to_covar_preci(quats, scales, compute_preci=False, triu=True)
    plain = fully_fused_projection(means, None, quats, scales, *seen, calc_compensations=compensated)
    covars, _ = twins._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    theirs = twins._fully_fused_projection(means, covars, *seen, calc_compensations=compensated)
    drawn = plain[0][..., 0] > 0
    assert 30 < drawn.sum() < drawn.numel()
    assert ((plain[0] - theirs[0])[drawn].abs() <= 1).all()
    for ours in (plain, fully_fused_projection(means, triu, None, None, *seen, calc_compensations=compensated)):
        assert torch.equal(ours[0][..., 0] > 0, drawn)
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert relative_vector_error(one[drawn], other[drawn]) < 1e-3
    packed = fully_fused_projection(means, None, quats, scales, *seen, packed=True, calc_compensations=compensated)
    batch, camera, row = packed[:3]
    assert not batch.any()
    for one, whole in zip(packed[3:], plain, strict=True):
        assert one is whole is None or torch.equal(one, whole[camera, row])
    assert len(row) == drawn.sum()


def test_the_fused_projection_refuses_what_it_cannot_do() -> None:
    scene = plain_scene(torch.float32, rows=4, views=1)
    given = {name: scene[name] for name in ("means", "quats", "scales", "viewmats", "Ks")}
    given |= {"covars": None, "width": 41, "height": 30}
    for change, what in (
        ({"sparse_grad": True}, "sparse_grad"),
        ({"camera_model": "fisheye"}, "camera_model"),
        ({"covars": torch.zeros(4, 3)}, r"covars must be \(4, 6\)"),
        ({"scales": None}, "quats and scales, or covars"),
    ):
        with pytest.raises(InputError, match=what):
            fully_fused_projection(**{**given, **change})


@pytest.mark.parametrize(
    "ours",
    [fully_fused_projection, quat_scale_to_covar_preci, spherical_harmonics, compute_relocation],
    ids=lambda ours: ours.__name__,
)
def test_signatures_are_gsplats(ours) -> None:
    theirs = inspect.signature(getattr(wrapper, ours.__name__, relocation.compute_relocation)).parameters
    own = inspect.signature(ours).parameters
    assert list(own) == list(theirs)
    assert [one.default for one in own.values()] == [one.default for one in theirs.values()]


@pytest.mark.parametrize("triu", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_covariances_and_precisions_are_those_of_gsplats_twin(dtype: torch.dtype, triu: bool) -> None:
    scene = plain_scene(dtype, rows=40, views=1)
    leaves = scene["quats"], scene["scales"]
    ours = quat_scale_to_covar_preci(*leaves, triu=triu)
    theirs = twins._quat_scale_to_covar_preci(*leaves, triu=triu)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape == ((40, 6) if triu else (40, 3, 3))
        assert relative_vector_error(one, other) < 1e-5
        gradients = [torch.autograd.grad(weighted(value), leaves, retain_graph=True) for value in (one, other)]
        for gradient, truth in zip(*gradients, strict=True):
            assert relative_vector_error(gradient, truth) < 1e-4
    assert quat_scale_to_covar_preci(*leaves, compute_covar=False)[0] is None
    assert quat_scale_to_covar_preci(*leaves, compute_preci=False)[1] is None


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_spherical_harmonics_are_those_of_gsplats_twin(dtype: torch.dtype, degree: int) -> None:
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(3, 37, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    coefficients = torch.randn(3, 37, 16, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    counted = torch.rand(3, 37, generator=generator) > 0.3
    ours = spherical_harmonics(degree, directions, coefficients, counted)
    theirs = twins._spherical_harmonics(degree, directions, coefficients)
    assert (ours[~counted] == 0).all()
    assert relative_vector_error(ours[counted], theirs[counted]) < 1e-6
    leaves = directions, coefficients
    gradients = torch.autograd.grad(weighted(ours[counted]), leaves, allow_unused=True, materialize_grads=True)
    truths = torch.autograd.grad(weighted(theirs[counted]), leaves, allow_unused=True, materialize_grads=True)
    for gradient, truth in zip(gradients, truths, strict=True):
        assert relative_vector_error(gradient, truth) < 1e-5
    assert torch.equal(spherical_harmonics(degree, directions, coefficients)[counted], ours[counted])


def test_harmonics_that_we_do_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="0 to 3"):
        spherical_harmonics(4, torch.zeros(2, 3), torch.zeros(2, 25, 3))
    with pytest.raises(InputError, match="K at least 9"):
        spherical_harmonics(2, torch.zeros(2, 3), torch.zeros(2, 4, 3))
    with pytest.raises(InputError, match="directions"):
        spherical_harmonics(1, torch.zeros(2, 3), torch.zeros(3, 4, 3))
