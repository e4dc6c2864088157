"""Images that lie under other names than a file of poses gives them, and images that no pose names."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from capture_cases import HEIGHT, WIDTH, write_colmap, write_transforms

from splatopt.data import inspect_capture, load_capture
from splatopt.data.image_lookup import find_images, name_key, unregistered
from splatopt.data.text_files import encoding_of, read_text


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "there", "found"),
    [
        ("a.jpg", ["a.jpg", "A.JPG"], "a.jpg"),
        ("a", ["a.png", "a.jpg"], "a.png"),
        ("images\\a.jpg", ["images/a.jpg"], "images/a.jpg"),
        (".\\images\\a.jpg", ["images/a.jpg"], "images/a.jpg"),
        ("back\\slash.jpg", ["back\\slash.jpg", "back/slash.jpg"], "back\\slash.jpg"),
        ("IMG_1.JPG", ["img_1.jpg"], "img_1.jpg"),
        ("STRASSE.jpg", ["Straße.jpg"], "Straße.jpg"),
        ("e\u0301.jpg", ["é.jpg"], "é.jpg"),
        ("Left/a.jpg", ["left/a.jpg"], "left/a.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), ["café.jpg"], "café.jpg"),
        ("café.jpg", [os.fsdecode(b"caf\xe9.jpg")], os.fsdecode(b"caf\xe9.jpg")),
        ("C:\\Users\\me\\images\\a.jpg", ["images/a.jpg"], "images/a.jpg"),
        ("/home/me/a.jpg", ["a.jpg"], "a.jpg"),
        ("../elsewhere/images/a.jpg", ["images/a.jpg"], "images/a.jpg"),
        ("a.jpg", ["a.png"], "a.png"),
        ("a.b.jpeg", ["a.b.JPG"], "a.b.JPG"),
        # A mask of COLMAP's is no image.
        ("a.jpg", ["a.jpg.png"], None),
        # Which of two is meant cannot be known.
        ("a.jpg", ["a.JPG", "A.jpg"], None),
        ("a.jpg", ["a.png", "a.tif"], None),
        ("A/x.jpg", ["a/x.jpg", "á/x.jpg", "a/X.jpg"], "a/x.jpg"),
        ("b/a.jpg", ["c/a.jpg"], None),
    ],
)
def test_a_name_is_found_where_one_file_fits(tmp_path: Path, name: str, there: list[str], found: str | None) -> None:
    touched(tmp_path, *there)
    said: list[str] = []
    (image,) = find_images(tmp_path, [name], said)
    assert (image.path.relative_to(tmp_path).as_posix() if image.path.is_file() else None) == found
    assert image.is_exact == (image.path.is_file() and not said)
    assert len(said) == (found is not None and found not in (name, f"{name}.png"))


def test_a_file_that_two_names_can_mean_is_none_of_both(tmp_path: Path) -> None:
    touched(tmp_path, "x.jpg", "y.jpg")
    said: list[str] = []
    images = find_images(tmp_path, ["left/x.jpg", "right/x.jpg", "y.jpg", "Y.JPG", ".\\y.jpg"], said)
    assert [image.path.is_file() for image in images] == [False, False, True, False, True]
    assert images[4].name == images[2].name == "y.jpg"
    assert len(said) == 1
    assert said[0].startswith("1 of 5 images lie under other names")


def test_what_is_missing_is_looked_for_below_the_folder(tmp_path: Path) -> None:
    names = [".\\images\\a.jpg", "images\\b", "\\c.jpg", "..\\d.jpg", "e", "sub/f.JPG"]
    places = ["images/a.jpg", "images/b.png", "c.jpg", "d.jpg", "e.png", "sub/f.JPG"]
    images = find_images(tmp_path, names, [])
    assert [image.path.relative_to(tmp_path).as_posix() for image in images] == places


def test_similar_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    touched(tmp_path, "secret/A.jpg", "capture/images/b.jpg")
    for name in ("../secret/a.jpg", "..\\secret\\a.jpg", f"{tmp_path}/secret/a.jpg", "images/../../secret/a.jpg"):
        (image,) = find_images(tmp_path / "capture", [name], [])
        assert not image.path.is_file(), name
    # A name that leads to a file as it is has always done so.
    (image,) = find_images(tmp_path / "capture", ["../secret/A.jpg"], [])
    assert image.path.is_file()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\0b", "\ud800", "/", "x" * 5000, "a/" * 500 + "b", os.fsdecode(b"\xe9")]
)
def test_names_that_no_file_can_have_are_not_found(tmp_path: Path, name: str) -> None:
    touched(tmp_path, "a.jpg")
    (image,) = find_images(tmp_path, [name], [])
    assert not os.path.isfile(image.path)


def test_what_names_have_in_common() -> None:
    assert name_key(".\\Images\\É.JPG") == name_key("images/" + unicodedata.normalize("NFD", "é.jpg"))
    assert name_key("a.jpg") != name_key("a.png")


def test_images_without_a_pose_are_counted_and_named(tmp_path: Path) -> None:
    touched(tmp_path, *(f"images/{index}.jpg" for index in range(6)), "images/sub/9.PNG", "images/notes.txt")
    touched(tmp_path, "images_2/0.jpg", "other/7.jpg", "images/.hidden.jpg")
    touched(tmp_path, "images/masks/0.jpg", "images/0_mask.jpg")
    (finding,) = unregistered(tmp_path, [tmp_path / "images" / "1.jpg", tmp_path / "images" / "4.jpg"])
    assert not finding.used
    assert str(finding) == (
        "5 of 7 images beside those of the views (images/0.jpg, images/2.jpg, images/3.jpg, …): not used, "
        "the capture has no pose for them"
    )
    assert not unregistered(tmp_path, [tmp_path / "other" / "7.jpg"])
    # Beside views that lie in the capture's own folder, its other folders are something else.
    touched(tmp_path, "0.jpg", "1.jpg")
    (finding,) = unregistered(tmp_path, [tmp_path / "0.jpg"])
    assert finding.what == "1 of 2 images beside those of the views (1.jpg)"


def test_loading_and_inspecting_say_which_images_have_no_pose(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    touched(tmp_path / "images", "new.jpg")
    for warnings in (load_capture(tmp_path).warnings, inspect_capture(tmp_path).warnings):
        assert warnings[-1].startswith("1 of 10 images beside those of the views (images/new.jpg)")


def test_frames_written_on_windows(tmp_path: Path) -> None:
    write_transforms(tmp_path, {"fl_x": 60.0, "w": WIDTH, "h": HEIGHT})
    file = tmp_path / "transforms.json"
    plain = load_capture(tmp_path)
    text = file.read_text().replace('"images/', '".\\\\images\\\\')
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        file.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        capture = load_capture(tmp_path)
        assert [camera.name for camera in capture.cameras] == [camera.name for camera in plain.cameras]
        assert capture.split == plain.split
        (warning,) = capture.warnings
        assert warning == (
            "9 of 9 images lie under other names than the capture gives them, such as '.\\images\\0000.png' at "
            "'images/0000.png'; they are used"
        )


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"", "utf-8"),
        (b"{", "utf-8"),
        (b"\xef\xbb\xbf{", "utf-8-sig"),
        (b"\xff\xfe{\0", "utf-16"),
        (b"\0{", "utf-16-be"),
    ],
)
def test_encodings_are_told_by_their_first_bytes(head: bytes, encoding: str) -> None:
    assert encoding_of(head) == encoding


def test_text_keeps_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 1\r\ntwo\x1e\x85lines\r")
    assert os.fsencode(read_text(tmp_path / "a.txt")) == b"caf\xe9 1\ntwo\x1e\x85lines"
