"""What a transforms.json says of its own: the split, and keys and files that are not used."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.data.source import Finding
from splatopt.data.unused_keys import unused_keys


def names(*indices: int) -> list[str]:
    return [f"images/{index:03d}.png" for index in indices]


def parts(capture: Capture) -> tuple[list[str], list[str]]:
    train, test = (
        [capture.cameras[index].name for index in part] for part in (capture.split.train, capture.split.test)
    )
    return train, test


def write(path: Path, views: int = 6, **keys: object) -> None:
    layouts.write_json(path, layouts.example(views), lists=False, **keys)


@pytest.mark.parametrize(
    ("lists", "name", "train", "test", "warning"),
    [
        ({"train": (0, 1, 2, 4), "test": (3, 5)}, "test_filenames", (0, 1, 2, 4), (3, 5), None),
        ({"train": (0, 1, 2, 4), "val": (3, 5), "test": (3, 5)}, "test_filenames", (0, 1, 2, 4), (3, 5), None),
        ({"train": (0, 1, 2, 4), "val": (3, 5)}, "val_filenames", (0, 1, 2, 4), (3, 5), None),
        ({"train": (0, 1, 2, 4), "val": (3, 5), "test": ()}, "val_filenames", (0, 1, 2, 4), (3, 5), None),
        ({"test": (3,)}, "test_filenames", (0, 1, 2, 4, 5), (3,), None),
        (
            {"val": (0, 1), "test": (3,)},
            "test_filenames",
            (2, 4, 5),
            (3,),
            "2 views of val_filenames are neither trained on nor held out, such as 'images/000.png'",
        ),
        (
            {"train": (0, 1), "test": (3,)},
            "test_filenames",
            (0, 1),
            (3,),
            "3 views that are in neither of train_filenames and test_filenames are neither trained on nor held out, "
            "such as 'images/002.png'",
        ),
        (
            {"train": (0, 1, 3), "test": (3, 4, 5, 2)},
            "test_filenames",
            (0, 1),
            (2, 3, 4, 5),
            "1 photographs are in train_filenames and in test_filenames, such as 'images/003.png'; they are held out "
            "alone",
        ),
        (
            {"train": (0, 1, 2, 3, 4), "test": (5, 9)},
            "test_filenames",
            (0, 1, 2, 3, 4),
            (5,),
            "1 of 2 names of test_filenames are not among the frames, such as 'images/009.png'",
        ),
        ({"train": (0, 1, 2, 4)}, "train_filenames", (0, 1, 2, 4), (3, 5), None),
        (
            {"train": (0, 1, 2, 3, 4, 5), "test": (0, 1, 2, 3, 4, 5)},
            "every-8th-test",
            (1, 2, 3, 4, 5),
            (0,),
            "test_filenames leaves no view to train on; test views are chosen from all",
        ),
        (
            {"train": (0, 1, 2, 3, 4, 5)},
            "every-8th-test",
            (1, 2, 3, 4, 5),
            (0,),
            "train_filenames names every view and no list names others; test views are chosen from all",
        ),
    ],
)
def test_lists_of_file_names(tmp_path: Path, lists: dict, name: str, train, test, warning: str | None) -> None:
    write(tmp_path, **{f"{key}_filenames": names(*indices) for key, indices in lists.items()})
    capture = load_capture(tmp_path)
    assert capture.split.name == name
    assert capture.split.is_own == (name != "every-8th-test")
    assert parts(capture) == (names(*train), names(*test))
    assert capture.warnings == (() if warning is None else (warning,))


def test_names_are_found_as_those_of_frames(tmp_path: Path) -> None:
    listed = ["./images/003.png", "images//004", "images/../images/005.png", "images\\002.png", "001.png"]
    write(tmp_path, test_filenames=listed)
    assert parts(load_capture(tmp_path))[1] == names(1, 2, 3, 4, 5)


@pytest.mark.parametrize("value", ["images/003.png", {"a": 1}, [3], [""]])
def test_a_list_of_anything_else_is_refused(tmp_path: Path, value: object) -> None:
    write(tmp_path, test_filenames=value)
    with pytest.raises(InputError, match="'test_filenames' must be a list of names of files"):
        load_capture(tmp_path)


def test_names_that_no_frame_has_leave_the_usual_split(tmp_path: Path) -> None:
    write(tmp_path, test_filenames=names(7, 8))
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.split.test) == ("every-8th-test", (0,))
    assert "2 of 2 names of test_filenames are not among the frames" in capture.warnings[0]


def test_a_frame_listed_twice_is_on_one_side(tmp_path: Path) -> None:
    write(tmp_path, test_filenames=names(3, 3))
    content = json.loads((tmp_path / "transforms.json").read_text())
    again = {**content["frames"][3], "file_path": "./images/../images/003.png"}
    (tmp_path / "transforms.json").write_text(json.dumps({**content, "frames": [again, *content["frames"]]}))
    capture = load_capture(tmp_path)
    assert parts(capture)[0] == names(0, 1, 2, 4, 5)
    assert [capture.images.sources[index].path.name for index in capture.split.test] == ["003.png"]


def test_frames_that_are_held_out_in_a_list_of_their_own(tmp_path: Path) -> None:
    """ScanNet++: ``test_frames`` beside ``frames``."""
    write(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    listed = content["frames"]
    content |= {"frames": listed[:4], "test_frames": listed[4:]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = load_capture(tmp_path)
    assert (capture.split.name, capture.warnings) == ("test_frames", ())
    assert parts(capture) == (names(0, 1, 2, 3), names(4, 5))
    (tmp_path / "transforms.json").write_text(json.dumps({**content, "test_frames": [3]}))
    with pytest.raises(InputError, match="must be a JSON object with a list 'test_frames' of objects"):
        load_capture(tmp_path)


@pytest.mark.parametrize("others", [0, 1])
def test_names_that_begin_with_train_and_eval(tmp_path: Path, others: int) -> None:
    """ns-process-data --eval-data writes frame_train_00001.png and frame_eval_00001.png."""
    write(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for index, frame in enumerate(content["frames"][others:]):
        name = f"images/frame_{'eval' if index % 3 == 0 else 'train'}_{index:05d}.png"
        (tmp_path / frame["file_path"]).rename(tmp_path / name)
        frame["file_path"] = name
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = load_capture(tmp_path)
    assert capture.split.name == ("every-8th-test" if others else "frame_eval")
    if not others:
        assert parts(capture)[1] == ["images/frame_eval_00000.png", "images/frame_eval_00003.png"]


# ---------------------------------------------------------------------- Blender


def without_photographs(path: Path, part: str) -> None:
    for file in (path / part).iterdir():
        file.unlink()


def test_test_poses_without_photographs_are_left_out(tmp_path: Path, capsys) -> None:
    """BlenderNeRF writes the path of a camera as transforms_test.json, which nobody has rendered."""
    layouts.write_blender(tmp_path, layouts.example(12))
    without_photographs(tmp_path, "test")
    capture = load_capture(tmp_path)
    assert (capture.split.name, len(capture.cameras), capture.split.test) == ("every-8th-test", 10, (0, 8))
    assert "no view of transforms_test.json or transforms_val.json can be held out" in capture.warnings[0]
    assert "transforms_test.json (2 views): not used, its photographs are not there, such as " in capture.warnings[1]
    assert main(["inspect", str(tmp_path)]) == 0
    assert "--skip-missing" not in capsys.readouterr().out
    (tmp_path / "transforms_test.json").write_text('{"frames": []}')
    assert "transforms_test.json (0 views): not used, it holds no frames" in load_capture(tmp_path).warnings


def test_one_missing_test_photograph_is_missing(tmp_path: Path) -> None:
    layouts.write_blender(tmp_path, layouts.example(12))
    (tmp_path / "test" / "008.png").unlink()
    with pytest.raises(InputError, match=r"test/008\.png is missing"):
        load_capture(tmp_path)


def test_validation_views_are_named_or_held_out(tmp_path: Path) -> None:
    example = layouts.example(12)
    layouts.write_blender(tmp_path, example)
    content = json.loads((tmp_path / "transforms_test.json").read_text())
    layouts.photographs(example, tmp_path / "val", lambda index: f"{index:03d}.png", example.test)
    listed = [{**frame, "file_path": frame["file_path"].replace("test", "val")} for frame in content["frames"]]
    (tmp_path / "transforms_val.json").write_text(json.dumps({**content, "frames": listed}))
    said = "transforms_val.json (2 views): not used, transforms_test.json is held out"
    assert load_capture(tmp_path).warnings == (said,)
    without_photographs(tmp_path, "test")
    capture = load_capture(tmp_path)
    assert parts(capture)[1] == ["./val/000.png", "./val/008.png"] or parts(capture)[1] == [
        "val/000.png",
        "val/008.png",
    ]
    assert capture.warnings[0] == "test views come from transforms_val.json"


# ---------------------------------------------------------------------- what is not used


def test_keys_that_are_not_used_are_named_once(tmp_path: Path) -> None:
    write(tmp_path, applied_transform=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], applied_scale=0.5, aabb_scale=16)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for index, frame in enumerate(content["frames"]):
        frame |= {
            "depth_file_path": f"images/{index:03d}_depth.png",
            "sharpness": 3.0,
            "colmap_im_id": index,
            "time": 0,
        }
        Image.new("L", (8, 8)).save(tmp_path / frame["depth_file_path"])
    content |= {"weather": "fine", "mask_color": "white", "rolling_shutter": [0, 0, 1, 0], "empty": None}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    capture = load_capture(tmp_path)
    assert capture.found[0] == Finding(
        "applied_transform and applied_scale", True, "the poses hold it already; scenes are in their frame"
    )
    assert capture.warnings == (
        "6 files (depth_file_path): not used, splatopt trains on colours alone",
        "time: not used, the scene is taken to stand still",
        "rolling_shutter: not used, each photograph is taken from one place",
        "mask_color, weather: not used, splatopt does not know what that means",
    )


def test_many_unknown_keys_are_one_line() -> None:
    (found,) = unused_keys({f"key{index}": 1 for index in range(20)}, [])
    assert str(found) == (
        "key0, key1, key10, key11, key12, key13, key14, key15, …: not used, splatopt does not know what that means"
    )
    assert unused_keys({"up": [0, 0, 1], "k1": 0.1, "fov": 60}, [{"rotation": 0.1, "mask_path": "a"}]) == []


@pytest.mark.parametrize("key", ["k5", "k6", "s1", "ftheta_p0", "ocam", "equirectangular", "latlong"])
def test_a_lens_of_another_kind_is_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path, **{key: 0})
    assert load_capture(tmp_path).warnings == ()
    write(tmp_path, **{key: 0.1})
    with pytest.raises(InputError, match=f"'{key}' describes a lens that is not supported"):
        load_capture(tmp_path)


def test_photographs_without_a_frame_and_folders_of_depth(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("IMG_1.jpg", "IMG_2.HEIC", "IMG_3.png", "IMG_4.png", "100_mask.png", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"")
    (tmp_path / "depths").mkdir()
    assert load_capture(tmp_path).warnings == (
        "the folder depths: not used, splatopt trains on colours alone",
        "4 of 10 images beside those of the views (images/IMG_1.jpg, images/IMG_2.HEIC, images/IMG_3.png, …): not "
        "used, the capture has no pose for them",
    )


# ---------------------------------------------------------------------- --images


def shrink(path: Path, source: str, target: str) -> None:
    for file in sorted((path / source).rglob("*.png")):
        place = path / target / file.relative_to(path / source)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((16, 12)).save(place)


def test_images_of_another_folder(tmp_path: Path) -> None:
    write(tmp_path, test_filenames=names(3))
    shrink(tmp_path, "images", "images_2")
    whole, small = load_capture(tmp_path), load_capture(tmp_path, CaptureOptions(images="images_2"))
    assert (small.split, small.cameras[1].name) == (whole.split, "images/001.png")
    assert small.images.sources[1].path == tmp_path / "images_2" / "001.png"
    assert [small.cameras[1].fx, small.cameras[1].cx, small.cameras[1].width] == [20, 8, 16]
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    capture = load_capture(tmp_path)
    assert (capture.cameras[1].fx, capture.warnings[0]) == (
        20,
        "the photographs are not there; the smaller copies in images_2 are used",
    )
    with pytest.raises(InputError, match=r"has no folder 'images_8' of photographs.*there is images_2"):
        load_capture(tmp_path, CaptureOptions(images="images_8"))


def test_images_of_another_folder_by_names_without_endings(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    del content["w"], content["h"]
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    shrink(tmp_path, "images", "images_2")
    camera = load_capture(tmp_path, CaptureOptions(images="images_2")).cameras[1]
    assert (camera.name, camera.width, camera.fx) == ("images/001", 16, 20)


def test_images_below_folders_of_their_own(tmp_path: Path) -> None:
    layouts.write_blender(tmp_path, layouts.example(12))
    for part in ("train", "test"):
        shrink(tmp_path, part, f"small/{part}")
    capture = load_capture(tmp_path, CaptureOptions(images="small"))
    assert {camera.width for camera in capture.cameras} == {16}
    assert capture.images.sources[0].path == tmp_path / "small" / "train" / "001.png"
    assert capture.split.name == "blender"
