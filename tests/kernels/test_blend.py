"""Blending on the GPU (or interpreted) against the float64 reference."""

from __future__ import annotations

import pytest

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TINY, prepare
from splatopt.kernels.blend import blend
from splatopt.raster.reference import render_reference


@pytest.mark.parametrize("view", TINY, ids=lambda view: view.name)
def test_image_alpha_and_depth_agree_with_the_reference(view, device):
    drawn, camera = prepare(view, device), view.case.camera
    result = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height, with_depth=True)
    truth = render_reference(view.cloud(), camera, view.case.options)
    assert truth.alpha.max() > 0.1
    assert (result.image.cpu().double() - truth.image).abs().max() < 1e-5
    assert (1 - result.transmittance.cpu().double() - truth.alpha).abs().max() < 1e-5
    assert (result.depth.cpu().double() - truth.depth).abs().max() < 5e-5


def test_the_comparison_sees_one_splat_that_moved_by_a_hundredth_of_a_pixel(device):
    view = TINY[0]
    drawn, camera = prepare(view, device), view.case.camera
    drawn.splats.splats[:, 0] += 0.01
    result = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height)
    truth = render_reference(view.cloud(), camera, view.case.options)
    assert (result.image.cpu().double() - truth.image).abs().max() > 1e-4
