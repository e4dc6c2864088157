"""The captures that the benchmark of masks trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.masking import cover, draw_mask

from splatopt.data import load_capture, make_capture


def test_half_of_the_cells_are_masked() -> None:
    mask = draw_mask(40, 60, 20, np.random.default_rng(0))
    assert mask.shape == (40, 60)
    assert sorted(mask[::20, ::20].ravel()) == [0, 0, 0, 255, 255, 255]
    assert (mask == mask[::20, ::20].repeat(20, axis=0).repeat(20, axis=1)).all()
    assert draw_mask(7, 9, 4, np.random.default_rng(1)).shape == (7, 9)


def test_a_covered_copy_is_a_capture_whose_masks_are_found(tmp_path: Path) -> None:
    make_capture(tmp_path / "capture", views=3, width=48, height=40)
    cover(tmp_path / "capture", tmp_path / "copy", 8, 0)
    plain, copy = load_capture(tmp_path / "capture"), load_capture(tmp_path / "copy")
    for view in range(3):
        seen = copy.images.seen(view)
        assert seen is not None
        assert float(seen.float().mean()) == 0.5
        same = (copy.images[view] == plain.images[view]).all(dim=-1)
        assert bool(same[seen].all())
        assert float(same[~seen].float().mean()) < 0.01
