"""Which files are photographs, in which order, and which of them share a lens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import load_capture
from splatopt.data.readers import read_source
from splatopt.data.structure_from_motion.input_images import (
    by_lens,
    check_enough,
    image_files,
    image_root,
    natural_order,
    offered_command,
    read_images,
)


def write(path, size=(8, 6), exif=None, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(settings.pop("mode", "RGB"), size).save(path, **({"exif": exif} if exif else {}), **settings)
    return path


def exif_of(make="Phone", model="7", focal=4.2):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = make, model
    exif.get_ifd(0x8769)[0x920A] = focal
    return exif


def names(folder, without=()):
    return [path.relative_to(folder).as_posix() for path in image_files(folder, without)]


def test_names_are_ordered_as_people_count():
    expected = ["1.jpg", "2.jpg", "10.jpg", "IMG_2.jpg", "IMG_10.jpg", "IMG_010.jpg", "a", "a1b2", "a1b10"]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=natural_order) == [*expected[:4], "IMG_010.jpg", "IMG_10.jpg", *expected[6:]]


def test_photographs_lie_in_the_folder_in_its_images_or_below(tmp_path):
    write(tmp_path / "below" / "b" / "2.png")
    write(tmp_path / "below" / "a" / "1.jpg")
    write(tmp_path / "below" / "masks" / "1.png")
    write(tmp_path / "below" / ".thumbnails" / "1.jpg")
    write(tmp_path / "below" / "out" / "images" / "1.jpg")
    (tmp_path / "below" / "notes.txt").write_text("no photograph")
    assert names(tmp_path / "below", [tmp_path / "below" / "out"]) == ["a/1.jpg", "b/2.png"]
    write(tmp_path / "below" / "images" / "3.jpg")
    write(tmp_path / "below" / "images_4" / "3.jpg")
    root = image_root(tmp_path / "below")
    assert (root, names(root)) == (tmp_path / "below" / "images", ["3.jpg"])
    write(tmp_path / "below" / "4.JPG")
    root = image_root(tmp_path / "below")
    assert (root, names(root)) == (tmp_path / "below", ["4.JPG"])


def test_what_cannot_be_read_is_named(tmp_path):
    good = write(tmp_path / "1.jpg", (64, 48))
    (tmp_path / "2.jpg").write_bytes(good.read_bytes()[:200])
    (tmp_path / "3.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "5.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")  # a phone's, by a wrong name
    (tmp_path / "6.dng").write_bytes(b"II*\0")
    (tmp_path / "4.png").write_bytes(b"")
    readable, unreadable = read_images(tmp_path, image_files(tmp_path))
    assert ([image.name for image in readable], unreadable) == (
        ["1.jpg"],
        ["2.jpg", "3.heic", "4.png", "5.jpg", "6.dng"],
    )
    with pytest.raises(InputError, match=r"holds 1 photographs .*5 more cannot be read, such as '2.jpg'; .*at least 3"):
        check_enough(readable, unreadable, tmp_path)


def test_one_lens_is_one_folder_size_and_exif(tmp_path):
    write(tmp_path / "1.jpg", exif=exif_of())
    write(tmp_path / "2.jpg", exif=exif_of())
    write(tmp_path / "3.jpg", exif=exif_of(focal=8.4))
    write(tmp_path / "4.jpg", exif=exif_of(model="8"))
    write(tmp_path / "5.jpg")
    write(tmp_path / "6.jpg", (6, 8), exif=exif_of())
    write(tmp_path / "7.png")
    images, _ = read_images(tmp_path, image_files(tmp_path))
    assert by_lens(images) == [[0, 1], [2], [3], [4, 6], [5]]


def test_what_colmap_would_see_otherwise_is_converted(tmp_path):
    for name, settings in {
        "a.jpg": {},
        "b.jpg": {"mode": "CMYK"},
        "c.png": {},
        "d.png": {"mode": "RGBA"},
        "e.png": {"mode": "P"},
        "f.png": {"mode": "I;16"},
        "g.webp": {},
        "h.tif": {},
    }.items():
        write(tmp_path / name, **settings)
    images, _ = read_images(tmp_path, image_files(tmp_path))
    assert [image.name for image in images if image.as_it_is] == ["a.jpg", "c.png"]
    assert len(images) == 8


def test_damaged_exif_is_none(tmp_path):
    path = write(tmp_path / "1.jpg", exif=exif_of())
    data = path.read_bytes()
    at = data.index(b"Exif\0\0") + 6
    path.write_bytes(data[:at] + b"\xff" * 40 + data[at + 40 :])
    images, unreadable = read_images(tmp_path, [path])
    assert (len(images), unreadable) == (1, [])


def test_the_command_is_offered_where_there_is_something_to_pose(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my room" / "1.jpg")
    write(tmp_path / "nested" / "images" / "1.jpg")
    for video in ("walk.MP4", "films/walk.mov"):
        (tmp_path / video).parent.mkdir(exist_ok=True)
        (tmp_path / video).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    expected = {
        "my room": "splatopt poses 'my room' --out 'captures/my room'",
        "nested": "splatopt poses nested --out captures/nested",
        "walk.MP4": "splatopt poses walk.MP4 --out captures/walk",
        "films": "splatopt poses films/walk.mov --out captures/walk",
    }
    for name, command in expected.items():
        assert main(["inspect", name]) == 2
        assert capsys.readouterr().err.endswith(f"; to find the poses of what is there, type {command}\n")
    with pytest.raises(InputError, match="type splatopt poses nested --out captures/nested$"):
        load_capture(Path("nested"))  # as training does
    for name in ("empty", "notes.txt", "nowhere"):
        assert offered_command(tmp_path / name) == ""
        with pytest.raises(InputError, match="no capture at|no model found") as raised:
            read_source(tmp_path / name)
        assert "splatopt poses" not in str(raised.value)


def test_a_hidden_video_is_not_offered(tmp_path: Path) -> None:
    for name in ("._clip.mp4", "clip.mp4"):
        (tmp_path / name).write_bytes(b"")
    assert offered_command(tmp_path).startswith(f"splatopt poses {tmp_path}/clip.mp4 ")
