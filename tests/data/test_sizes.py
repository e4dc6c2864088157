"""Sizes that photographs are loaded at: 1600 pixels where nothing is said, decoded at a part of their size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from splatopt.commands.inspect import main as inspect_main
from splatopt.core.checks import InputError
from splatopt.data import Capture, CaptureOptions, image_store, inspect_capture, load_capture
from splatopt.data.capture import View, check_view
from splatopt.data.image_store import ImageSource, load_image
from splatopt.data.images import ImageHeader, read_channels
from splatopt.data.lens import Lens
from splatopt.data.masks import check_masks
from splatopt.data.seen_pixels import MaskUse
from splatopt.data.source import PosedImage

WIDTH, HEIGHT = 1808, 1208
DISTORTED = (0.06, -0.04, 0.001, -0.0005)
"""k1, k2, p1, p2 of a phone's lens."""


def photograph(width: int, height: int) -> np.ndarray:
    """Texture of as much contrast in every octave, edges, a lens's blur and a sensor's noise."""
    draws, picture = np.random.default_rng(0), np.zeros((height, width))
    for octave in range(1, 9):
        noise = draws.normal(size=(max(2, height >> octave), max(2, width >> octave))).astype(np.float32)
        picture += 14 * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    picture[height // 3 : height // 2, width // 5 : width // 2] += 60
    sharp = Image.fromarray(np.clip(128 + picture, 0, 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float64)[:, :, None]
    colors = blurred * (1.0, 0.9, 0.8) + draws.normal(size=(height, width, 3))
    return np.clip(colors, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A capture of four photographs that are larger than usual."""
    made = tmp_path_factory.mktemp("large") / "large"
    made.mkdir()
    frames = []
    for number in range(4):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * number, dtype=np.uint8)).save(made / f"{number}.jpg")
        pose = np.eye(4)
        pose[0, 3] = number
        frames.append({"file_path": f"{number}.jpg", "transform_matrix": pose.tolist()})
    lens = {"fl_x": 1500.0, "fl_y": 1510.0, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    (made / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    return made


def size_of(capture: Capture) -> tuple[int, int]:
    camera = capture.cameras[0]
    assert capture.images[0].shape == (camera.height, camera.width, 3)
    return camera.width, camera.height


def test_large_photographs_are_shrunk_where_nothing_is_said_and_that_is_said(folder, capsys):
    capture = load_capture(folder)
    assert size_of(capture) == (1600, 1069)
    assert capture.cameras[0].fx == pytest.approx(1500 * 1600 / WIDTH)
    sentence = "photographs of 1808x1208: used, shrunk to 1600x1069 as in 3DGS; --max-side 0 keeps all pixels"
    assert [str(one) for one in capture.found] == [sentence]
    assert sentence in [str(one) for one in inspect_capture(folder).found]
    assert inspect_main([str(folder)]) == 0
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (CaptureOptions(max_side=0), (WIDTH, HEIGHT)),
        (CaptureOptions(max_side=1700), (1700, 1136)),
        (CaptureOptions(max_side=4000), (WIDTH, HEIGHT)),
        (CaptureOptions(downscale=2), (904, 604)),
        (CaptureOptions(downscale=2, max_side=800), (800, 535)),
    ],
)
def test_what_is_asked_for_says_all(folder, options, size):
    capture = load_capture(folder, options)
    assert size_of(capture) == size
    assert capture.found == ()


def test_a_downscale_of_larger_photographs_is_not_shrunk_further():
    assert CaptureOptions(downscale=2).longest_side == 0
    assert CaptureOptions().longest_side == 1600
    assert CaptureOptions(max_side=0).longest_side == 0
    assert CaptureOptions(downscale=4, max_side=500).longest_side == 500
    with pytest.raises(InputError, match="0 for all pixels"):
        CaptureOptions(max_side=-1)


# ---------------------------------------------------------------------- decoding at a part of the size


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photograph") / "one.jpg"
    Image.fromarray(photograph(2048, 1536)).save(file, quality=92)
    return file


def source_of(file: Path, side: int, distortion: tuple[float, ...] = ()) -> ImageSource:
    model, focal = ("OPENCV" if distortion else "PINHOLE"), 1500.0
    lens = Lens(model, 2048, 1536, (focal, focal, 1024.0, 768.0, *distortion))
    pinhole = lens.pinhole()
    height = round(pinhole.height * side / pinhole.width)
    return ImageSource(file, lens, side, height)


@pytest.fixture
def reductions(monkeypatch) -> list[int]:
    """By how much each file that is decoded is reduced."""
    noted: list[int] = []

    def read(path: Path, *, reduction: int = 1) -> np.ndarray:
        noted.append(reduction)
        return read_channels(path, reduction=reduction)

    monkeypatch.setattr(image_store, "read_channels", read)
    return noted


@pytest.mark.parametrize(
    ("side", "distortion", "reduction"),
    [(900, (), 2), (400, (), 2), (250, (), 4), (600, DISTORTED, 2), (220, DISTORTED, 2)],
)
def test_a_photograph_of_reduced_decoding_is_the_one_of_whole_decoding(
    jpeg, reductions, monkeypatch, side, distortion, reduction
):
    source = source_of(jpeg, side, distortion)
    reduced = load_image(source, (0, 0, 0)).pixels.numpy().astype(np.float64)
    monkeypatch.setattr(image_store, "_REDUCTIONS", ())
    whole = load_image(source, (0, 0, 0)).pixels.numpy().astype(np.float64)
    assert reductions == [reduction, 1]
    assert whole.shape == reduced.shape == (source.height, source.width, 3)
    assert 10 * np.log10(255**2 / np.mean((reduced - whole) ** 2)) > 40


def test_nothing_is_reduced_that_is_hardly_shrunk_small_or_no_multiple(jpeg, reductions, tmp_path):
    load_image(source_of(jpeg, 1100), (0, 0, 0))
    load_image(source_of(jpeg, 900, DISTORTED), (0, 0, 0))
    small = tmp_path / "small.jpg"
    Image.fromarray(np.zeros((1200, 1600, 3), dtype=np.uint8)).save(small)
    load_image(ImageSource(small, Lens("PINHOLE", 1600, 1200, (900.0, 900.0, 800.0, 600.0)), 200, 150), (0, 0, 0))
    odd = tmp_path / "odd.jpg"
    Image.fromarray(np.zeros((1201, 1803, 3), dtype=np.uint8)).save(odd)
    load_image(ImageSource(odd, Lens("PINHOLE", 1803, 1201, (900.0, 900.0, 901.5, 600.5)), 300, 200), (0, 0, 0))
    assert reductions == [1, 1, 1, 1]


def test_a_format_without_reduced_decoding_is_decoded_whole(jpeg, tmp_path):
    file = tmp_path / "one.png"
    Image.open(jpeg).save(file, compress_level=1)
    expected = np.asarray(Image.open(file).resize((400, 300), Image.Resampling.BICUBIC))
    assert np.array_equal(load_image(source_of(file, 400), (0, 0, 0)).pixels.numpy(), expected)


def test_masks_of_a_reduced_photograph_hide_the_same_pixels(jpeg, tmp_path, monkeypatch):
    mask = tmp_path / "mask.png"
    Image.fromarray((np.arange(2048) < 1000).astype(np.uint8)[None].repeat(1536, 0) * 255).save(mask)
    for use in (MaskUse.AUTO, MaskUse.BACKGROUND):
        source = replace(source_of(jpeg, 500), mask=mask, use=use)
        with monkeypatch.context() as patched:
            reduced = load_image(source, (1, 0, 0))
            patched.setattr(image_store, "_REDUCTIONS", ())
            whole = load_image(source, (1, 0, 0))
        difference = np.abs(reduced.pixels.numpy().astype(float) - whole.pixels.numpy())
        assert difference.mean() < 2
        if use is MaskUse.AUTO:
            assert float((reduced.seen != whole.seen).float().mean()) < 0.005
    distorted = replace(source_of(jpeg, 400, DISTORTED), mask=mask)
    assert image_store._reduction(distorted) == 1


def test_another_file_than_was_checked_is_said_of_its_own_size(jpeg):
    lens = Lens("PINHOLE", 4096, 3072, (900.0, 900.0, 2048.0, 1536.0))
    with pytest.raises(InputError, match="is 2048x1536 but its camera is 4096x3072"):
        load_image(ImageSource(jpeg, lens, 500, 375), (0, 0, 0))


@pytest.mark.parametrize("whole", [(1600, 1067), (1067, 1600), (4032, 3024), (4946, 3286)])
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("rounded", [math.floor, round, math.ceil])
def test_a_smaller_copy_may_be_rounded_either_way(tmp_path, whole, factor, rounded):
    size = rounded(whole[0] / factor), rounded(whole[1] / factor)
    Image.new("RGB", size).save(tmp_path / "a.png")
    Image.new("L", size, 255).save(tmp_path / "mask.png")
    pinhole = Lens("PINHOLE", *whole, (900.0, 900.0, whole[0] / 2, whole[1] / 2))
    view = check_view(PosedImage("a.png", tmp_path / "a.png", torch.eye(4), pinhole))
    assert (view.lens.width, view.lens.height) == size
    posed = PosedImage("a.png", tmp_path / "a.png", torch.eye(4), pinhole, mask=tmp_path / "mask.png")
    large = View(posed, ImageHeader(*whole, False), pinhole)
    assert check_masks([large], MaskUse.AUTO).problems == ()


@pytest.mark.parametrize("size", [(400, 264), (397, 267), (400, 400), (267, 400), (1600, 1066), (1599, 1067)])
def test_other_shapes_are_refused_still(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    pinhole = Lens("PINHOLE", 1600, 1067, (900.0, 900.0, 800.0, 533.5))
    with pytest.raises(InputError, match=f"is {size[0]}x{size[1]} pixels but its camera is 1600x1067"):
        check_view(PosedImage("a.png", tmp_path / "a.png", torch.eye(4), pinhole))
