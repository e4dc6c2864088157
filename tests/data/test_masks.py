"""Masks of photographs: where they are looked for, what they mean, and that masked pixels leave no trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import HEIGHT, LENSES, WIDTH, lens, picture, write_colmap, write_transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import Capture, CaptureOptions, inspect_capture, load_capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.data.image_store import ImageSource, ImageStore, load_image
from splatopt.data.images import read_mask
from splatopt.data.lens import Lens
from splatopt.data.masks import with_masks
from splatopt.data.prefetch import DeviceImages
from splatopt.data.seen_pixels import MaskUse, resized, undistorted
from splatopt.data.source import PosedImage, Source
from splatopt.runs.trained_on import difference

BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
INTRINSICS = {"fl_x": 60.0, "fl_y": 62.0, "cx": 41.0, "cy": 29.0, "w": WIDTH, "h": HEIGHT}
LEFT = np.arange(WIDTH)[None, :].repeat(HEIGHT, 0) < WIDTH // 2
"""The left half."""


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def save_mask(path: Path, seen: np.ndarray = LEFT) -> Path:
    return save(path, seen.astype(np.uint8) * 255)


def found_masks(root: Path, *files: str, named: str | None = None) -> list[str | None]:
    """Where the masks of photographs at ``files`` are found, below the capture."""
    pinhole = Lens("PINHOLE", WIDTH, HEIGHT, tuple(LENSES["PINHOLE"]))
    mask = None if named is None else root / named
    images = [
        PosedImage(file.partition("/")[2] or file, root / file, torch.eye(4), pinhole, "", mask) for file in files
    ]
    found = with_masks(root, Source("colmap", tuple(images), None)).images
    return [None if one.mask is None else str(one.mask.relative_to(root)) for one in found]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.jpg", "masks/a.jpg"),
        ("images/a.jpg", "masks/a.jpg.png"),
        ("images/a.jpg", "masks/a.png"),
        ("images/a.png", "mask/a.png"),
        ("images/cam1/a.jpg", "masks/cam1/a.jpg.png"),
        ("images_4/a.png", "masks_4/a.png"),
        ("images_4/a.png", "masks/a.png"),
        ("rgb/a.png", "masks/a.png"),
        ("a.png", "masks/a.png"),
        ("images/a.jpg", "images/a_mask.JPG"),
    ],
)
def test_a_mask_has_the_name_of_its_photograph(tmp_path: Path, image: str, mask: str) -> None:
    save_mask(tmp_path / mask)
    assert found_masks(tmp_path, image) == [mask]
    assert found_masks(tmp_path, image.replace("a.", "b.")) == [None]


def test_the_nearer_mask_is_taken(tmp_path: Path) -> None:
    for name in ("masks/a.png", "masks/a.jpg.png", "masks_2/a.jpg", "masks/named.png"):
        save_mask(tmp_path / name)
    assert found_masks(tmp_path, "images/a.jpg") == ["masks/a.jpg.png"], "and not that of a.png"
    assert found_masks(tmp_path, "images_2/a.jpg") == ["masks_2/a.jpg"]
    assert found_masks(tmp_path, "images/a.jpg", named="masks/named.png") == ["masks/named.png"]
    assert found_masks(tmp_path, "images/a.jpg", named="masks/gone.png") == ["masks/a.jpg.png"]


def test_equal_names_in_two_folders_of_photographs_are_told_apart(tmp_path: Path) -> None:
    save_mask(tmp_path / "masks" / "r_0.png")
    save_mask(tmp_path / "masks" / "test" / "r_1.png")
    assert found_masks(tmp_path, "train/r_1.png", "test/r_1.png") == [None, "masks/test/r_1.png"]


def test_names_that_lead_elsewhere_lead_to_no_mask(tmp_path: Path) -> None:
    (tmp_path / "capture" / "masks").mkdir(parents=True)
    save_mask(tmp_path / "a.png")
    assert found_masks(tmp_path / "capture", "images/../../a.png") == [None]


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([0, 127, 128, 255], "L"),
        ([0, 0, 1, 1], "L"),
        ([0, 0, 255, 255], "1"),
        ([0, 127 << 8, 128 << 8, 65535], "I;16"),
    ],
)
def test_half_decides(tmp_path: Path, values: list[int], mode: str) -> None:
    image = Image.fromarray(np.array([values], dtype=np.uint16 if mode == "I;16" else np.uint8))
    (image.convert("1") if mode == "1" else image).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, True, True]]


def test_colours_and_alpha_of_a_mask_are_read_as_grey_over_black(tmp_path: Path) -> None:
    colors = [[0, 0, 0, 255], [255, 0, 0, 255], [255, 255, 255, 255], [255, 255, 255, 0]]
    Image.fromarray(np.array([colors], dtype=np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True, True, False]]


# ---------------------------------------------------------------------- whole captures


def masked_transforms(path: Path, views: int = 5) -> Path:
    """The capture of nerfstudio's ``mask_path``: the right half of each photograph is masked noise."""
    write_transforms(path, INTRINSICS, views=views)
    content = json.loads((path / "transforms.json").read_text())
    rng = np.random.default_rng(0)
    for index, frame in enumerate(content["frames"]):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        save(path / frame["file_path"], np.where(LEFT[:, :, None], picture(seed=index), noise))
        frame["mask_path"] = str(save_mask(path / "masks" / f"{index:04d}.png").relative_to(path))
    (path / "transforms.json").write_text(json.dumps(content))
    return path


