"""Tile lists: which Gaussians touch which tile, front to back.

Gaussians are sorted by depth (stable, ties by row) before tile entries are made of them, so that the entries need to be
sorted by tile alone: 16-bit keys, two passes of a radix sort where 64-bit keys of tile and depth take six. An
entry's *slot* is its place before that sort: a Gaussian's slots are consecutive, which is where a backward
pass leaves its sums and how they are added in a fixed order without atomics.

A Gaussian's tiles are those that the ellipse {α ≥ 1/255} meets, row of tiles by row of tiles, not its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from splatopt.kernels.geometry import number
from splatopt.kernels.jit import jit
from splatopt.kernels.projection import ROWS, SPLAT, TILE, SplatBuffers
from splatopt.kernels.view import MIN_ALPHA


@dataclass(frozen=True)
class TileLists:
    """The Gaussians of every tile.

    Attributes:
        gaussians: Rows of the cloud by tile, front to back within a tile, (M,) int32.
        slots: Where each entry's sums go, (M,) int32.
        begin: First entry of each tile, (T + 1,) int32; the last is M.
        slot_begin: First slot of each Gaussian, (N,) int32.
        slot_count: How many it has, (N,) int32.
        tiles_x: Tiles across.
        tiles_y: Tiles down.
    """

    gaussians: Tensor
    slots: Tensor
    begin: Tensor
    slot_begin: Tensor
    slot_count: Tensor
    tiles_x: int
    tiles_y: int


@jit
def rows_kernel(order, row_first, row_count, row_begin, gaussians, rows, N, BLOCK: tl.constexpr):
    """Write, for Gaussians in order of depth, one item for each row of tiles that they touch."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gaussian = tl.load(order + at, at < N, 0)
    count = tl.load(row_count + gaussian, at < N, 0)
    first = tl.load(row_first + gaussian, at < N, 0)
    begin = tl.load(row_begin + at, at < N, 0)
    max_count = tl.max(count)
    done = max_count * 0
    while done < max_count:
        tl.store(gaussians + begin + done, gaussian.to(tl.int32), done < count)
        tl.store(rows + begin + done, first + done, done < count)
        done += 1


@jit
def half_width(reach, a11, a22, dy):
    """Return half the ellipse's width at ``dy`` below its centre."""
    return tl.sqrt(tl.maximum(reach - a22 * dy * a22 * dy, 0.0)) / a11


