"""The Gauss-Newton diagonal and blocks on the GPU (or interpreted) against the float64 reference."""

from __future__ import annotations

import functools

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TINY, TinyView, prepare
from raster.compare import relative_vector_error, worst_elementwise_error
from splatopt.core.schema import BLOCK_SIZE, GAUSSIAN_TENSORS, PACKED_BLOCK
from splatopt.kernels.blend import blend
from splatopt.kernels.blend_moments import blend_moments
from splatopt.kernels.curvature import project_blocks, project_diagonal
from splatopt.raster.reference_products import _Curvature, _projection_jacobian, _splat_curvature
from splatopt.raster.reference_projection import project_reference
from splatopt.raster.types import Footprint


def pixel_weights(view: TinyView) -> torch.Tensor:
    camera = view.case.camera
    return torch.rand(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(4))


@functools.cache
def true_curvature(index: int):
    """The diagonal, (N, T), and the blocks, (N, 105)."""
    view = TINY[index]
    cloud, camera, options = view.cloud(), view.case.camera, view.case.options
    with torch.no_grad():
        splats = project_reference(cloud, camera, options)
        outer = _splat_curvature(splats, camera, options, pixel_weights(view).double())[torch.argsort(splats.index)]
    curvature = _Curvature(outer, _projection_jacobian(cloud, camera, options))
    row, column = torch.tril_indices(BLOCK_SIZE, BLOCK_SIZE)
    return curvature.diagonal(), curvature.blocks(BLOCK_SIZE)[:, row, column]


def curvature_of(view: TinyView, device: torch.device, fill: float, weight: float, *, overwrite: bool):
    """The diagonal, (N, T), the blocks and their rest as one, and whether the sums of the cheap kind sufficed."""
    drawn, camera = prepare(view, device), view.case.camera
    image = blend(drawn.numbers, drawn.splats, drawn.lists, camera.width, camera.height)
    weights, factor = pixel_weights(view).to(device), torch.tensor(weight, device=device)
    how = {"antialiased": view.case.options.footprint is Footprint.ANTIALIASED, "overwrite": overwrite}
    common = (drawn.numbers, drawn.cloud, drawn.splats)
    diagonal = [torch.full_like(tensor, fill) for tensor in drawn.cloud.tensors]
    blocks = torch.full((drawn.cloud.count, PACKED_BLOCK), fill, device=device)
    rest = torch.full_like(drawn.cloud.tensors.sh_rest, fill)
    view_sums = functools.partial(blend_moments, drawn.numbers, drawn.splats, drawn.lists, image, weights)
    all_sums = view_sums(cross=True)
    project_diagonal(*common, all_sums if drawn.cloud.degree else view_sums(cross=False), diagonal, factor, **how)
    project_blocks(*common, all_sums, (blocks, rest), factor, **how)
    return dict(zip(GAUSSIAN_TENSORS, (part.cpu() for part in diagonal), strict=True)), blocks.cpu(), rest.cpu()


def split(view: TinyView, columns: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = view.cloud().tensors
    parts = columns.split([tensor.shape[1:].numel() for tensor in tensors.values()], dim=1)
    return {name: part.reshape(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}


def worst_block_error(blocks: torch.Tensor, truth: torch.Tensor) -> float:
    """Entry (i, j) against √(B_ii B_jj): small parameters' entries count as much as large ones'."""
    rows, columns = torch.tril_indices(BLOCK_SIZE, BLOCK_SIZE)
    on_diagonal = truth[:, rows == columns].sqrt()
    scale = on_diagonal[:, rows] * on_diagonal[:, columns]
    return float(((blocks.double() - truth).abs() / (scale + 1e-6 * scale.max())).max())


@pytest.mark.parametrize("index", range(len(TINY)), ids=[view.name for view in TINY])
def test_diagonal_and_blocks_agree_with_the_reference(index: int, device):
    view = TINY[index]
    diagonal, blocks, rest = curvature_of(view, device, float("nan"), 1.0, overwrite=True)
    true_diagonal, true_blocks = true_curvature(index)
    for name, truth in split(view, true_diagonal).items():
        assert relative_vector_error(diagonal[name], truth) < 1e-4, name
        assert worst_elementwise_error(diagonal[name], truth) < 2e-4, name
    assert relative_vector_error(blocks, true_blocks) < 1e-4
    assert worst_block_error(blocks, true_blocks) < 2e-4
    assert torch.equal(rest, diagonal["sh_rest"])


def test_the_comparison_sees_one_wrong_entry():
    _, truth = true_curvature(0)
    assert worst_block_error(truth, truth) == 0
    wrong = truth.clone()
    wrong[truth.abs().sum(1).argmax(), 1] += 5e-4 * truth[truth.abs().sum(1).argmax(), [0, 2]].prod().sqrt()
    assert worst_block_error(wrong, truth) > 2e-4


def test_curvature_is_added_with_its_weight_and_repeats_bit_for_bit(device):
    view = TINY[0]
    once = curvature_of(view, device, float("nan"), 1.0, overwrite=True)
    again = curvature_of(view, device, float("nan"), 1.0, overwrite=True)
    added = curvature_of(view, device, 2.0, 0.5, overwrite=False)
    for name in GAUSSIAN_TENSORS:
        assert torch.equal(once[0][name], again[0][name]), name
        torch.testing.assert_close(added[0][name], 2.0 + 0.5 * once[0][name])
    assert torch.equal(once[1], again[1])
    torch.testing.assert_close(added[1], 2.0 + 0.5 * once[1])
    torch.testing.assert_close(added[2], 2.0 + 0.5 * once[2])