def masked_colmap(path: Path, views: int = 5) -> Path:
    write_colmap(path, views=views)
    for index in range(views):
        save_mask(path / "masks" / f"image_{index:03d}.png.png")
    return path


def check_left_half(capture: Capture) -> None:
    assert capture.images.weights is not None
    for view in range(len(capture.cameras)):
        weights = capture.images.weights[view]
        assert weights is not None
        assert weights.dtype == torch.float32
        assert torch.equal(weights.bool(), torch.from_numpy(LEFT))
        assert not capture.images[view][~torch.from_numpy(LEFT)].any()


@pytest.mark.parametrize("write", [masked_transforms, masked_colmap])
def test_masks_of_a_capture_are_read_and_told(tmp_path: Path, write, capsys) -> None:
    capture = load_capture(write(tmp_path))
    check_left_half(capture)
    expected = "masks of 5 of 5 views (masks): used, pixels of 0 have no weight in loss, scores and growth"
    assert [str(one) for one in capture.found] == [expected]
    assert capture.warnings == ()
    summary = inspect_capture(tmp_path)
    assert [str(one) for one in summary.found] == [expected]
    assert summary.problems == ()


def test_one_mask_may_be_for_all_photographs(tmp_path: Path) -> None:
    write_transforms(tmp_path, {**INTRINSICS, "mask_path": "mask.png"}, views=3)
    save_mask(tmp_path / "mask.png")
    check_left_half(load_capture(tmp_path))
    write_transforms(tmp_path, {**INTRINSICS, "mask_path": 7}, views=3)
    with pytest.raises(InputError, match="'mask_path' must name an image"):
        load_capture(tmp_path)


def test_views_without_a_mask_count_wholly_and_are_warned_of_once(tmp_path: Path) -> None:
    masked_transforms(tmp_path)
    for index in (1, 3):
        (tmp_path / "masks" / f"{index:04d}.png").unlink()
    capture = load_capture(tmp_path)
    (warning,) = capture.warnings
    assert warning.startswith("2 of 5 masks that the capture names are not there, such as ")
    assert capture.images.weights is not None
    assert [capture.images.weights[view] is None for view in range(5)] == [False, True, False, True, False]


def test_a_folder_with_masks_of_some_views_is_told(tmp_path: Path) -> None:
    masked_colmap(tmp_path)
    (tmp_path / "masks" / "image_002.png.png").unlink()
    (warning,) = load_capture(tmp_path).warnings
    assert warning == "1 of 5 views have no mask, such as 'image_002.png'; all pixels of those views count"


def test_a_folder_of_masks_that_fit_no_name_is_told_as_not_used(tmp_path: Path) -> None:
    masked_colmap(tmp_path)
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    for index, file in enumerate(sorted((tmp_path / "elsewhere").iterdir())):
        save_mask(tmp_path / "masks" / f"frame{index}.png")
        file.unlink()
    capture = load_capture(tmp_path)
    assert capture.warnings == ("5 images in masks: not used, none has the name of a photograph",)
    assert capture.images.weights is None


