"""Which values of a mask's pixels count, and what is said where none do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from capture_cases import HEIGHT, WIDTH, write_colmap
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, inspect_capture, load_capture
from splatopt.data.images import read_mask
from splatopt.data.seen_pixels import MaskUse


def write_masked(path: Path, value: int, views: int = 3, dtype: type = np.uint8) -> None:
    """Write a capture whose masks are ``value`` in the left half."""
    write_colmap(path, views=views)
    (path / "masks").mkdir()
    values = (np.arange(WIDTH)[None, :].repeat(HEIGHT, 0) < WIDTH // 2).astype(dtype) * dtype(value)
    for index in range(views):
        Image.fromarray(values).save(path / "masks" / f"image_{index:03d}.png")


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("values", [[0, 0, 1, 1], [0, 0, 255, 255], [0, 127, 128, 255], [0, 32767, 32768, 65535]])
def test_masks_of_16_bits_are_read_by_what_they_hold(tmp_path: Path, values: list[int], ending: str) -> None:
    file = tmp_path / f"mask.{ending}"
    Image.fromarray(np.array([values], dtype=np.uint16)).save(file)
    assert read_mask(file).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (7, np.uint8, "their highest value is 7, which looks like class numbers, and pixels count from half of 255 on"),
        (1023, np.uint16, "their highest value is 1023, and pixels count from half of 65535 on"),
        (0, np.uint8, "leave none of their pixels; left out are image_000.png"),
    ],
)
def test_masks_that_leave_too_few_views_are_named_as_the_reason(
    tmp_path: Path, value: int, dtype: type, said: str
) -> None:
    write_masked(tmp_path, value, dtype=dtype)
    with pytest.raises(InputError, match="the capture has 0 views") as raised:
        load_capture(tmp_path)
    assert str(raised.value).startswith("the masks of 3 views leave none of their pixels; ")
    assert said in str(raised.value)
    summary = inspect_capture(tmp_path)
    assert any(said in warning for warning in summary.warnings)
    assert any("0 views" in problem for problem in summary.problems)


def test_class_numbers_are_told_where_the_background_is_laid_under_them(tmp_path: Path) -> None:
    write_masked(tmp_path, 3)
    (warning,) = load_capture(tmp_path, CaptureOptions(mask=MaskUse.BACKGROUND)).warnings
    assert warning.startswith("the masks of 3 views leave none of their pixels; their highest value is 3, which looks")
