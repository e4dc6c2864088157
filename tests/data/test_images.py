from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_cases import picture
from PIL import Image, features

from splatopt.core.checks import InputError
from splatopt.data import images
from splatopt.data.image_store import ImageSource, ImageStore
from splatopt.data.images import UnreadableImageError, read_header, read_pixels
from splatopt.data.lens import Lens

WHITE = (1.0, 1.0, 1.0)


def test_the_formats_are_those_that_pillow_knows() -> None:
    assert set(images._FORMATS) - set(images._formats()) <= {"HEIF"} | (set() if features.check("avif") else {"AVIF"})
    assert "EPS" not in images._formats()


def _store(folder: Path, views: int, budget_bytes: int) -> ImageStore:
    sources = []
    for index in range(views):
        file = folder / f"{index}.png"
        Image.fromarray(picture(8, 4, seed=index)).save(file)
        sources.append(ImageSource(file, Lens("PINHOLE", 8, 4, (5.0, 5.0, 4.0, 2.0)), 8, 4))
    return ImageStore(sources, WHITE, budget_bytes)


def test_images_are_bytes(tmp_path: Path) -> None:
    store = _store(tmp_path, 3, 1000)
    assert len(store) == 3
    for index in range(3):
        image = store[index]
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        np.testing.assert_array_equal(image.numpy(), picture(8, 4, seed=index))
    with pytest.raises(IndexError):
        store[3]
    with pytest.raises(IndexError):
        store[-1]


def test_the_least_recently_used_image_leaves(tmp_path: Path) -> None:
    store = _store(tmp_path, 3, 2 * 96)
    first, second = store[0], store[1]
    assert store.cached_bytes == 192
    assert store[0] is first
    store[2]
    assert store.cached_bytes == 192
    assert store[0] is first
    assert store[1] is not second


@pytest.mark.parametrize("budget", [0, 95])
def test_an_image_beyond_the_budget_is_handed_out_uncached(tmp_path: Path, budget: int) -> None:
    store = _store(tmp_path, 1, budget)
    assert store[0] is not store[0]
    assert store.cached_bytes == 0


def test_threads_share_the_cache(tmp_path: Path) -> None:
    store = _store(tmp_path, 6, 3 * 96)
    failures: list[int] = []

    def work(seed: int) -> None:
        drawn = np.random.default_rng(seed).integers(0, 6, 200).tolist()
        failures.extend(i for i in drawn if not np.array_equal(store[i].numpy(), picture(8, 4, seed=i)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.cached_bytes == 3 * 96


@pytest.mark.parametrize("background", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.4, 0.6)])
def test_see_through_images_lie_over_the_background(tmp_path: Path, background: tuple[float, float, float]) -> None:
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[..., :3] = [200, 100, 50]
    pixels[0, :, 3] = [0, 51, 255]
    Image.fromarray(pixels, mode="RGBA").save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").has_alpha
    row = read_pixels(tmp_path / "a.png", background)[0].astype(float)
    behind = 255 * np.array(background)
    np.testing.assert_allclose(row[0], behind, atol=0.5)
    np.testing.assert_allclose(row[1], 0.2 * np.array([200, 100, 50]) + 0.8 * behind, atol=0.501)
    np.testing.assert_array_equal(row[2], [200, 100, 50])


def test_alpha_comes_with_the_image(tmp_path: Path) -> None:
    pixels = np.concatenate([picture(8, 4), np.arange(32, dtype=np.uint8).reshape(4, 8, 1) * 8], axis=2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, :3]).save(tmp_path / "b.png")
    lens = Lens("PINHOLE", 8, 4, (5.0, 5.0, 4.0, 2.0))
    store = ImageStore(
        [
            ImageSource(tmp_path / "a.png", lens, 8, 4, has_alpha=True),
            ImageSource(tmp_path / "b.png", lens, 8, 4),
            ImageSource(tmp_path / "a.png", lens, 4, 2, has_alpha=True),
        ],
        WHITE,
        1000,
    )
    image, alpha = store.with_alpha(0)
    assert alpha is not None
    np.testing.assert_array_equal(alpha.numpy(), pixels[:, :, 3])
    # What was decoded for its alpha need not be decoded again.
    assert store.cached_bytes == 8 * 4 * 3
    assert store[0] is image
    np.testing.assert_array_equal(image.numpy(), read_pixels(tmp_path / "a.png", WHITE))
    assert torch.equal(store.with_alpha(1)[0], store[1])
    assert store.with_alpha(1)[1] is None
    small = store.with_alpha(2)[1]
    assert small is not None
    expected = Image.fromarray(pixels[:, :, 3]).resize((4, 2), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small.numpy(), np.array(expected))
    with pytest.raises(IndexError):
        store.with_alpha(3)