def test_masks_that_mean_the_opposite_are_told_as_not_used(tmp_path: Path) -> None:
    write_transforms(tmp_path, INTRINSICS, views=3)
    for index in range(2):
        save_mask(tmp_path / "images" / f"dynamic_mask_{index:04d}.png")
    (warning,) = load_capture(tmp_path).warnings
    assert warning.startswith("2 images dynamic_mask_….png: not used, instant-ngp leaves out their white pixels")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_mask_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    masked_colmap(tmp_path)
    (tmp_path / "masks" / "image_003.png.png").write_bytes(content)
    for options in (CaptureOptions(), CaptureOptions(skip_missing=True)):
        with pytest.raises(InputError, match=r"mask .*image_003\.png\.png is missing, truncated or no image"):
            load_capture(tmp_path, options)
    (problem,) = inspect_capture(tmp_path).problems
    assert "image_003.png.png" in problem


def test_a_mask_of_another_shape_is_refused_and_one_of_another_size_fits(tmp_path: Path) -> None:
    masked_colmap(tmp_path)
    file = tmp_path / "masks" / "image_001.png.png"
    save_mask(file, LEFT[::4, ::4])
    check_left_half(load_capture(tmp_path))
    save_mask(file, LEFT.repeat(3, 0).repeat(3, 1))
    check_left_half(load_capture(tmp_path))
    save_mask(file, LEFT.T)
    with pytest.raises(InputError, match=r"image_001\.png\.png is 60x80 pixels but its photograph 'image_001"):
        load_capture(tmp_path)


def test_a_view_of_which_nothing_is_left_is_left_out(tmp_path: Path) -> None:
    masked_colmap(tmp_path)
    save_mask(tmp_path / "masks" / "image_002.png.png", np.zeros_like(LEFT))
    capture = load_capture(tmp_path)
    assert [camera.name for camera in capture.cameras] == [f"image_{index:03d}.png" for index in (0, 1, 3, 4)]
    assert capture.warnings == ("the masks of 1 views leave none of their pixels; left out are image_002.png",)
    summary = inspect_capture(tmp_path)
    assert (summary.train, summary.test, summary.warnings) == (3, 1, capture.warnings)
    assert len(load_capture(tmp_path, CaptureOptions(mask=MaskUse.BACKGROUND)).cameras) == 5


