"""Projection on the GPU (or interpreted) against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TINY, prepare
from splatopt.core import constants as truth_of_harmonics
from splatopt.kernels import spherical_harmonics
from splatopt.kernels.geometry import HALF_LOG2_E
from splatopt.raster.constants import MIN_ALPHA
from splatopt.raster.reference_projection import project_reference


@pytest.mark.parametrize("view", TINY, ids=lambda view: view.name)
def test_splats_agree_with_the_reference(view, device):
    drawn = prepare(view, device)
    truth = project_reference(view.cloud(), view.case.camera, view.case.options)
    visible = (drawn.splats.row_count > 0).cpu()[truth.index]
    splats = drawn.splats.splats.cpu().double()[truth.index]
    assert visible.any()
    # What reaches no pixel may be left out; what is in front and strong enough over the image may not.
    centre = truth.means[~visible]
    over = (centre > 0).all(1) & (centre[:, 0] < 24) & (centre[:, 1] < 20) & (truth.opacities[~visible] > MIN_ALPHA)
    assert not over.any()
    mean, a, log2_opacity, color = splats[:, :2], splats[:, 2:5], splats[:, 5], splats[:, 6:9]
    torch.testing.assert_close(mean[visible], truth.means[visible], rtol=1e-6, atol=1e-5)
    a11, a12, a22 = a.unbind(1)
    conics = torch.stack([a11 * a11, a11 * a12, a12 * a12 + a22 * a22], dim=1) / HALF_LOG2_E.value
    size = truth.conics[:, [0, 2]].max(dim=1, keepdim=True).values
    assert ((conics - truth.conics) / size)[visible].abs().max() < 2e-5
    torch.testing.assert_close(log2_opacity.exp2()[visible], truth.opacities[visible], rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(color[visible], truth.colors[visible], rtol=1e-5, atol=1e-5)
    depth = drawn.splats.depths.cpu().double()[truth.index]
    torch.testing.assert_close(depth[visible], truth.depths[visible], rtol=1e-6, atol=1e-6)
    assert torch.isinf(depth[~visible]).all()


def test_the_constants_of_the_harmonics_are_the_renderers():
    ours, theirs = spherical_harmonics, truth_of_harmonics
    assert (ours.C0.value, ours.C1.value) == (theirs.SH_C0, theirs.SH_C1)
    assert (ours.C20.value, -ours.C20.value, ours.C22.value, -ours.C20.value, ours.C24.value) == theirs.SH_C2
    cubic = [getattr(ours, f"C3{i}").value for i in (0, 1, 2, 3, 2, 5, 0)]
    assert tuple(cubic) == theirs.SH_C3
