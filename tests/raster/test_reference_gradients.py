"""Derivatives of the reference renderer against finite differences and against one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from raster.cases import make_camera, random_cloud
from splatopt.core.camera import Camera
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, ambiguous_pixels, render_reference
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud

NAMES = tuple(field.name for field in fields(GaussianCloud))
CAMERA = make_camera(7, 5)


def small_cloud(count: int, seed: int = 0) -> GaussianCloud:
    """A few wide, half-transparent Gaussians."""
    cloud = random_cloud(torch.Generator().manual_seed(seed), count, sh_degree=3, scale=0.9)
    cloud.logit_opacities = cloud.logit_opacities.clamp(-1.5, 1.5)
    return cloud


def options_for(footprint: Footprint) -> RenderOptions:
    return RenderOptions(background=(0.3, 0.1, 0.8), footprint=footprint)


def as_function(cloud: GaussianCloud, camera: Camera, options: RenderOptions, *names: str) -> Callable[..., Tensor]:
    """Return the function from the tensors ``names`` to image, alpha and depth in one vector."""

    def outputs(*values: Tensor) -> Tensor:
        rendering = render_reference(
            GaussianCloud(**{**cloud.tensors, **dict(zip(names, values, strict=True))}), camera, options
        )
        return torch.cat([rendering.image.flatten(), rendering.alpha.flatten(), rendering.depth.flatten()])

    return outputs


@pytest.mark.parametrize("footprint", Footprint)
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, footprint):
    cloud, options = small_cloud(6), options_for(footprint)
    assert not ambiguous_pixels(cloud, CAMERA, options, relative=1e-3).any()
    value = getattr(cloud, name).clone().requires_grad_()
    function = as_function(cloud, CAMERA, options, name)
    assert torch.autograd.gradcheck(function, (value,), eps=1e-6, atol=1e-8, rtol=1e-5)
    (gradient,) = torch.autograd.grad(function(value).sum(), value)
    assert (gradient.abs().amax() > 1e-3).item()


@pytest.mark.parametrize("name", ["means", "log_scales", "quats"])
def test_gradcheck_where_the_jacobian_is_clamped(name):
    """A wide Gaussian far beside the image: its slope is clamped, its footprint still reaches in."""
    cloud = small_cloud(2)
    camera = make_camera(7, 5, rotated=False)
    cloud.means = torch.tensor([[6.0, 0.1, 0.3], [-0.2, -5.0, 0.1]], dtype=torch.float64)
    cloud.log_scales = torch.tensor([[1.0, 0.8, 0.9], [0.9, 1.1, 0.7]], dtype=torch.float64)
    cloud.logit_opacities = torch.full((2,), 2.0, dtype=torch.float64)
    options = options_for(Footprint.CLASSIC)
    assert not ambiguous_pixels(cloud, camera, options, relative=1e-3).any()
    assert float(render_reference(cloud, camera, options).alpha.max()) > 0.1
    value = getattr(cloud, name).clone().requires_grad_()
    assert torch.autograd.gradcheck(as_function(cloud, camera, options, name), (value,), atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("footprint", Footprint)
def test_gradgradcheck(footprint):
    cloud, camera, options = (
        small_cloud(2, seed=1).with_sh_degree(1),
        make_camera(2, 2, focal=0.7),
        options_for(footprint),
    )
    assert not ambiguous_pixels(cloud, camera, options, relative=1e-2).any()
    values = tuple(tensor.clone().requires_grad_() for tensor in cloud.tensors.values())
    function = as_function(cloud, camera, options, *NAMES)
    assert torch.autograd.gradgradcheck(function, values, eps=1e-6, atol=1e-6, rtol=1e-4)


def random_like(values: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values)


@pytest.mark.parametrize("footprint", Footprint)
def test_forward_and_reverse_products_agree(footprint):
    cloud = small_cloud(6)
    cloud.means[0, 2] = -40.0  # one behind the camera
    function = as_function(cloud, CAMERA, options_for(footprint), *NAMES)
    values = tuple(cloud.tensors.values())
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        along = random_like(values, generator)
        outputs, moved = torch.func.jvp(function, values, along)
        back_outputs, vjp = torch.func.vjp(function, *values)
        assert torch.equal(outputs, back_outputs)
        weights = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        vjp_value = sum((a * b).sum() for a, b in zip(vjp(weights), along, strict=True))
        assert float(moved @ weights) == pytest.approx(float(vjp_value), rel=1e-10)


def test_function_transforms_give_the_same_jacobian_and_hessian():
    cloud, camera, options = (
        small_cloud(3, seed=1).with_sh_degree(1),
        make_camera(3, 2, focal=0.7),
        options_for(Footprint.CLASSIC),
    )
    function = as_function(cloud, camera, options, "means")
    forward = torch.func.jacfwd(function)(cloud.means)
    backward = torch.func.jacrev(function)(cloud.means)
    assert forward.abs().max() > 1e-2
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-12)

    def energy(means: Tensor) -> Tensor:
        return function(means).square().sum()

    along = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, product = torch.func.jvp(torch.func.grad(energy), (cloud.means,), (along,))
    step = 1e-5
    ahead, behind = (torch.func.grad(energy)(cloud.means + sign * step * along) for sign in (1, -1))
    torch.testing.assert_close(product, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("footprint", Footprint)
def test_degenerate_rows_give_finite_gradients(footprint):
    """At the eye, in its plane, before the near plane, without volume, without rotation, boundless."""
    cloud, options = small_cloud(8), options_for(footprint)
    eye = CAMERA.center
    rotation = CAMERA.world_to_camera[:3, :3]
    cloud.means[0] = eye
    cloud.means[1] = eye + 2.0 * rotation[0]
    cloud.means[2] = eye + 0.5 * 0.01 * rotation[2]
    cloud.means[3] = eye - 3.0 * rotation[2]
    cloud.log_scales[4] = -400.0
    cloud.quats[5] = 0.0
    cloud.log_scales[6] = 60.0
    values = tuple(tensor.clone().requires_grad_() for tensor in cloud.tensors.values())
    function = as_function(cloud, CAMERA, options, *NAMES)
    loss = function(*values).square().sum()
    first = torch.autograd.grad(loss, values, create_graph=True)
    second = torch.autograd.grad(sum(part.square().sum() for part in first), values)
    for part in (*first, *second):
        assert torch.isfinite(part).all()
        assert not part[:4].any(), "what is not drawn has no gradient"
    gradient = {name: torch.zeros_like(tensor) for name, tensor in cloud.tensors.items()}
    target = torch.zeros(5, 7, 3, dtype=torch.uint8)
    seen = torch.zeros(8, dtype=torch.bool)
    ReferenceRenderer().accumulate_gradient(cloud, ViewProblem(CAMERA, target, options), WeightedSum(gradient), seen)
    assert all(torch.isfinite(part).all() for part in gradient.values())
    assert not seen[:4].any()


def test_clamped_alpha_passes_no_gradient():
    camera = Camera(torch.eye(4, dtype=torch.float64), 10.0, 10.0, 0.5, 0.5, 1, 1)
    cloud = small_cloud(1)
    cloud.means = torch.tensor([[0.01, 0.02, 2.0]], dtype=torch.float64)

    def gradients(logit: float) -> tuple[Tensor, ...]:
        values = (cloud.means.clone().requires_grad_(), torch.tensor([logit], dtype=torch.float64, requires_grad=True))
        function = as_function(cloud, camera, RenderOptions(sh_degree=0), "means", "logit_opacities")
        return torch.autograd.grad(function(*values)[3], values)  # alpha

    assert all(not part.any() for part in gradients(12.0))
    assert all(part.abs().max() > 1e-4 for part in gradients(2.0))