def test_smaller_photographs_take_their_own_masks_else_smaller_ones(tmp_path: Path) -> None:
    masked_colmap(tmp_path)
    for file in (tmp_path / "images").iterdir():
        small = np.asarray(Image.open(file).resize((WIDTH // 4, HEIGHT // 4)))
        save(tmp_path / "images_4" / file.name, small)
    options = CaptureOptions(images="images_4")
    seen = load_capture(tmp_path, options).images.seen(0)
    assert seen is not None
    assert torch.equal(seen, torch.from_numpy(LEFT[::4, ::4]))
    save_mask(tmp_path / "masks_4" / "image_000.png", ~LEFT[::4, ::4])
    seen = load_capture(tmp_path, options).images.seen(0)
    assert seen is not None
    assert torch.equal(seen, torch.from_numpy(~LEFT[::4, ::4]))


def test_background_lays_it_under_masked_pixels_as_alpha_does(tmp_path: Path) -> None:
    masked_colmap(tmp_path / "masked", views=3)
    write_colmap(tmp_path / "alpha", views=3)
    for file in (tmp_path / "alpha" / "images").iterdir():
        alpha = LEFT.astype(np.uint8)[:, :, None] * 255
        save(file, np.concatenate([np.asarray(Image.open(file)), alpha], axis=2))
    color = (0.2, 0.4, 0.6)
    masked = load_capture(tmp_path / "masked", CaptureOptions(mask=MaskUse.BACKGROUND, background=color))
    clear = load_capture(tmp_path / "alpha", CaptureOptions(background=color))
    assert masked.background == clear.background == color
    assert masked.images.weights is None
    for view in range(3):
        pairs = zip(masked.images.with_alpha(view), clear.images.with_alpha(view), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert masked.images[view][0, -1].tolist() == [51, 102, 153]
    assert "pixels of 0 show the background" in str(masked.found[0])


def test_alpha_is_a_mask_where_that_is_asked_for_alone(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=3)
    pixels = np.concatenate(
        [picture(), np.arange(WIDTH, dtype=np.uint8).repeat(HEIGHT).reshape(WIDTH, -1).T[..., None] * 3], 2
    )
    for file in (tmp_path / "images").iterdir():
        save(file, pixels)
    usual, ignoring = (load_capture(tmp_path, CaptureOptions(mask=use)) for use in (MaskUse.AUTO, MaskUse.IGNORE))
    assert usual.images.weights is None
    share = pixels[..., 3:].astype(np.float32) / 255
    laid = np.rint(pixels[..., :3].astype(np.float32) * share + 255 * (1 - share))
    np.testing.assert_array_equal(usual.images[0].numpy(), laid)
    assert usual.background == WHITE
    seen = ignoring.images.seen(0)
    assert seen is not None
    np.testing.assert_array_equal(seen.numpy(), pixels[..., 3] >= 128)
    np.testing.assert_array_equal(ignoring.images[0].numpy(), np.where(seen[..., None], pixels[..., :3], 0))
    assert ignoring.background == BLACK
    assert ignoring.images.with_alpha(0)[1] is None
    assert [str(one) for one in (*usual.found, *ignoring.found)] == [
        "alpha of 3 of 3 views: used, see-through pixels show the background",
        "alpha of 3 of 3 views: used, see-through pixels have no weight in loss, scores and growth",
    ]


# ---------------------------------------------------------------------- pixels


@st.composite
def masked_pictures(draw):
    """Two images that differ in masked pixels alone, the mask, and a size."""
    height, width = draw(st.integers(3, 24)), draw(st.integers(3, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    first, second = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    block = draw(st.integers(1, 8))
    coarse = rng.random((-(-height // block), -(-width // block))) < draw(st.floats(0, 1))
    seen = coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
    size = draw(st.integers(1, width)), draw(st.integers(1, height))
    return first, np.where(seen[:, :, None], first, second), seen, size


@settings(max_examples=60, deadline=None)
@given(masked_pictures())
def test_masked_pixels_leave_no_trace_in_smaller_images(case) -> None:
    first, second, seen, size = case
    (one, left), (other, also) = resized(first, seen, size), resized(second, seen, size)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(left, also)
    assert not one[~left].any()
    plain = np.asarray(Image.fromarray(first).resize(size, Image.Resampling.BICUBIC))
    whole, all_left = resized(first, np.ones_like(seen), size)
    assert all_left.all()
    np.testing.assert_array_equal(whole, plain)


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_masked_pixels_leave_no_trace_in_undistorted_images(model: str) -> None:
    rng = np.random.default_rng(1)
    seen = (rng.random((HEIGHT // 6, WIDTH // 8)) < 0.5).repeat(6, 0).repeat(8, 1)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    distorted = Lens(model, WIDTH, HEIGHT, tuple(LENSES[model]))
    (one, left), (other, _) = (
        undistorted(np.where(seen[:, :, None], picture(), behind), seen, distorted) for behind in (noise, np.uint8(0))
    )
    np.testing.assert_array_equal(one, other)
    plain = distorted.undistort(picture())
    share = distorted.undistort((seen * np.uint8(255))[:, :, None].repeat(3, 2))[:, :, 0]
    np.testing.assert_array_equal(left, share >= 128)
    assert np.abs(one[share == 255].astype(int) - plain[share == 255]).max() <= 1, "255 may be rounded up"
    assert np.abs(one[left].astype(int) - plain[left]).max() < 60, "of the edge's pixels too, the picture being smooth"
    whole, _ = undistorted(picture(), np.ones_like(seen), distorted)
    np.testing.assert_array_equal(whole, plain)


def test_edges_have_the_colour_of_what_is_seen() -> None:
    grey, seen = np.full((40, 40, 3), 100, dtype=np.uint8), np.random.default_rng(2).random((40, 40)) < 0.5
    small, left = resized(grey, seen, (20, 20))
    assert set(small[left].reshape(-1).tolist()) == {100}
    share = seen.reshape(20, 2, 20, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(left, share >= 0.5)


def test_a_loaded_view_is_undistorted_and_resized_with_its_mask(tmp_path: Path) -> None:
    mask, file = save_mask(tmp_path / "mask.png"), save(tmp_path / "image.png", picture())
    distorted = Lens("OPENCV", WIDTH, HEIGHT, tuple(LENSES["OPENCV"]))
    pinhole = distorted.pinhole()
    source = ImageSource(file, distorted, pinhole.width // 2, pinhole.height // 2)
    plain, masked = load_image(source, BLACK), load_image(replace(source, mask=mask), BLACK)
    assert plain.seen is None
    assert masked.seen is not None
    assert masked.pixels.shape == plain.pixels.shape
    inner = masked.seen[:, 4:] & masked.seen[:, :-4]
    assert torch.equal(masked.pixels[:, :-4][inner], plain.pixels[:, :-4][inner])
    assert 0.4 < float(masked.seen.float().mean()) < 0.6


def test_a_store_counts_masks_against_its_budget(tmp_path: Path) -> None:
    mask = save_mask(tmp_path / "mask.png")
    pinhole = Lens("PINHOLE", WIDTH, HEIGHT, tuple(LENSES["PINHOLE"]))
    files = [save(tmp_path / f"{index}.png", picture(seed=index)) for index in range(3)]
    sources = [ImageSource(file, pinhole, WIDTH, HEIGHT, mask=mask) for file in files]
    store = ImageStore(sources, BLACK, 2 * WIDTH * HEIGHT * 4)
    for index in range(3):
        assert store.seen(index) is not None
    assert store.cached_bytes == 2 * WIDTH * HEIGHT * 4
    assert ImageStore(sources[:1], BLACK, 0).seen(0) is not None


def test_weights_are_fetched_with_the_images(tmp_path: Path) -> None:
    capture = load_capture(masked_transforms(tmp_path))
    images = DeviceImages(capture.images, torch.device("cpu"), 2 * WIDTH * HEIGHT * 7)
    assert images.weights is not None
    assert capture.images.weights is not None
    images.expect((0, 1))
    for view in (0, 1, 4):
        weights, expected = images.weights[view], capture.images.weights[view]
        assert weights is not None
        assert expected is not None
        assert torch.equal(weights, expected)
        assert torch.equal(images[view], capture.images[view])
    images.close()
    unmasked = DeviceImages([torch.zeros(2, 2, 3, dtype=torch.uint8)], torch.device("cpu"))
    assert unmasked.weights is None
    unmasked.close()


def test_fingerprints_tell_masks_and_their_use_apart(tmp_path: Path) -> None:
    masked_colmap(tmp_path / "masked")
    write_colmap(tmp_path / "plain", views=5)
    kept = fingerprint_capture(load_capture(tmp_path / "masked"))
    assert difference(kept, fingerprint_capture(load_capture(tmp_path / "masked"))) is None
    without = fingerprint_capture(load_capture(tmp_path / "plain"))
    assert difference(kept, without) == "its masks are none, the run's were 5 and ignored"
    laid = fingerprint_capture(load_capture(tmp_path / "masked", CaptureOptions(mask=MaskUse.BACKGROUND)))
    assert difference(kept, laid) == "its masks are 5 and laid over the background, the run's were 5 and ignored"
    save_mask(tmp_path / "masked" / "masks" / "image_000.png.png", ~LEFT)
    assert difference(kept, fingerprint_capture(load_capture(tmp_path / "masked"))) == (
        "its masks have other pixels than those that the run was trained on"
    )
    older = {name: value for name, value in kept.items() if "mask" not in name}
    assert difference(older, kept) is None


def test_a_lens_of_colmap_and_a_mask_go_together(tmp_path: Path) -> None:
    """A spot behind the mask is gone from the undistorted photograph, and its pixels do not count."""
    write_colmap(tmp_path, cameras=[lens("OPENCV")], views=3)
    spot = np.zeros((HEIGHT, WIDTH), dtype=bool)
    spot[20:40, 30:50] = True
    for file in (tmp_path / "images").iterdir():
        save(file, np.where(spot[:, :, None], np.uint8(255), np.uint8(90)).repeat(3, 2))
        save_mask(tmp_path / "masks" / file.name, ~spot)
    capture = load_capture(tmp_path)
    pixels, seen = capture.images[0], capture.images.seen(0)
    assert seen is not None
    assert set(pixels[seen].reshape(-1).tolist()) == {90}
    assert 0.7 < float(seen.float().mean()) < 0.95
