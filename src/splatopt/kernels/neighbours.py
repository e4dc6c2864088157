"""The exact nearest neighbours of every point, on the GPU.

Points are sorted along a space-filling curve, and runs of them are the leaves of a tree of boxes two levels high: a
box around each leaf, and one around each group of leaves. A program takes one leaf's points and searches the leaf
itself first, which bounds how far their neighbours are; then it walks over the groups, into those whose box comes
near enough to one of its points, and so into leaves. Every point of a leaf that is not looked at is farther than all
the neighbours found: nothing is approximate, wherever the curve leads.

A neighbour is one 64-bit number, the bits of its squared distance over its index, so that the least of them is the
nearest point and among equals the one of least index. The answer depends on neither the sort nor the tree.
"""

from __future__ import annotations

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton import next_power_of_2

from splatopt.core.checks import InputError
from splatopt.core.constants import MAX_COORDINATE
from splatopt.kernels.jit import jit

LEAF = 64
"""Points of a leaf, and of a program."""

GROUP = 64
"""Leaves of a group."""

WARPS = 8
"""Warps of a program: its 64 × 64 keys of 64 bits are 32 registers of each thread then; with four they spill."""

MAX_NEIGHBOURS = 64
"""So many neighbours of each of a leaf's points still fit into a program's registers."""

_NONE: tl.constexpr = tl.constexpr(0x7F800000 << 32)
"""No neighbour yet: an infinite distance."""

_SLACK: tl.constexpr = tl.constexpr(1 - 1e-6)
"""A box counts as this share nearer, squared, than it is computed, so that no rounding can hide a neighbour."""


@jit
def _beside(low, high, x):
    """How far ``x`` is from the interval."""
    return tl.maximum(tl.maximum(low - x, x - high), 0.0)


@jit
def _squared_gaps(low, high, box, boxes, x, y, z):
    """Squared distances from the points to some boxes, (points, boxes); infinite past the last box."""
    inside = box < boxes
    gap_x = _beside(
        tl.load(low + 3 * box, mask=inside)[None, :], tl.load(high + 3 * box, mask=inside)[None, :], x[:, None]
    )
    gap_y = _beside(
        tl.load(low + 3 * box + 1, mask=inside)[None, :], tl.load(high + 3 * box + 1, mask=inside)[None, :], y[:, None]
    )
    gap_z = _beside(
        tl.load(low + 3 * box + 2, mask=inside)[None, :], tl.load(high + 3 * box + 2, mask=inside)[None, :], z[:, None]
    )
    return tl.where(inside[None, :], gap_x * gap_x + gap_y * gap_y + gap_z * gap_z, float("inf"))


