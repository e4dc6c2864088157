"""The gradients of blending and projection on the GPU (or interpreted) against the float64 reference."""

from __future__ import annotations

import functools

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TINY, TinyView, prepare
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.kernels import blend_backward as backward
from splatopt.kernels.blend import blend
from splatopt.kernels.blend_backward import blend_backward, sum_pairs
from splatopt.kernels.projection import TILE
from splatopt.kernels.projection_backward import project_backward
from splatopt.kernels.tiles import TileLists
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import Footprint

# Of an element; of a tensor as a vector a tenth of it. Random image gradients cancel over a Gaussian's pixels as
# a photograph's do not, and take digits with them.
LIMIT = 1e-3


def image_gradient(view: TinyView) -> torch.Tensor:
    camera = view.case.camera
    return torch.randn(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(1))


@functools.cache
def true_gradient(index: int) -> dict[str, torch.Tensor]:
    view = TINY[index]
    along = image_gradient(view).double()
    vjp_value = ReferenceRenderer().image_vjp(view.cloud(), view.case.camera, view.case.options, lambda _: along)
    return {
        name: torch.zeros_like(value) if vjp_value.gradient[name] is None else vjp_value.gradient[name]
        for name, value in view.cloud().tensors.items()
    }


def gradient_of(view: TinyView, device: torch.device, fill: float, weight: float, *, overwrite: bool):
    drawn, camera = prepare(view, device), view.case.camera
    image = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height)
    sums = blend_backward(drawn.numbers, drawn.splats, drawn.lists, image, image_gradient(view).to(device))
    gradient = [torch.full_like(tensor, fill) for tensor in drawn.cloud.tensors]
    factor = torch.tensor(weight, device=device)
    antialiased = view.case.options.footprint is Footprint.ANTIALIASED
    project_backward(
        drawn.numbers, drawn.cloud, drawn.splats, sums, gradient, factor, antialiased=antialiased, overwrite=overwrite
    )
    return dict(zip(GAUSSIAN_TENSORS, (part.cpu() for part in gradient), strict=True))


def worst(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    by_vector = [10 * relative_vector_error(found[name], truth[name]) for name in truth]
    by_element = [worst_elementwise_error(found[name], truth[name], 2e-2) for name in truth]
    return max(by_vector + by_element)


@pytest.mark.parametrize("index", range(len(TINY)), ids=[view.name for view in TINY])
def test_gradients_agree_with_the_reference(index: int, device):
    found = gradient_of(TINY[index], device, float("nan"), 1.0, overwrite=True)
    assert worst(found, true_gradient(index)) < LIMIT


@pytest.mark.parametrize("name", GAUSSIAN_TENSORS)
def test_the_comparison_sees_one_wrong_number(name: str, device):
    truth = true_gradient(0)
    found = {key: value.clone() for key, value in truth.items()}
    assert worst(found, truth) < LIMIT
    largest = found[name].abs().argmax()
    found[name].view(-1)[largest] *= 1.002
    assert worst(found, truth) > LIMIT


def test_gradients_are_added_with_their_weight_and_repeat_bit_for_bit(device):
    view = TINY[0]
    once = gradient_of(view, device, float("nan"), 1.0, overwrite=True)
    again = gradient_of(view, device, float("nan"), 1.0, overwrite=True)
    added = gradient_of(view, device, 3.0, 0.5, overwrite=False)
    for name in GAUSSIAN_TENSORS:
        assert torch.equal(once[name], again[name]), name
        torch.testing.assert_close(added[name], 3.0 + 0.5 * once[name], rtol=1e-5, atol=1e-5)


def test_sums_of_slots_are_each_gaussians_own(device):
    counts = torch.tensor([3, 0, 9, 1], dtype=torch.int32, device=device)
    begins = torch.tensor([9, 0, 0, 12], dtype=torch.int32, device=device)
    pairs = torch.arange(13 * 2, dtype=torch.float32, device=device).reshape(13, 2)
    none = torch.empty(0, dtype=torch.int32, device=device)
    sums = sum_pairs(pairs, TileLists(none, none, none, begins, counts, 1, 1))
    expected = [pairs[9:12].sum(0), pairs[:0].sum(0), pairs[0:9].sum(0), pairs[12:13].sum(0)]
    assert torch.equal(sums, torch.stack(expected))


def test_slots_of_entries_that_no_ray_reaches_are_emptied(device, monkeypatch):
    view = next(view for view in TINY if view.case.name == "opaque_giants")
    drawn, camera = prepare(view, device), view.case.camera
    image = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height)
    reached = torch.nn.functional.max_pool2d(image.last[None].float(), TILE, ceil_mode=True).flatten()
    monkeypatch.setattr(backward, "BATCH", 2)
    assert (drawn.lists.begin.diff() > reached + backward.BATCH).any(), "or the walk back leaves none out"
    monkeypatch.setattr(backward.torch, "empty", lambda *shape, device: torch.full(shape, float("nan"), device=device))
    sums = blend_backward(drawn.numbers, drawn.splats, drawn.lists, image, image_gradient(view).to(device))
    assert sums.isfinite().all()
