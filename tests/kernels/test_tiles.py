"""Tile lists: who is in them, in which order, and where their sums go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from kernels.views import TINY, prepare, tiny
from raster.cases import make_camera
from splatopt.kernels.projection import TILE
from splatopt.raster.constants import MIN_ALPHA
from splatopt.raster.reference_blend import pixel_centers, unclamped_alpha
from splatopt.raster.reference_projection import project_reference


@pytest.mark.parametrize("view", TINY, ids=lambda view: view.name)
def test_every_pair_that_can_be_seen_is_in_its_tiles_list_front_to_back(view, device):
    lists = prepare(view, device).lists
    camera = view.case.camera
    splats = project_reference(view.cloud(), camera, view.case.options)
    entries = 0
    for tile in range(lists.tiles_x * lists.tiles_y):
        rows = range(tile // lists.tiles_x * TILE, min(camera.height, (tile // lists.tiles_x + 1) * TILE))
        columns = range(tile % lists.tiles_x * TILE, min(camera.width, (tile % lists.tiles_x + 1) * TILE))
        alpha = unclamped_alpha(splats, pixel_centers(splats.means, rows, columns))
        needed = splats.index[(alpha >= MIN_ALPHA * (1 + 1e-4)).any(0)].tolist()
        listed = lists.gaussians[lists.begin[tile] : lists.begin[tile + 1]].tolist()
        entries += len(listed)
        in_depth_order = [row for row in splats.index.tolist() if row in listed]
        assert listed == in_depth_order
        assert set(needed) <= set(listed)
    assert entries == lists.gaussians.numel() == int(lists.begin[-1])


def test_a_needle_across_tiles_is_listed_where_it_goes_and_not_in_its_bounding_box(device):
    view = tiny("needles", count=12)
    view = replace(view, case=replace(view.case, camera=make_camera(96, 80)))
    drawn = prepare(view, device)
    mean, (a11, a12, a22) = drawn.splats.splats[:, :2], drawn.splats.splats[:, 2:5].unbind(1)
    reach = (drawn.splats.splats[:, 5] - math.log2(MIN_ALPHA)).clamp_min(0)
    half = torch.stack([(reach / a11**2 + reach * (a12 / (a11 * a22)) ** 2).sqrt(), reach.sqrt() / a22], dim=1)
    upper = torch.tensor([6, 5], device=device)
    first = ((mean - half) / TILE).floor().clamp_min(0).minimum(upper)
    after = ((mean + half) / TILE).ceil().clamp_min(0).minimum(upper)
    box = (after - first).prod(dim=1) * (drawn.splats.row_count > 0)
    entries = drawn.lists.slot_count
    assert (entries <= box).all()
    assert entries.sum() < 0.6 * box.sum()


@pytest.mark.parametrize("name", ["giants", "degree_3"])
def test_slots_are_consecutive_for_each_gaussian(name, device):
    lists = prepare(tiny(name), device).lists
    assert sorted(lists.slots.tolist()) == list(range(lists.slots.numel()))
    owner = torch.empty_like(lists.gaussians)
    owner[lists.slots.long()] = lists.gaussians
    for row, (begin, count) in enumerate(zip(lists.slot_begin.tolist(), lists.slot_count.tolist(), strict=True)):
        assert (owner[begin : begin + count] == row).all()
    assert int(lists.slot_count.sum()) == lists.slots.numel()
