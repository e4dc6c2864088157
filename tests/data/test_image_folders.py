"""Photographs from another folder of a capture: ``--images images_4``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import HEIGHT, WIDTH, lens, reconstruction, write_colmap, write_model, write_transforms
from PIL import Image

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, inspect_capture, load_capture
from splatopt.data.colmap import read_colmap
from splatopt.data.colmap_files import Model
from splatopt.data.image_folders import with_other_endings
from splatopt.data.lens import Lens
from splatopt.data.readers import READERS, register_reader
from splatopt.data.source import PosedImage
from splatopt.train.config import TrainConfig
from splatopt.train.setup import open_capture


def shrink(capture: Path, name: str, factor: int, rename: str = "{stem}{ending}") -> Path:
    """Write copies of all photographs, ``factor`` times smaller, under names made by ``rename``."""
    folder = capture / name
    folder.mkdir()
    for number, file in enumerate(sorted((capture / "images").iterdir())):
        copy = Image.open(file).resize((WIDTH // factor, HEIGHT // factor))
        copy.save(folder / rename.format(stem=file.stem, ending=file.suffix, number=number))
    return folder


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV"])
def test_cameras_take_the_size_of_the_photographs(tmp_path: Path, model: str) -> None:
    write_colmap(tmp_path, cameras=[lens(model)])
    folder = shrink(tmp_path, "images_4", 4)
    whole = load_capture(tmp_path)
    small = load_capture(tmp_path, CaptureOptions(images="images_4"))
    assert small.split == whole.split
    assert [camera.name for camera in small.cameras] == [camera.name for camera in whole.cameras]
    for index, (a, b) in enumerate(zip(small.cameras, whole.cameras, strict=True)):
        assert tuple(small.images[index].shape) == (a.height, a.width, 3)
        np.testing.assert_array_equal(a.world_to_camera, b.world_to_camera)
        # The undistorted rectangle is whole pixels, so that a distorted lens keeps its focal length to a pixel.
        assert [a.fx, a.fy, a.cx, a.cy] == pytest.approx([b.fx / 4, b.fy / 4, b.cx / 4, b.cy / 4], abs=1.0)
    if model == "PINHOLE":
        assert [small.cameras[0].fx, small.cameras[0].fy] == [60 / 4, 62 / 4]
        assert [small.cameras[0].cx, small.cameras[0].cy] == [41 / 4, 29 / 4]
        expected = np.asarray(Image.open(folder / "image_001.png"))
        np.testing.assert_array_equal(small.images[1].numpy(), expected)


def test_a_size_that_is_not_a_whole_part_scales_each_axis_by_its_own(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    folder = tmp_path / "images_3"
    folder.mkdir()
    for file in (tmp_path / "images").iterdir():
        Image.open(file).resize((round(WIDTH / 3), round(HEIGHT / 3))).save(folder / file.name)
    camera = load_capture(tmp_path, CaptureOptions(images="images_3")).cameras[0]
    assert (camera.width, camera.height) == (27, 20)
    assert [camera.fx, camera.fy] == pytest.approx([60 * 27 / 80, 62 * 20 / 60])


def test_copies_may_have_another_ending(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    shrink(tmp_path, "images_2", 2, "{stem}.webp")
    capture = load_capture(tmp_path, CaptureOptions(images="images_2"))
    assert [source.path.name for source in capture.images.sources][:2] == ["image_000.webp", "image_001.webp"]
    assert not any("order" in warning for warning in capture.warnings)


def test_copies_under_other_names_are_taken_in_order_and_it_is_said(tmp_path: Path) -> None:
    """LLFF's captures: IMG_4026.JPG in images is image000.png in images_4."""
    write_colmap(tmp_path)
    shrink(tmp_path, "images_4", 4, "other{number:03d}.png")
    capture = load_capture(tmp_path, CaptureOptions(images="images_4"))
    assert [source.path.name for source in capture.images.sources] == [f"other{index:03d}.png" for index in range(9)]
    assert capture.cameras[0].name == "image_000.png"
    assert any("'image_000.png' being 'other000.png'" in warning for warning in capture.warnings)


