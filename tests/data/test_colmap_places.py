"""Where a COLMAP model and its images lie, what is used of what lies there, and the capture's own split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import plyfile
import pytest
from capture_cases import HEIGHT, WIDTH, lens, reconstruction, write_colmap, write_images, write_model, write_transforms
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.data import CaptureOptions, inspect_capture, load_capture


def write(capture: Path, place: str, images: str, views: int = 9, *, binary: bool = True) -> None:
    """Write a model into one place of a capture, and its images into another."""
    model = reconstruction([lens()], views)
    write_model(capture / place, model, binary=binary)
    write_images(capture / images, model)


def folders(capture: Path) -> set[str]:
    """In which folders the images of a capture are."""
    return {source.path.parent.relative_to(capture).as_posix() for source in load_capture(capture).images.sources}


@pytest.mark.parametrize(
    ("place", "images"),
    [
        (".", "."),
        (".", "images"),
        ("images", "images"),
        ("input", "input"),
        ("sparse/0", "input"),
        ("sparse/0", "rgb"),
        ("sparse/0", "."),
        ("dense/sparse", "dense/images"),
        ("dense/0/sparse", "dense/0/images"),
        ("dense/sparse", "images"),
        ("colmap/sparse/0", "colmap/images"),
        ("distorted/sparse/0", "input"),
        ("distorted/sparse", "images"),
        ("undistorted/sparse", "undistorted/images"),
        ("colmap", "images"),
        ("export/model", "export/images"),
    ],
)
def test_where_model_and_images_lie(tmp_path: Path, place: str, images: str) -> None:
    write(tmp_path, place, images)
    capture = load_capture(tmp_path)
    assert (len(capture.cameras), len(capture.split.train), len(capture.split.test)) == (9, 7, 2)
    assert folders(tmp_path) == {images}
    assert capture.warnings == ()


def test_a_capture_in_the_folder_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ".", ".")
    Image.new("RGB", (8, 8)).save(tmp_path / "new.png")
    monkeypatch.chdir(tmp_path)
    (warning,) = load_capture(Path()).warnings
    assert warning == "1 of 10 images beside those of the views (new.png): not used, the capture has no pose for them"


def test_images_before_and_after_undistortion(tmp_path: Path) -> None:
    """3DGS' converter: input holds the photographs that distorted/sparse is of, images those of sparse/0."""
    write(tmp_path, "distorted/sparse/0", "input", 12)
    write(tmp_path, "sparse/0", "images", 9)
    capture = load_capture(tmp_path)
    assert folders(tmp_path) == {"images"}
    assert capture.warnings == (
        "9 images of the same names in input: not used, those in images are",
        "the model in distorted/sparse/0, before undistortion: not used, that in sparse/0 is",
    )
    shutil.rmtree(tmp_path / "sparse")
    assert folders(tmp_path) == {"input"}
    assert len(load_capture(tmp_path).cameras) == 12


def test_a_model_whose_images_are_elsewhere_gives_way_to_the_undistorted_one(tmp_path: Path) -> None:
    write(tmp_path, "dense/sparse", "dense/images", 8)
    write_model(tmp_path / "sparse" / "0", reconstruction([lens("OPENCV")], 9))
    capture = load_capture(tmp_path)
    assert len(capture.cameras) == 8
    assert capture.warnings == ("several models were found; used dense/sparse with 8 images and not sparse/0 (9)",)
    write_images(tmp_path / "images", reconstruction([lens("OPENCV")], 9))
    capture = load_capture(tmp_path)
    assert capture.camera_models == ("OPENCV",)
    assert "used sparse/0 with 9 images and not dense/sparse (8)" in capture.warnings[0]
    assert "8 images of the same names" not in " ".join(capture.warnings)