@jit
def _worst_distance(best):
    """The squared distance of the farthest neighbour that each point has so far."""
    return (tl.max(best, axis=1) >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@jit
def _searched(best, points, order, leaf, count, own, x, y, z, LEAF: tl.constexpr):
    """Take the points of one leaf into the neighbours of ``own``."""
    at = leaf * LEAF + tl.arange(0, LEAF)
    inside = at < count
    away_x = x[:, None] - tl.load(points + 3 * at, mask=inside, other=0.0)[None, :]
    away_y = y[:, None] - tl.load(points + 3 * at + 1, mask=inside, other=0.0)[None, :]
    away_z = z[:, None] - tl.load(points + 3 * at + 2, mask=inside, other=0.0)[None, :]
    squared = away_x * away_x + away_y * away_y + away_z * away_z
    index = tl.load(order + at, mask=inside, other=-1)
    key = (squared.to(tl.int32, bitcast=True).to(tl.int64) << 32) | index[None, :].to(tl.int64)
    key = tl.where(inside[None, :] & (index[None, :] != own[:, None]), key, _NONE)
    worst, nearest = tl.max(best, axis=1), tl.min(key, axis=1)
    # One candidate of each point a round, as long as any point still gets nearer.
    while tl.max((nearest < worst).to(tl.int32), axis=0) > 0:
        taken = (best == worst[:, None]) & (nearest < worst)[:, None]
        # Where several places are free the first of them is filled, not all.
        place = tl.arange(0, best.shape[1])[None, :]
        first = tl.min(tl.where(taken, place, best.shape[1]), axis=1)
        best = tl.where(place == first[:, None], nearest[:, None], best)
        key = tl.where(key == nearest[:, None], _NONE, key)
        worst, nearest = tl.max(best, axis=1), tl.min(key, axis=1)
    return best


@jit
def _nearest(
    points, order, leaf_low, leaf_high, group_low, group_high, out, count, leaves, groups,
    NEIGHBOURS: tl.constexpr, SLOTS: tl.constexpr, LEAF: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the keys of each point's neighbours, (count, SLOTS) and -1 in what is left over, in no order."""
    own_leaf = tl.program_id(0)
    at = own_leaf * LEAF + tl.arange(0, LEAF)
    inside = at < count
    # Past the end the last point stands in: its box is the leaf's own.
    stand_in = tl.minimum(at, count - 1)
    own = tl.load(order + stand_in)
    x, y, z = tl.load(points + 3 * stand_in), tl.load(points + 3 * stand_in + 1), tl.load(points + 3 * stand_in + 2)
    slot = tl.arange(0, SLOTS)[None, :] + tl.zeros((LEAF, 1), tl.int32)
    best = tl.where(slot < NEIGHBOURS, tl.full((LEAF, SLOTS), _NONE, tl.int64), -1)
    best = _searched(best, points, order, own_leaf, count, own, x, y, z, LEAF)
    for group in range(groups):
        first = group + tl.zeros((1,), tl.int32)
        reach = _squared_gaps(group_low, group_high, first, groups, x, y, z) * _SLACK
        if tl.max(tl.max((reach <= _worst_distance(best)[:, None]).to(tl.int32), axis=1), axis=0) > 0:
            leaf = group * GROUP + tl.arange(0, GROUP)
            gaps = _squared_gaps(leaf_low, leaf_high, leaf, leaves, x, y, z) * _SLACK
            near = tl.max((gaps <= _worst_distance(best)[:, None]).to(tl.int32), axis=0)
            near = tl.where(leaf == own_leaf, 0, near)
            while tl.max(near, axis=0) > 0:
                chosen = tl.min(tl.where(near > 0, leaf, leaves), axis=0)
                best = _searched(best, points, order, chosen, count, own, x, y, z, LEAF)
                still = tl.max((gaps <= _worst_distance(best)[:, None]).to(tl.int32), axis=0)
                near = tl.where(leaf == chosen, 0, near * still)
    out_at = own.to(tl.int64)[:, None] * SLOTS + slot
    tl.store(out + out_at, best, mask=inside[:, None] & (slot >= 0))


def nearest_neighbours(points: Float[Tensor, "n 3"], count: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return the ``count`` nearest other points of every point, and their squared distances.

    Nearest first, equally near ones by index; of points at one place each is a neighbour of the others, at distance
    0. Distances are Σ (xᵢ - xⱼ)² in float32. The search is exact and gives the same bits each time.

    Args:
        points: Float32 positions, contiguous, within ±1e18, fewer than 2²⁹.
        count: k, how many neighbours each point gets, 1 to 64.

    Returns:
        Indices (N, k), int64, and squared distances (N, k).

    Raises:
        InputError: There are too few points, k is out of range, or a position is none.
    """
    total = points.shape[0]
    if not 1 <= count <= MAX_NEIGHBOURS:
        raise InputError(f"the number of neighbours must be 1 to {MAX_NEIGHBOURS}, got {count}")
    if total <= count:
        raise InputError(
            f"{count} nearest neighbours need at least {count + 1} points, got {total}; ask for fewer neighbours, or "
            "start with more points"
        )
    if not bool((points.abs() <= MAX_COORDINATE).all()):
        raise InputError(f"a neighbour search needs finite positions within ±{MAX_COORDINATE:g}, but some are not")
    order = torch.argsort(_curve(points), stable=True)
    sorted_points = points[order].contiguous()
    leaf_low, leaf_high = _boxes(sorted_points, sorted_points, LEAF)
    group_low, group_high = _boxes(leaf_low, leaf_high, GROUP)
    slots = next_power_of_2(count)
    keys = torch.empty(total, slots, dtype=torch.int64, device=points.device)
    _nearest[(len(leaf_low),)](
        sorted_points, order.int(), leaf_low, leaf_high, group_low, group_high, keys, total,
        len(leaf_low), len(group_low), NEIGHBOURS=count, SLOTS=slots, LEAF=LEAF, GROUP=GROUP, num_warps=WARPS,
    )  # fmt: skip
    keys = keys.sort(dim=1).values[:, slots - count :]
    return keys & 0xFFFFFFFF, (keys >> 32).int().view(torch.float32)


def _boxes(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the boxes around runs of ``size`` boxes (or points), (runs, 3) each; the last run may be shorter."""
    missing = -low.shape[0] % size
    padded = [torch.cat([side, side[-1:].expand(missing, 3)]).view(-1, size, 3) for side in (low, high)]
    return padded[0].amin(dim=1), padded[1].amax(dim=1)


def _curve(points: Tensor) -> Tensor:
    """Return where points lie along a Z-shaped curve, int64: 21 bits of each coordinate, interleaved.

    Coordinates are squeezed into (-1, 1) by t/(1 + |t|), t the distance from the median in units of the median
    distance, so that a few points far out leave the curve its resolution where most points are.
    """
    away = points - points.median(dim=0).values
    away = away / away.abs().median().clamp_min(torch.finfo(points.dtype).tiny)
    away = away.clamp(-MAX_COORDINATE, MAX_COORDINATE)
    cell = ((away / (1 + away.abs()) + 1) * (1 << 20)).long().clamp_(0, (1 << 21) - 1)
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        cell = (cell | (cell << shift)) & mask
    return cell[:, 0] | (cell[:, 1] << 1) | (cell[:, 2] << 2)
