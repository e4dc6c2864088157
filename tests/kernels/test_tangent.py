"""The JVP of projection and blending on the GPU (or interpreted): against the reference, and against the gradient."""

from __future__ import annotations

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.test_gradients import gradient_of, image_gradient
from kernels.views import TINY, TinyView, prepare
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.kernels.blend import blend
from splatopt.kernels.tangent import blend_jvp, project_jvp
from splatopt.raster.reference import render_reference
from splatopt.raster.types import Footprint
from splatopt.scene.gaussians import GaussianCloud


def direction(view: TinyView) -> GaussianCloud:
    """A change of all parameters, as large as they are; exactly representable in float32."""
    generator = torch.Generator().manual_seed(3)
    return view.cloud().map(
        lambda tensor: (torch.randn(tensor.shape, generator=generator) * tensor.abs().mean()).float().double()
    )


def image_tangent(view: TinyView, device: torch.device) -> torch.Tensor:
    drawn, camera = prepare(view, device), view.case.camera
    image = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height)
    along = [tensor.float().contiguous().to(device) for tensor in direction(view).tensors.values()]
    antialiased = view.case.options.footprint is Footprint.ANTIALIASED
    tangents = project_jvp(drawn.numbers, drawn.cloud, drawn.splats, along, antialiased=antialiased)
    return blend_jvp(drawn.numbers, drawn.splats, drawn.lists, image, tangents).cpu()


@pytest.mark.parametrize("view", TINY, ids=lambda view: view.name)
def test_the_images_tangent_agrees_with_the_reference_and_is_adjoint_to_the_gradient(view, device):
    found = image_tangent(view, device)
    along = direction(view).tensors
    truth = torch.func.jvp(
        lambda *tensors: (
            render_reference(
                GaussianCloud(**dict(zip(along, tensors, strict=True))), view.case.camera, view.case.options
            ).image
        ),
        tuple(view.cloud().tensors.values()),
        tuple(along.values()),
    )[1]
    assert relative_vector_error(found, truth) < 1e-4
    assert worst_elementwise_error(found, truth) < 1e-3
    # ⟨J v, u⟩ = ⟨v, Jᵀ u⟩ of the kernels alone.
    gradient = gradient_of(view, device, float("nan"), 1.0, overwrite=True)
    left = (found.double() * image_gradient(view)).sum()
    right = sum((gradient[name].double() * value).sum() for name, value in along.items())
    assert abs(left - right) <= 1e-5 * found.double().norm() * image_gradient(view).norm()
