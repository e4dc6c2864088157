"""Files that are not decoded are called by their names, and nothing whole is called damaged."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import layouts
import numpy as np
import pytest
from capture_cases import write_colmap
from PIL import Image, ImageFile

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.data import images, inspect_capture, load_capture
from splatopt.data.image_formats import UnreadFormatError
from splatopt.data.images import UnreadableImageError, read_header, read_pixels

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(40)


def tiff(**tags: int) -> bytes:
    """A small picture as a TIFF file with tags of its own."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"subfile": 254, "dng": 50706}[name]
        directory[number] = value
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (1, 2, 3)).save(file, "TIFF", tiffinfo=directory)
    return file.getvalue()


CASES = {
    "a.heic": (HEIC, "HEIC is not read; convert the photographs (JPEG or PNG), for example with heif-convert"),
    "b.jpg": (HEIC, "HEIC is not read"),
    "c.heif": (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1miafheix" + bytes(30), "HEIC is not read"),
    "d.hif": (b"\x00\x00\x00\x18ftypmsf1\x00\x00\x00\x00hevcmsf1" + bytes(30), "HEIC is not read"),
    "e.cr3": (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom" + bytes(30), "a camera's raw format is not read"),
    "f.cr2": (b"II*\x00\x10\x00\x00\x00CR\x02\x00" + bytes(40), "a camera's raw format is not read; convert the phot"),
    "g.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(40), "a camera's raw format is not read"),
    "h.nef": (b"MM\x00*\x00\x00\x00\x08" + bytes(40), "a camera's raw format is not read"),
    "i.jxl": (
        b"\xff\x0a" + bytes(40),
        "JPEG XL is not read; convert the photographs (JPEG or PNG), for example with djxl",
    ),
    "j.jxl": (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL is not read"),
    "k.mp4": (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(30), "a video is not read; take its"),
    "l.mov": (b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  " + bytes(30), "a video is not read"),
    "m.mkv": (b"\x1aE\xdf\xa3" + bytes(40), "a video is not read"),
    "n.avi": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(40), "a video is not read"),
    "o.exr": (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR is not read; save the pictures with 8 or 16 bits"),
    "p.hdr": (b"#?RADIANCE\n", "Radiance HDR is not read"),
    "q.jpg": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "a pointer of Git LFS is not read; fetch the",
    ),
    "r.jpg": (b"<!DOCTYPE html><html>", "web page is not read; put the photographs (JPEG or PNG) in its place"),
    "s.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing is not read"),
    "t.pdf": (b"%PDF-1.7", "PDF is not read"),
    "u.dng": (tiff(dng=1), "a camera's raw format is not read"),
    "v.tif": (tiff(subfile=1), "a camera's raw format is not read"),
    "w.arw": (tiff(), "a camera's raw format is not read"),
}


@pytest.mark.parametrize("name", CASES)
def test_formats_are_named(tmp_path: Path, name: str) -> None:
    content, said = CASES[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_header, lambda path: read_pixels(path, (0.0, 0.0, 0.0))):
        with pytest.raises(UnreadFormatError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"image {tmp_path / name}: {said}")


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_what_is_read_is_not_named(tmp_path: Path, form: str) -> None:
    """A whole file is read, whatever its ending; one cut short is cut short."""
    content = encoded(form)
    (tmp_path / "a.heic").write_bytes(content)
    assert read_header(tmp_path / "a.heic").width == 16
    (tmp_path / "a.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_pixels(tmp_path / "a.heic", (0.0, 0.0, 0.0))


def test_avif_is_read_or_named(tmp_path: Path, monkeypatch) -> None:
    if "AVIF" not in images._formats():
        pytest.skip("this Pillow has no AVIF")
    content = encoded("AVIF")
    file = tmp_path / "a.avif"
    file.write_bytes(content)
    assert read_header(file).height == 12
    file.write_bytes(content[:40])
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_header(file)
    file.write_bytes(content)
    monkeypatch.delitem(Image.OPEN, "AVIF")
    monkeypatch.setattr(images, "_formats", lambda: ("PNG",))
    with pytest.raises(UnreadFormatError, match="AVIF is not read; convert the photographs"):
        read_header(file)


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """A capture whose photographs are HEIC files."""
    write_colmap(tmp_path, views=4, binary=False)
    model = tmp_path / "sparse" / "0" / "images.txt"
    model.write_text(model.read_text().replace(".png", ".heic"))
    for file in (tmp_path / "images").iterdir():
        file.with_suffix(".heic").write_bytes(HEIC)
        file.rename(tmp_path / "images" / ("." + file.name))
    return tmp_path


def test_a_capture_of_them_is_one_sentence(unread: Path, capsys) -> None:
    said = "4 photographs such as 'image_000.heic': HEIC is not read; convert the photographs (JPEG or PNG)"
    for words in (["inspect", str(unread)], ["train", str(unread), "--steps", "1", "--out", str(unread / "run")]):
        code = main(words)
        printed = "".join(capsys.readouterr())
        assert code == (0 if words[0] == "inspect" else 2)
        assert said in " ".join(printed.split())
        assert "no image" not in printed
        assert "--skip-missing" not in printed
    found = inspect_capture(unread)
    assert (found.missing, found.truncated, len(found.problems), found.train, found.test) == ((), (), 1, 3, 1)


def test_converted_photographs_are_found_beside(unread: Path) -> None:
    """The model need not be made anew when they have been converted."""
    for file in (unread / "images").glob("*.heic"):
        (file.with_name("." + file.stem + ".png")).rename(file.with_suffix(".png"))
    beside = "4 photographs are taken from files with another ending, such as 'image_000.png' for 'image_000.heic'"
    alone = (
        "4 of 4 images lie under other names than the capture gives them, such as 'image_000.heic' at 'image_000.png'; "
        "they are used"
    )
    for said in (beside, alone):
        capture = load_capture(unread)
        assert capture.warnings[0] == said
        assert capture.images[2].shape == (60, 80, 3)
        for file in (unread / "images").glob("*.heic"):
            file.unlink()


def test_photographs_that_are_not_converted_yet_are_named(unread: Path) -> None:
    model = unread / "sparse" / "0" / "images.txt"
    model.write_text(model.read_text().replace(".heic", ".jpg"))
    with pytest.raises(InputError, match=r"4 photographs such as 'image_000.heic': HEIC is not read; convert"):
        load_capture(unread)


def test_converted_photographs_give_the_size_that_the_file_does_not(tmp_path: Path) -> None:
    layouts.write_json(tmp_path, layouts.example())
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text().replace(".png", ".heic").replace('"w": 32, "h": 24, ', ""))
    camera = load_capture(tmp_path).cameras[0]
    assert (camera.name, camera.width, camera.height) == ("images/000.heic", 32, 24)


class StandInHeif(ImageFile.ImageFile):
    """What pi-heif would register with Pillow: it decodes every file to a picture of one colour."""

    format = "HEIF"

    def _open(self) -> None:
        self._size, self._mode, self.tile = (32, 24), "RGB", []

    def load(self) -> None:
        self.im = Image.new("RGB", self.size, (10, 20, 30)).im


@pytest.fixture
def pi_heif(monkeypatch) -> Iterator[None]:
    """A module of pi-heif's name."""
    module = ModuleType("pi_heif")
    module.register_heif_opener = lambda: Image.register_open(
        "HEIF", StandInHeif, lambda head: head[4:8] == b"ftyp" and head[8:12] == b"heic"
    )
    monkeypatch.setitem(sys.modules, "pi_heif", module)
    images._formats.cache_clear()
    yield
    Image.OPEN.pop("HEIF", None)
    Image.ID[:] = [one for one in Image.ID if one != "HEIF"]
    images._formats.cache_clear()


def test_heic_is_read_where_the_extra_is_installed(tmp_path: Path, pi_heif) -> None:
    layouts.write_json(tmp_path, layouts.example())
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text().replace(".png", ".heic"))
    for one in (tmp_path / "images").iterdir():
        one.with_suffix(".heic").write_bytes(HEIC)
        one.unlink()
    capture = load_capture(tmp_path)
    assert capture.warnings == ()
    assert (capture.images[0].numpy() == [10, 20, 30]).all()


def test_damaged_heic_is_damaged_where_the_extra_is_installed(tmp_path: Path, pi_heif, monkeypatch) -> None:
    def fail(self: StandInHeif) -> None:
        raise ValueError("Invalid input: No 'meta' box")

    monkeypatch.setattr(StandInHeif, "_open", fail)
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match="truncated or no image"):
        read_header(tmp_path / "a.heic")