@jit
def spans_kernel(
    view,
    splats,
    gaussians,
    rows,
    first,
    count,
    R,
    tiles_x,
    TILE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the columns of tiles that the ellipse |A d|² ≤ reach meets within a row of tiles.

    With A = [[a11, a12], [0, a22]] its edges lie at x = -a12/a11·dy ± √(reach - (a22·dy)²)/a11, furthest right at
    dy = -a12·reach/(a11·a22²·half_x); the strip's rightmost point is that one, moved into the strip.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < R
    splat = splats + tl.load(gaussians + at, inside, 0).to(tl.int64) * SPLAT
    mean_x, mean_y = tl.load(splat, inside, 0.0), tl.load(splat + 1, inside, 0.0)
    a11, a12 = tl.load(splat + 2, inside, 1.0), tl.load(splat + 3, inside, 0.0)
    a22 = tl.load(splat + 4, inside, 1.0)
    reach = tl.maximum(tl.load(splat + 5, inside, 0.0) - tl.log2(number(view, MIN_ALPHA)), 0.0)
    shear = a12 / a11
    half_y = tl.sqrt(reach) / a22
    half_x = tl.sqrt(reach * (1 / (a11 * a11) + shear * shear / (a22 * a22)))
    tip = tl.where(half_x > 0, -shear * reach / (a22 * a22 * tl.maximum(half_x, 1e-37)), 0.0)
    top = tl.load(rows + at, inside, 0) * TILE_SIZE + 0.5 - mean_y
    top, bottom = tl.maximum(top, -half_y), tl.minimum(top + TILE_SIZE - 1, half_y)
    right_dy = tl.minimum(tl.maximum(tip, top), bottom)
    left_dy = tl.minimum(tl.maximum(-tip, top), bottom)
    # 1e-3 pixels over the rounding of all this.
    right = mean_x - shear * right_dy + half_width(reach, a11, a22, right_dy) + 1e-3
    left = mean_x - shear * left_dy - half_width(reach, a11, a22, left_dy) - 1e-3
    low = tl.ceil((tl.minimum(tl.maximum(left, -1e6), 1e6) - (TILE_SIZE - 0.5)) / TILE_SIZE).to(tl.int32)
    high = tl.floor((tl.minimum(tl.maximum(right, -1e6), 1e6) - 0.5) / TILE_SIZE).to(tl.int32)
    low, high = tl.maximum(low, 0), tl.minimum(high, tiles_x - 1)
    tl.store(first + at, low, inside)
    tl.store(count + at, tl.maximum(high - low + 1, 0), inside)


@jit
def entries_kernel(
    gaussians,
    rows,
    first,
    count,
    begin,
    keys,
    owners,
    R,
    tiles_x,
    BLOCK: tl.constexpr,
):
    """Write one entry for each tile of each row: its tile and its Gaussian."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < R
    gaussian = tl.load(gaussians + at, inside, 0)
    tile = tl.load(rows + at, inside, 0) * tiles_x + tl.load(first + at, inside, 0)
    columns = tl.load(count + at, inside, 0)
    slot = tl.load(begin + at, inside, 0)
    max_count = tl.max(columns)
    done = max_count * 0
    while done < max_count:
        tl.store(keys + slot + done, (tile + done).to(keys.dtype.element_ty), done < columns)
        tl.store(owners + slot + done, gaussian, done < columns)
        done += 1


def _begins(counts: Tensor) -> tuple[Tensor, int]:
    """Return where each run begins, int32, and how much there is in all; waits for the device."""
    ends = counts.cumsum(0, dtype=torch.int64)
    total = int(ends[-1]) if counts.numel() else 0
    if total >= 2**31:
        raise ValueError(f"one view has {total:,} tile entries, more than 2³¹; render it in parts or smaller")
    return (ends - counts).to(torch.int32), total


def make_tile_lists(view: Tensor, projected: SplatBuffers, width: int, height: int) -> TileLists:
    """Make the tile lists of a view.

    Args:
        view: Of :func:`~splatopt.kernels.view.pack_view`.
        projected: N splats.
        width: Pixels.
        height: Pixels.

    Raises:
        ValueError: There are 2³¹ entries or more.
    """
    device, count = projected.splats.device, projected.depths.numel()
    tiles_x, tiles_y = triton.cdiv(width, TILE), triton.cdiv(height, TILE)

    def integers(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    order = torch.sort(projected.depths, stable=True).indices
    row_begin, row_total = _begins(projected.row_count[order])
    row_gaussian, rows, first, columns = (integers(row_total) for _ in range(4))
    grid = (triton.cdiv(row_total, ROWS),)
    if row_total:
        rows_kernel[(triton.cdiv(count, ROWS),)](
            order, projected.row_first, projected.row_count, row_begin, row_gaussian, rows, count, BLOCK=ROWS
        )
        spans_kernel[grid](
            view, projected.splats, row_gaussian, rows, first, columns, row_total, tiles_x, TILE_SIZE=TILE, BLOCK=ROWS
        )
    begin, total = _begins(columns)
    # Tile numbers of up to 181x181 tiles, 2896x2896 pixels, fit 16 bits.
    keys = integers(total, torch.int16 if tiles_x * tiles_y < 2**15 else torch.int32)
    owners = integers(total)
    if total:
        entries_kernel[grid](row_gaussian, rows, first, columns, begin, keys, owners, row_total, tiles_x, BLOCK=ROWS)
    by_tile = torch.sort(keys, stable=True)
    numbers = torch.arange(tiles_x * tiles_y + 1, dtype=keys.dtype, device=device)
    slot_begin, slot_count = _slots(order, row_begin, begin, projected.row_count, total)
    return TileLists(
        gaussians=owners[by_tile.indices],
        slots=by_tile.indices.to(torch.int32),
        begin=torch.searchsorted(by_tile.values, numbers, out_int32=True),
        slot_begin=slot_begin,
        slot_count=slot_count,
        tiles_x=tiles_x,
        tiles_y=tiles_y,
    )


def _slots(order: Tensor, row_begin: Tensor, begin: Tensor, row_count: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return each Gaussian's first slot and how many it has; its rows of tiles are consecutive too."""
    ends = torch.nn.functional.pad(begin, (0, 1), value=total)
    first = ends[row_begin.long()]
    after = ends[(row_begin + row_count[order]).long()]
    slot_begin, slot_count = torch.empty_like(row_count), torch.empty_like(row_count)
    slot_begin[order] = first
    slot_count[order] = after - first
    return slot_begin, slot_count
