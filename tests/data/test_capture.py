from __future__ import annotations

import struct
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import lens, write_colmap, write_transforms
from PIL import Image

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.data import CaptureOptions, CaptureSummary, UnreadableImageError, inspect_capture, load_capture
from splatopt.data.capture import scene_extent
from splatopt.data.source import Points


def _camera(x: float, y: float, z: float) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = -torch.tensor([x, y, z], dtype=torch.float64)
    return Camera(pose, 10.0, 10.0, 5.0, 5.0, 10, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downscale": 0}, "downscale must be"),
        ({"max_side": -1}, "max_side must be"),
        ({"background": (0.0, 2.0, 0.0)}, "background must be"),
        ({"cache_mebibytes": -1}, "cache_mebibytes must be"),
        ({"test_every": 1}, "test_every must be"),
    ],
)
def test_options_are_validated(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptureOptions(**change)


def test_no_capture_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no capture at .*nothing: expected a folder"):
        load_capture(tmp_path / "nothing")


def test_no_model_lists_the_paths_tried(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model found") as caught:
        load_capture(tmp_path)
    assert str(tmp_path) in str(caught.value)
    for place in ("sparse/0", "sparse", "colmap/sparse/0", "transforms_train.json", "transforms.json"):
        assert f" {place}," in str(caught.value)


@pytest.mark.parametrize(
    ("every", "name", "test"),
    [(8, "every-8th-test", (0, 8)), (3, "every-3rd-test", (0, 3, 6, 9)), (2, "every-2nd-test", (0, 2, 4, 6, 8))],
)
def test_split(tmp_path: Path, every: int, name: str, test: tuple[int, ...]) -> None:
    write_colmap(tmp_path, views=10)
    split = load_capture(tmp_path, CaptureOptions(test_every=every)).split
    assert split.name == name
    assert split.test == test
    assert split.train == tuple(index for index in range(10) if index not in test)


def test_one_view_only(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=1)
    with pytest.raises(InputError, match="the capture has 1 view; at least 2 are needed"):
        load_capture(tmp_path)


def test_missing_image_is_named(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    (tmp_path / "images" / "image_003.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"image .*image_003.png is missing.*--skip-missing$"):
        load_capture(tmp_path)
    (tmp_path / "images" / "image_005.png").unlink()
    with pytest.raises(InputError, match=r"image_003.png is missing.*\(and 1 more\)"):
        load_capture(tmp_path)


def test_skip_missing_takes_views_out_of_the_split(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=18)
    (tmp_path / "images" / "image_003.png").unlink()
    file = tmp_path / "images" / "image_004.png"
    file.write_bytes(file.read_bytes()[:200])
    capture = load_capture(tmp_path, CaptureOptions(skip_missing=True))
    assert len(capture.cameras) == len(capture.images) == 16
    assert [capture.cameras[index].name for index in capture.split.test] == ["image_000.png", "image_010.png"]
    assert capture.warnings == ("2 of 18 views have no readable image and are skipped: image_003.png, image_004.png",)
    np.testing.assert_array_equal(
        capture.images[3].numpy(), np.asarray(Image.open(tmp_path / "images" / "image_005.png"))
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_truncated_image_is_named_at_load(tmp_path: Path, suffix: str, keep: float) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "images" / "image_002.png"
    if suffix == "jpg":  # the content decides, not the ending
        Image.open(file).save(file, format="JPEG", quality=95)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UnreadableImageError, match=r"image_002.png is truncated"):
        load_capture(tmp_path)


@pytest.mark.parametrize("keep", [0.6, 0.95])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_truncated_tiff_is_named_at_load(tmp_path: Path, compression: str, keep: float) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "images" / "image_002.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="TIFF", compression=compression)
    assert len(load_capture(tmp_path).cameras) == 9
    content = tags_first(file.read_bytes())
    file.write_bytes(content)
    assert len(load_capture(tmp_path).cameras) == 9
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UnreadableImageError, match=r"image_002.png is truncated"):
        load_capture(tmp_path)
    assert inspect_capture(tmp_path).truncated == ("image_002.png",)


def tags_first(content: bytes) -> bytes:
    """A TIFF of little-endian bytes with its directory, and what that points to, before the pixels.

    A copy of the whole file is put behind itself, and the offsets of strips lead into the copy.
    """
    shift, moved = len(content), bytearray(content)
    at = int.from_bytes(content[4:8], "little")
    for place in range(at + 2, at + 2 + 12 * int.from_bytes(content[at : at + 2], "little"), 12):
        tag, kind, count = struct.unpack_from("<HHI", content, place)
        if tag == 273:
            form = {3: "<H", 4: "<I"}[kind]
            wide = struct.calcsize(form)
            first = place + 8 if wide * count <= 4 else int.from_bytes(content[place + 8 : place + 12], "little")
            for one in range(first, first + wide * count, wide):
                struct.pack_into(form, moved, one, struct.unpack_from(form, content, one)[0] + shift)
    return bytes(moved) + content


@pytest.mark.parametrize("keep", [0.1, 0.3])
def test_truncated_jpeg_of_several_pictures_is_named_at_load(tmp_path: Path, keep: float) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "images" / "image_002.png"
    first = Image.open(file).convert("RGB")
    first.save(file, format="MPO", save_all=True, append_images=[first], quality=95)
    assert Image.open(file).format == "MPO"
    assert tuple(load_capture(tmp_path).images[2].shape) == (60, 80, 3)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UnreadableImageError, match=r"image_002.png is truncated"):
        load_capture(tmp_path)


def test_trailing_bytes_are_no_truncation(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "images" / "image_002.png"
    Image.open(file).save(file, format="JPEG")
    file.write_bytes(file.read_bytes() + bytes(100_000))
    assert tuple(load_capture(tmp_path).images[2].shape) == (60, 80, 3)


def test_size_that_disagrees_names_both(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    Image.new("RGB", (50, 60)).save(tmp_path / "images" / "image_002.png")
    with pytest.raises(InputError, match=r"image_002.png is 50x60 pixels but its camera is 80x60; use the images"):
        load_capture(tmp_path)
    Image.new("RGB", (60, 80)).save(tmp_path / "images" / "image_002.png")
    with pytest.raises(InputError, match=r"is 60x80 pixels but its camera is 80x60; the image was turned"):
        load_capture(tmp_path, CaptureOptions(skip_missing=True))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (CaptureOptions(), (80, 60)),
        (CaptureOptions(downscale=2), (40, 30)),
        (CaptureOptions(downscale=3), (27, 20)),
        (CaptureOptions(max_side=20), (20, 15)),
        (CaptureOptions(max_side=400), (80, 60)),
        (CaptureOptions(downscale=2, max_side=24), (24, 18)),
        (CaptureOptions(downscale=1000), (1, 1)),
    ],
)
def test_downscale_and_max_side(tmp_path: Path, options: CaptureOptions, size: tuple[int, int]) -> None:
    write_colmap(tmp_path, views=2)
    capture = load_capture(tmp_path, options)
    camera, image = capture.cameras[0], capture.images[0]
    assert (camera.width, camera.height) == size
    assert tuple(image.shape) == (size[1], size[0], 3)
    assert camera.fx == pytest.approx(60 * size[0] / 80)
    assert camera.cy == pytest.approx(29 * size[1] / 60)


def test_smaller_images_keep_what_they_show(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=2)
    full = load_capture(tmp_path).images[1].double()
    half = load_capture(tmp_path, CaptureOptions(downscale=2)).images[1].double()
    blocks = full.reshape(30, 2, 40, 2, 3).mean(dim=(1, 3))
    assert float((half - blocks).abs().mean()) < 1.5


def test_extent_is_that_of_the_training_cameras() -> None:
    cameras = [_camera(0, 0, 0), _camera(2, 0, 0), _camera(1, 3, 0)]
    assert scene_extent(cameras, None) == pytest.approx(1.1 * 2.0)
    assert scene_extent([_camera(5, 5, 5)] * 2, None) == 1.0
    points = Points(torch.tensor([[5.0, 5, 9], [5, 5, 8], [8, 9, 5]]).double(), torch.zeros(3, 3, dtype=torch.uint8))
    assert scene_extent([_camera(5, 5, 5)] * 2, points) == pytest.approx(1.1 * 4)


@pytest.mark.parametrize("jitter", [1e-12, 1e-7])
def test_rounding_is_no_extent(jitter: float) -> None:
    """Of cameras that turn on the spot, in the world and in the training frame: what the frame says is one place."""
    generator = torch.Generator().manual_seed(0)
    places = jitter * torch.randn(6, 3, dtype=torch.float64, generator=generator)
    cameras = [_camera(*place) for place in places.tolist()]
    directions = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    points = Points(7 * directions / directions.norm(dim=1, keepdim=True), torch.zeros(50, 3, dtype=torch.uint8))
    frame = Frame.around([camera.world_to_camera for camera in cameras], points.positions)
    local = [replace(one, world_to_camera=frame.pose(one.world_to_camera)) for one in cameras]
    local_points = replace(points, positions=frame.to_local(points.positions))
    assert scene_extent(cameras, points) == pytest.approx(1.1 * 7)
    assert scene_extent(local, local_points) == pytest.approx(1.1 * 3.5)
    assert scene_extent(cameras, None) == 1


def test_capture_extent_leaves_out_test_views(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=9)
    capture = load_capture(tmp_path)
    centers = torch.stack([capture.cameras[index].center for index in range(1, 8)])
    expected = 1.1 * float((centers - centers.mean(0)).norm(dim=1).max())
    assert capture.split.train == (1, 2, 3, 4, 5, 6, 7)
    assert capture.extent == pytest.approx(expected)


def test_inspect_a_good_capture(tmp_path: Path) -> None:
    write_colmap(tmp_path / "a room", views=9, cameras=[lens("OPENCV")] + [lens()] * 0, points=6)
    capture = load_capture(tmp_path / "a room")
    summary = inspect_capture(tmp_path / "a room")
    size = summary.sizes[0]
    assert replace(summary, sizes=()) == CaptureSummary(
        name="a room",
        path=tmp_path / "a room",
        kind="colmap",
        views=9,
        sizes=(),
        camera_models=("OPENCV",),
        points=6,
        extent=capture.extent,
        split="every-8th-test",
        train=7,
        test=2,
        missing=(),
        truncated=(),
        problems=(),
        warnings=(),
        next_command=f"splatopt train '{tmp_path / 'a room'}' --out 'runs/a room'",
    )
    assert (size.width, size.height, size.views) == (capture.cameras[0].width, capture.cameras[0].height, 9)
    assert {field.name for field in fields(summary)} >= {"missing", "truncated", "next_command"}


def test_inspect_reports_what_load_refuses(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=9, points=0)
    images = tmp_path / "images"
    (images / "image_001.png").unlink()
    (images / "image_002.png").write_bytes((images / "image_002.png").read_bytes()[:99])
    Image.new("RGB", (50, 60)).save(images / "image_003.png")
    summary = inspect_capture(tmp_path)
    assert (summary.views, summary.missing, summary.truncated) == (9, ("image_001.png",), ("image_002.png",))
    assert len(summary.problems) == 1
    assert "image_003.png is 50x60 pixels but its camera is 80x60" in summary.problems[0]
    assert (summary.train, summary.test) == (7, 2)
    assert summary.next_command == f"splatopt inspect {tmp_path}"
    skipping = inspect_capture(tmp_path, CaptureOptions(skip_missing=True))
    assert (skipping.train, skipping.test) == (6, 1)
    assert len(skipping.warnings) == 1


def test_inspect_reports_one_view(tmp_path: Path) -> None:
    write_colmap(tmp_path, views=1)
    summary = inspect_capture(tmp_path)
    assert (summary.split, summary.train, summary.test) == ("", 0, 0)
    assert "the capture has 1 view" in summary.problems[0]


def test_inspect_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model found"):
        inspect_capture(tmp_path)


def test_inspect_without_any_image_needs_sizes_in_the_file(tmp_path: Path) -> None:
    write_transforms(tmp_path, {"fl_x": 50.0, "w": 80, "h": 60})
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    summary = inspect_capture(tmp_path)
    assert len(summary.missing) == 9
    assert (summary.sizes[0].width, summary.sizes[0].height, summary.sizes[0].views) == (80, 60, 9)