def test_fewer_copies_than_photographs_are_not_matched_by_order(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    folder = shrink(tmp_path, "images_4", 4, "other{number:03d}.png")
    (folder / "other004.png").unlink()
    with pytest.raises(InputError, match=r"none of the 9 images .* at .*images_4/image_000\.png"):
        load_capture(tmp_path, CaptureOptions(images="images_4"))


def test_photographs_may_lie_in_a_folder_of_any_name(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    (tmp_path / "images").rename(tmp_path / "undistorted")
    (tmp_path / "undistorted" / "image_000.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match="no folder .*images beside the COLMAP model"):
        load_capture(tmp_path)
    (tmp_path / "elsewhere.png").rename(tmp_path / "undistorted" / "image_000.png")
    assert len(load_capture(tmp_path, CaptureOptions(images="undistorted")).cameras) == 9


def test_a_folder_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, capsys) -> None:
    write_colmap(tmp_path)
    shrink(tmp_path, "images_2", 2)
    said = f"capture {tmp_path} has no folder 'images_4' of photographs, as --images asks for; there are images, "
    with pytest.raises(InputError, match="images_2") as raised:
        load_capture(tmp_path, CaptureOptions(images="images_4"))
    assert str(raised.value) == said + "images_2"
    words = ["train", str(tmp_path), "--images", "images_4", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "/etc", "../other"])
def test_a_folder_outside_the_capture_is_refused(tmp_path: Path, name: str) -> None:
    write_colmap(tmp_path / "capture")
    shutil.copytree(tmp_path / "capture" / "images", tmp_path / "other")
    with pytest.raises(InputError, match="--images must name a folder inside the capture"):
        load_capture(tmp_path / "capture", CaptureOptions(images=name))


def test_a_format_with_a_place_for_its_photographs_has_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_text("{}")
    (tmp_path / "rgb").mkdir()
    with pytest.raises(InputError, match="--images images_4 is for captures whose photographs may lie in another"):
        load_capture(tmp_path, CaptureOptions(images="images_4"))


def test_the_setting_reaches_the_capture_and_its_summary(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    shrink(tmp_path, "images_4", 4)
    capture = open_capture(TrainConfig.of(tmp_path, images="images_4"))
    assert (capture.cameras[0].width, capture.cameras[0].height) == (WIDTH // 4, HEIGHT // 4)
    found = inspect_capture(tmp_path, CaptureOptions(images="images_4"))
    assert [(size.width, size.height) for size in found.sizes] == [(WIDTH // 4, HEIGHT // 4)]
    assert "--images images_4" in found.next_command
    kept = TrainConfig.of(tmp_path, images="images_4").to_json()
    assert TrainConfig.from_json(json.loads(json.dumps(kept)), "here").data.images == "images_4"


def test_a_reader_of_ones_own_may_know_other_folders(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    shrink(tmp_path, "images_4", 4)
    asked: list[str] = []

    def read_images(path: Path, name: str):
        asked.append(name)
        return read_colmap(path, model, [], name)

    model = Model(tmp_path / "sparse" / "0", ".bin")
    register_reader("mine", lambda path: True, lambda path: read_colmap(path, model, []), read_images)
    try:
        capture = load_capture(tmp_path, CaptureOptions(images="images_4"))
        assert asked == ["images_4"]
        assert capture.cameras[0].width == WIDTH // 4
        assert load_capture(tmp_path).cameras[0].width == WIDTH
        assert asked == ["images_4"]
    finally:
        READERS.forget("mine")


def named(path: Path, *names: str) -> None:
    """Write a capture whose photographs are called ``names``, below ``images``."""
    write_transforms(path, {"fl_x": 60.0, "w": WIDTH, "h": HEIGHT}, views=len(names))
    content = json.loads((path / "transforms.json").read_text())
    for frame, name in zip(content["frames"], names, strict=True):
        Image.open(path / frame["file_path"]).save(path / "images" / name)
        (path / frame["file_path"]).unlink()
        frame["file_path"] = f"images/{name}"
    (path / "transforms.json").write_text(json.dumps(content))


def test_a_missing_photograph_is_not_replaced_by_that_of_another_view(tmp_path: Path) -> None:
    named(tmp_path, "x.jpg", "x.webp", "y.jpg")
    (tmp_path / "images" / "x.webp").unlink()
    with pytest.raises(InputError, match=r"image .*x\.webp is missing"):
        load_capture(tmp_path)
    capture = load_capture(tmp_path, CaptureOptions(skip_missing=True))
    assert [source.path.name for source in capture.images.sources] == ["x.jpg", "y.jpg"]
    assert not any("another ending" in warning for warning in capture.warnings)


def test_a_file_that_two_views_could_mean_stands_for_neither(tmp_path: Path) -> None:
    named(tmp_path, "x.jpg", "x.webp", "y.jpg")
    (tmp_path / "images" / "x.webp").unlink()
    (tmp_path / "images" / "x.jpg").rename(tmp_path / "images" / "x.bmp")
    assert inspect_capture(tmp_path).missing == ("images/x.jpg", "images/x.webp")


def test_one_missing_name_of_two_views_is_one_wish(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "x.bmp")
    pinhole = Lens("PINHOLE", WIDTH, HEIGHT, (60.0, 60.0, 40.0, 30.0))
    views = [PosedImage("x.jpg", tmp_path / "x.jpg", torch.eye(4), pinhole, part) for part in ("train", "test")]
    said: list[str] = []
    assert [view.path.name for view in with_other_endings(views, said)] == ["x.bmp", "x.bmp"]
    assert said == ["2 photographs are taken from files with another ending, such as 'x.bmp' for 'x.jpg'"]


@pytest.mark.parametrize("images", [None, "images_2"])
def test_a_capture_without_frames_is_refused_in_a_sentence(tmp_path: Path, images: str | None) -> None:
    named(tmp_path, "x.png", "y.png")
    shrink(tmp_path, "images_2", 2)
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(InputError, match="the capture has 0 views; at least 2 are needed"):
        load_capture(tmp_path, CaptureOptions(images=images))
    assert "the capture has 0 views" in inspect_capture(tmp_path, CaptureOptions(images=images)).problems[0]


@pytest.mark.parametrize("images", [None, "images_2"])
def test_a_model_without_images_is_refused_in_a_sentence(tmp_path: Path, images: str | None) -> None:
    write_colmap(tmp_path, views=2)
    write_model(tmp_path / "sparse" / "0", reconstruction([lens()], 0))
    shrink(tmp_path, "images_2", 2)
    with pytest.raises(InputError, match="the capture has 0 views"):
        load_capture(tmp_path, CaptureOptions(images=images))
