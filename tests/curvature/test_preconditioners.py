"""Preconditioners against dense matrices, and named tensors as vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from splatopt.core.objective import GaussNewtonBlocks
from splatopt.curvature.blocks import pack_blocks
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.preconditioners import BlockPreconditioner, DiagonalPreconditioner

ROWS = 4
SHAPES = {"means": (ROWS, 3), "rest": (ROWS, 2, 3), "logit": (ROWS,)}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def some_blocks(seed: int = 1) -> Tensor:
    """A block of 4 for each row, (means, logit); the third row's has rank 1, and the last row has none."""
    factors = torch.randn(ROWS, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors[2, :, 1:] = 0
    factors[3] = 0
    return factors @ factors.transpose(1, 2)


def test_vectors_come_back_as_tensors_that_share_their_memory():
    given = tensors()
    layout = FlatLayout(given)
    vector = layout.flatten(given)
    assert vector.shape == (ROWS * 10,)
    back = layout.unflatten(vector)
    assert list(back) == list(given)
    for name, value in given.items():
        assert torch.equal(back[name], value)
    back["logit"].zero_()
    assert vector[-ROWS:].count_nonzero() == 0
    assert given["logit"].count_nonzero() == ROWS


def test_the_diagonal_is_inverted_where_it_is_known():
    diagonal = tensors()
    diagonal["means"][1] = 0
    diagonal["logit"][2] = 1e-320  # its inverse is no number
    layout = FlatLayout(diagonal)
    preconditioner = DiagonalPreconditioner(layout, diagonal)
    damping = 0.5 * layout.flatten(diagonal)
    preconditioner.factorise(damping)
    vector = layout.flatten(tensors(3))
    solved = layout.unflatten(preconditioner.solve(vector))
    expected = layout.unflatten(vector / (1.5 * layout.flatten(diagonal)))
    assert torch.equal(solved["means"][1], torch.zeros(3, dtype=torch.float64))
    assert solved["logit"][2] == 0
    torch.testing.assert_close(solved["means"][[0, 2, 3]], expected["means"][[0, 2, 3]])
    torch.testing.assert_close(solved["rest"], expected["rest"])
    torch.testing.assert_close(preconditioner.diagonal, layout.flatten(diagonal))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_are_inverted_whole(dtype):
    given = {name: value.to(dtype) for name, value in tensors().items()}
    layout, blocks = FlatLayout(given), some_blocks()
    packed = GaussNewtonBlocks(("means", "logit"), pack_blocks(blocks).to(dtype), {"rest": given["rest"]})
    preconditioner = BlockPreconditioner(layout, packed)
    squares = blocks.diagonal(dim1=1, dim2=2)
    expected_diagonal = layout.flatten(
        {"means": squares[:, :3], "logit": squares[:, 3], "rest": given["rest"].double()}
    )
    torch.testing.assert_close(preconditioner.diagonal.double(), expected_diagonal, rtol=1e-5, atol=1e-6)
    damping = layout.flatten(tensors(5)).to(dtype)
    preconditioner.factorise(damping)
    vector = layout.flatten(tensors(6)).to(dtype)
    solved = layout.unflatten(preconditioner.solve(vector))
    parts, weights = layout.unflatten(vector.double()), layout.unflatten(damping.double())
    rows = torch.cat([parts["means"], parts["logit"][:, None]], dim=1)
    damped = blocks + torch.diag_embed(torch.cat([weights["means"], weights["logit"][:, None]], dim=1))
    expected = torch.linalg.solve(damped, rows)
    found = torch.cat([solved["means"], solved["logit"][:, None]], dim=1).double()
    torch.testing.assert_close(found[:3], expected[:3], rtol=2e-4, atol=1e-5)
    assert torch.equal(found[3], torch.zeros(4, dtype=torch.float64)), "a row without curvature stays"
    torch.testing.assert_close(solved["rest"].double(), parts["rest"] / (given["rest"].double() + weights["rest"]))


def test_a_block_without_a_factor_counts_as_its_diagonal():
    blocks = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    blocks[0, 0, 1] = blocks[0, 1, 0] = 3.0  # not positive definite
    layout = FlatLayout({"a": torch.zeros(2, 2, dtype=torch.float64)})
    preconditioner = BlockPreconditioner(layout, GaussNewtonBlocks(("a",), pack_blocks(blocks), {}))
    preconditioner.factorise(torch.ones(4, dtype=torch.float64))
    solved = preconditioner.solve(torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(solved, torch.full((4,), 0.5, dtype=torch.float64))


def test_no_rows_are_no_trouble():
    empty = {"a": torch.zeros(0, 2)}
    preconditioner = BlockPreconditioner(FlatLayout(empty), GaussNewtonBlocks(("a",), torch.zeros(0, 3), {}))
    preconditioner.factorise(torch.zeros(0))
    assert preconditioner.solve(torch.zeros(0)).shape == (0,)