def test_alpha_is_undistorted_as_the_image_is(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
    Image.fromarray(np.stack([grey, grey, grey, grey], axis=2)).save(tmp_path / "a.png")
    lens = Lens("OPENCV", 60, 40, (50.0, 50.0, 30.0, 20.0, 0.1, -0.02, 0.001, 0.0))
    pinhole = lens.pinhole()
    source = ImageSource(tmp_path / "a.png", lens, pinhole.width, pinhole.height, has_alpha=True)
    alpha = ImageStore([source], WHITE, 0).with_alpha(0)[1]
    assert alpha is not None
    expected = lens.undistort(np.repeat(grey[:, :, None], 3, axis=2))[:, :, 0]
    np.testing.assert_array_equal(alpha.numpy(), expected)


def test_other_pixel_formats(tmp_path: Path) -> None:
    grey = np.array([[0, 128], [255, 7]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("grey", "deep"):
        np.testing.assert_array_equal(read_pixels(tmp_path / f"{name}.png", WHITE), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_pixels(tmp_path / "palette.png", WHITE), [[[10, 20, 30], [255, 255, 255]]])


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(16, 8)).save(tmp_path / "turned.jpg", exif=exif)
    header = read_header(tmp_path / "turned.jpg")
    assert (header.width, header.height, header.has_alpha) == (16, 8, False)
    assert read_pixels(tmp_path / "turned.jpg", WHITE).shape == (8, 16, 3)


def test_a_photograph_may_be_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    picture[:, :20] = 255
    Image.fromarray(picture).save(path, exif=exif, quality=100)
    assert read_pixels(path, (0, 0, 0)).shape == (20, 40, 3)
    turned = read_pixels(path, (0, 0, 0), upright=True)
    assert turned.shape == (40, 20, 3)
    assert turned[:15].min() > 200
    assert turned[25:].max() < 50


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    for read in (read_header, lambda path: read_pixels(path, WHITE)):
        with pytest.raises(InputError, match=r"float\.tif holds floating-point numbers.*save it with 8 or 16 bits"):
            read(tmp_path / "float.tif")


@pytest.mark.parametrize("highest", [1, 255, 1023, 4095])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_cameras_with_fewer_than_16_bits_is_refused(tmp_path: Path, highest: int, ending: str) -> None:
    path = tmp_path / f"dark.{ending}"
    Image.fromarray(np.array([[0, highest]], dtype=np.uint16)).save(path)
    for read in (read_header, lambda path: read_pixels(path, WHITE)):
        with pytest.raises(InputError, match=rf"holds 16-bit grey of at most {highest} of 65535.*by one factor"):
            read(path)


@pytest.mark.parametrize("highest", [0, 4096, 65535])
def test_other_grey_of_16_bits_is_read_by_65535(tmp_path: Path, highest: int) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.array([[0, highest]], dtype=np.uint16)).save(path)
    assert (read_header(path).width, read_header(path).height) == (2, 1)
    assert read_pixels(path, WHITE)[0, :, 0].tolist() == [0, highest >> 8]


def test_damage_in_the_middle_is_named_when_decoded(tmp_path: Path) -> None:
    store = _store(tmp_path, 1, 1000)
    file = tmp_path / "0.png"
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF
    file.write_bytes(content)
    read_header(file)
    with pytest.raises(UnreadableImageError, match=r"0.png is truncated or corrupt"):
        store[0]


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableImageError, match=r"a.png is truncated or no image"):
        read_header(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"b.png is missing"):
        read_header(tmp_path / "b.png")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "message"), [(13_000, "claims 13000x13000 pixels, more than"), (60_000, "claims more than")]
)
def test_a_decompression_bomb_is_refused_unread(tmp_path: Path, side: int, message: str) -> None:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    with pytest.raises(InputError, match=f"bomb.png {message}"):
        read_header(tmp_path / "bomb.png")


def test_a_file_that_changed_since_it_was_checked(tmp_path: Path) -> None:
    store = _store(tmp_path, 1, 1000)
    Image.new("RGB", (9, 4)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"0.png is 9x4 but its camera is 8x4"):
        store[0]