def test_a_few_missing_images_do_not_turn_to_another_folder(tmp_path: Path) -> None:
    write(tmp_path, "sparse/0", "images")
    shutil.copytree(tmp_path / "images", tmp_path / "input")
    for index in range(4):
        (tmp_path / "images" / f"image_{index:03d}.png").unlink()
    assert len(inspect_capture(tmp_path).missing) == 4
    (tmp_path / "images" / "image_004.png").unlink()
    assert not inspect_capture(tmp_path).missing


def test_images_in_a_folder_of_any_name(tmp_path: Path) -> None:
    write(tmp_path, "sparse/0", "My photographs")
    for name in ("masks", "images_2", "depth"):
        shutil.copytree(tmp_path / "My photographs", tmp_path / name)
    assert folders(tmp_path) == {"My photographs"}
    used = [str(one) for one in load_capture(tmp_path).found if one.used]
    assert used[0] == "the images in My photographs: used, the model's names are found there"
    assert used[1:] == ["masks of 9 of 9 views (masks): used, pixels of 0 have no weight in loss, scores and growth"]
    shutil.copytree(tmp_path / "My photographs", tmp_path / "others")
    assert folders(tmp_path) == {"images_2"}


def test_two_captures_are_not_one(tmp_path: Path) -> None:
    write(tmp_path, "first/sparse/0", "first/images")
    assert len(load_capture(tmp_path).cameras) == 9
    write(tmp_path, "second/sparse/0", "second/images")
    with pytest.raises(InputError, match="no model found"):
        load_capture(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@pytest.mark.parametrize("place", ["sparse/0", "."])
@pytest.mark.parametrize("lacking", ["cameras", "images"])
def test_a_model_that_is_not_whole_is_named_by_file(tmp_path: Path, place: str, suffix: str, lacking: str) -> None:
    write(tmp_path, place, "images", binary=suffix == ".bin")
    (tmp_path / place / f"{lacking}{suffix}").unlink()
    with pytest.raises(InputError, match=f"is not whole: .*points3D{suffix} are there, {lacking}{suffix} is missing"):
        load_capture(tmp_path)


def test_a_model_that_is_not_whole_does_not_hide_other_poses(tmp_path: Path) -> None:
    write_transforms(tmp_path, {"fl_x": 60.0, "w": WIDTH, "h": HEIGHT})
    write_colmap(tmp_path)
    assert load_capture(tmp_path).kind == "colmap"
    (tmp_path / "sparse" / "0" / "images.bin").unlink()
    capture = load_capture(tmp_path)
    assert capture.kind == "nerfstudio"
    (said,) = (warning for warning in capture.warnings if "is not whole" in warning)
    assert said.endswith("cameras.bin and points3D.bin are there, images.bin is missing; copy the model again")
    write_model(tmp_path / "sparse" / "1", reconstruction([lens()], 9))
    assert said in load_capture(tmp_path).warnings
    shutil.rmtree(tmp_path / "sparse" / "1")
    # Nor does one that is looked at last.
    shutil.copytree(tmp_path / "sparse", tmp_path / "distorted" / "sparse")
    write_model(tmp_path / "distorted" / "sparse" / "0", reconstruction([lens()], 3))
    assert load_capture(tmp_path).kind == "nerfstudio"


def test_files_of_newer_models_do_no_harm(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    assert (tmp_path / "sparse" / "0" / "frames.bin").is_file()
    (tmp_path / "sparse" / "0" / "frames.bin").write_bytes(b"")
    assert load_capture(tmp_path).warnings == ()


def test_a_model_in_both_forms(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    write_model(tmp_path / "sparse" / "0", reconstruction([lens()], 4), binary=False)
    capture = load_capture(tmp_path)
    assert len(capture.cameras) == 9
    assert capture.warnings[0] == (
        "cameras.txt, images.txt, points3D.txt beside the model: not used, the files ending in .bin are"
    )


def test_points_of_another_file(tmp_path: Path) -> None:
    model = write_colmap(tmp_path, points=7)
    folder = tmp_path / "sparse" / "0"
    vertices = np.ones(3, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    plyfile.PlyData([plyfile.PlyElement.describe(vertices, "vertex")]).write(str(folder / "points3D.ply"))
    assert load_capture(tmp_path).warnings == (
        "points3D.ply beside the model: not used, the points are those of points3D.bin",
    )
    (folder / "points3D.bin").unlink()
    points = load_capture(tmp_path).points
    assert points is not None
    assert (len(points), points.file) == (3, "points3D.ply")
    (folder / "points3D.ply").unlink()
    assert load_capture(tmp_path).warnings == (
        f"the model in {folder} has no points3D.bin, so that the capture has no points",
    )
    assert inspect_capture(tmp_path).next_command.endswith("--init random")
    model.write_text(str(folder))
    (folder / "cameras.txt").unlink()
    assert len(load_capture(tmp_path).points or ()) == 7


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    for name in ("images_8", "images_2", "depths"):
        shutil.copytree(tmp_path / "images", tmp_path / name)
    assert load_capture(tmp_path).warnings == (
        "smaller copies in images_2, images_8: not used, --images images_2 takes them",
        "the folder depths: not used, splatopt trains on colours alone",
    )
    assert len(load_capture(tmp_path, CaptureOptions(images="images_2")).warnings) == 1


# ---------------------------------------------------------------------- the capture's own split


@pytest.mark.parametrize(
    ("files", "place", "name", "test"),
    [
        ({"test": "image_001.png\nimage_004.png\n"}, "sparse/0", "test.txt", (1, 4)),
        ({"test": "# held out\r\n\r\nIMAGE_001\r\nimages\\image_004.jpg"}, ".", "test.txt", (1, 4)),
        ({"train": "\n".join(f"image_{index:03d}.png" for index in range(7))}, "sparse", "train.txt", (7, 8)),
        (
            {"test": "image_001.png\n", "train": "image_000.png\nimage_002.png\n"},
            "sparse/0",
            "test.txt and train.txt",
            (1,),
        ),
    ],
)
def test_a_file_of_test_views(
    tmp_path: Path, files: dict[str, str], place: str, name: str, test: tuple[int, ...]
) -> None:
    write_colmap(tmp_path)
    for part, text in files.items():
        (tmp_path / place / f"{part}.txt").write_text(text)
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.split.is_own, capture.split.test) == (name, True, test)
    assert len(capture.cameras) == (3 if len(files) == 2 else 9)
    assert [one.what for one in capture.found if one.used] == [
        f"{(Path(place) / part).as_posix()}.txt" for part in files
    ]
    assert any("6 views that neither file of the split names" in one for one in capture.warnings) == (len(files) == 2)
    summary = inspect_capture(tmp_path)
    assert (summary.split, summary.test) == (name, len(test))


def test_lines_that_name_no_view_are_said(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    file = tmp_path / "sparse" / "0" / "test.txt"
    file.write_text("image_001.png\nimage_100.png\nimage_101.png\n")
    capture = load_capture(tmp_path)
    assert capture.split.test == (1,)
    assert capture.warnings == ("sparse/0/test.txt names 2 images that are no views: image_100.png, image_101.png",)
    file.write_text("image_100.png\n")
    capture = load_capture(tmp_path)
    assert capture.split.name == "every-8th-test"
    assert capture.warnings == ("sparse/0/test.txt: not used, it names no view of the capture",)
    file.write_text("image_001.png\n")
    (tmp_path / "train.txt").write_text("image_001.png\n")
    with pytest.raises(InputError, match=r"train.txt and test.txt both name 'image_001.png'"):
        load_capture(tmp_path)


def test_a_split_without_a_side_is_a_problem(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    (tmp_path / "sparse" / "0" / "test.txt").write_text("\n".join(f"image_{index:03d}" for index in range(9)))
    with pytest.raises(InputError, match="the split test.txt leaves 0 training and 9 test views"):
        load_capture(tmp_path)
    found = inspect_capture(tmp_path)
    assert found.next_command == f"splatopt inspect {tmp_path}"
