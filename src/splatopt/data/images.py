"""Image files: checked early, decoded into bytes."""

from __future__ import annotations

import functools
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, TiffImagePlugin

from splatopt.core.checks import InputError, short
from splatopt.data.image_formats import UnreadFormatError, is_raw_preview, register_heif, unread_form

MAX_PIXELS = 150_000_000
"""Largest image that is decoded, pixels; a small file that claims more is a decompression bomb."""

USUAL_MAX_SIDE = 1600
"""Photographs with a longer side are shrunk to it where nothing else is said, pixels; 3DGS does so too."""

_FORMATS = (
    *("AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI"),
    *("SUN", "TGA", "TIFF", "WEBP", "HEIF"),
)
"""What is decoded of what Pillow knows: pictures of pixels. Drawings such as EPS are programs, which it would run."""

_UNREADABLE = (
    *(
        OSError,
        ValueError,
        SyntaxError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        EOFError,
    ),
    *(struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files; the one of AVIF, for example, a RuntimeError."""

# Markers lie at the end of a whole file. Cameras append previews and clips, so a file without
# its marker there is not condemned but decoded.
_TAIL_BYTES = 65_536
_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}

_TIFF_PARTS = ((273, 279), (324, 325))
"""Tags of TIFF with the offsets and the lengths of its strips, and of its tiles, bytes."""


_MIN_OF_16_BITS = 4096
"""16-bit grey photographs whose largest value is below are not believed: cameras of 12 bits and fewer write such."""


class UnreadableImageError(InputError):
    """An image is missing, cut short or no image at all; ``--skip-missing`` goes on without it."""


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say: size in pixels and whether it is see-through."""

    width: int
    height: int
    has_alpha: bool


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that Pillow has here, built in or by pi-heif; of others it would raise a KeyError each time."""
    Image.init()
    register_heif()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(path: Path) -> Image.Image:
    """Open an image without decoding it; EXIF orientation is left alone, as COLMAP leaves it."""
    if not os.path.isfile(path):  # which is False of a name that no file can have
        raise UnreadableImageError(
            f"image {short(path)} is missing; put it there or go on without it with --skip-missing"
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is lower than ours, which is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _check_canvas(path)
            image = Image.open(path, formats=_formats())
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image {short(path)} claims more than {MAX_PIXELS} pixels; make it smaller") from error
    except _UNREADABLE as error:
        if (form := unread_form(path)) is not None:
            raise UnreadFormatError(path, form) from error
        raise UnreadableImageError(
            f"image {short(path)} is truncated or no image; replace it or go on without it with --skip-missing"
        ) from error
    if is_raw_preview(image, path):
        image.close()
        raise UnreadFormatError(path, "raw")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        image.close()
        raise InputError(f"image {short(path)} claims {size} pixels, more than {MAX_PIXELS}; make it smaller")
    return image


def _check_canvas(path: Path) -> None:
    """Refuse a WebP file whose canvas is too large: its decoder would allocate it before anybody sees its size."""
    with path.open("rb") as file:
        head = file.read(30)
    if head[:4] + head[8:16] == b"RIFFWEBPVP8X" and len(head) == 30:
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        if width * height > MAX_PIXELS:
            raise InputError(
                f"image {short(path)} claims {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller"
            )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _refuse_floats(image: Image.Image, path: Path) -> None:
    if image.mode == "F":
        raise InputError(f"image {short(path)} holds floating-point numbers of any range; save it with 8 or 16 bits")


def _may_be_cut_short(image: Image.Image, path: Path) -> bool:
    """Whether the end of a file is not what its format has there."""
    size = path.stat().st_size
    marker = _END_MARKERS.get(image.format or "")
    if marker is not None:
        with path.open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            return marker not in file.read()
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    try:
        parts = [(image.tag_v2.get(start, ()), image.tag_v2.get(length, ())) for start, length in _TIFF_PARTS]
        ends = [start + length for offsets, lengths in parts for start, length in zip(offsets, lengths, strict=True)]
    except _UNREADABLE:
        return True
    return max(ends, default=size + 1) > size


def read_header(path: Path) -> ImageHeader:
    """Read size and transparency of an image, and find out cheaply whether it is cut short.

    JPEG (several in one file too, as phones write) and PNG files must end with their end marker, TIFF files hold the
    strips or tiles that they say; one that does not is decoded to be sure. So is 16-bit grey, for its largest value.
    Damage in the middle of a file is found when the view is first used.

    Raises:
        UnreadableImageError: The file is missing, truncated or no image.
        UnreadFormatError: It is a whole file of a format that is not decoded.
        InputError: It claims more pixels than ``MAX_PIXELS``, holds floating-point numbers, or 16-bit grey of a camera
            of fewer bits, which would be nearly black.
    """
    with _open(path) as image:
        _refuse_floats(image, path)
        header = ImageHeader(image.width, image.height, _has_alpha(image))
        is_in_doubt = _is_deep_grey(image) or _may_be_cut_short(image, path)
    if is_in_doubt:
        read_channels(path)
    return header


def is_smaller_copy(width: int, height: int, of_width: int, of_height: int) -> bool:
    """Whether an image is smaller than another, and one scale brings each side within a pixel of its own.

    |w/W - h/H| < 1/W + 1/H, so that sides may have been rounded up or down.
    """
    is_smaller = width < of_width and height < of_height
    return is_smaller and abs(width * of_height - height * of_width) < of_width + of_height


def read_pixels(
    path: Path, background: tuple[float, float, float], *, upright: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image into 8-bit RGB, laid over ``background`` where it is see-through.

    Args:
        path: The file.
        background: Red, green, blue in [0, 1].
        upright: Turn it as its EXIF orientation says; COLMAP's poses are of photographs as they are stored.

    Raises:
        UnreadableImageError: The file is missing, truncated or corrupt.
        InputError: It holds floating-point numbers, or 16-bit grey that is nearly black.
    """
    return over_background(read_channels(path, upright=upright), background)


def read_small(path: Path, side: int, background: tuple[float, float, float]) -> UInt8[np.ndarray, "height width 3"]:
    """Decode as :func:`read_pixels` does; a JPEG at a fraction of its size, the shorter side at least ``side``."""
    with _open(path) as image:
        reduction = next((one for one in (8, 4, 2) if min(image.size) >= one * side), 1)
    return over_background(read_channels(path, reduction=reduction), background)


def read_channels(
    path: Path, *, upright: bool = False, reduction: int = 1
) -> UInt8[np.ndarray, "height width channels"]:
    """Decode an image into 8-bit RGB, or RGBA where it is see-through; raises as :func:`read_pixels`.

    Args:
        path: The file.
        upright: Turn it as its EXIF orientation says.
        reduction: By how much its sides may be shorter, 2, 4 or 8, where a decoder can leave finer frequencies out, as
            that of JPEG does.
    """
    pixels = _decoded(path, upright=upright, reduction=reduction)
    if pixels.ndim == 2:
        if 0 < (highest := int(pixels.max())) < _MIN_OF_16_BITS:
            raise InputError(
                f"image {short(path)} holds 16-bit grey of at most {highest} of 65535, which is nearly black, as of a "
                "camera of fewer bits; multiply all photographs by one factor (16 for 12 bits, 64 for 10, 256 for 8) "
                "and save them again"
            )
        # Pillow's own conversion clips at 255 instead of scaling.
        return np.repeat(np.clip(pixels >> 8, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    return pixels


def _decoded(path: Path, *, upright: bool = False, reduction: int = 1) -> np.ndarray:
    """Decode an image as :func:`read_channels` does, 16-bit grey into whole numbers as they are, (H, W) int32."""
    with _open(path) as opened:
        image = opened
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        _refuse_floats(image, path)
        try:
            if _is_deep_grey(image):
                return np.asarray(image).astype(np.int32)
            if upright:
                image = ImageOps.exif_transpose(image)
            if not _has_alpha(image):
                return np.array(image.convert("RGB"))
            return np.asarray(image.convert("RGBA"))
        except _UNREADABLE as error:
            raise UnreadableImageError(
                f"image {short(path)} is truncated or corrupt; replace it or go on without it with --skip-missing"
            ) from error


def over_background(
    pixels: UInt8[np.ndarray, "height width channels"], background: tuple[float, float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay red, green, blue and alpha over a colour, red, green, blue in [0, 1]; without alpha nothing changes."""
    if pixels.shape[2] == 3:
        return pixels
    floats = pixels.astype(np.float32)
    alpha = floats[:, :, 3:] / 255
    behind = np.array(background, dtype=np.float32) * 255
    return np.rint(floats[:, :, :3] * alpha + behind * (1 - alpha)).astype(np.uint8)


@dataclass(frozen=True)
class MaskPixels:
    """What a mask holds.

    Attributes:
        seen: (H, W) bool, the pixels that count.
        highest: Its largest value, of 255, or of 65535 where it is more than 255.
    """

    seen: Bool[np.ndarray, "height width"]
    highest: int


def mask_pixels(path: Path) -> MaskPixels:
    """Decode a mask: pixels count whose brightest channel is at least half of 255.

    A mask of nothing but 0 and 1 is read as one of 0 and 255. One of 16 bits has 65535 for 255, unless nothing in it is
    above 255.

    Args:
        path: The file.

    Raises:
        InputError: The mask is missing, truncated or no image.
    """
    try:
        values = _decoded(path)
    except UnreadableImageError as error:
        raise InputError(
            f"mask {short(path)} is missing, truncated or no image; replace it, or take it away so that all pixels of "
            "its photograph count"
        ) from error
    if values.ndim == 3:
        values = over_background(values, (0.0, 0.0, 0.0)).max(axis=2)
    highest = int(values.max())
    half = 128 if highest <= 255 else 128 << 8
    return MaskPixels(values >= (half if highest > 1 else 1), highest)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Return which pixels a mask leaves to be seen, see :func:`mask_pixels`.

    Args:
        path: The file.
        size: Width and height to which it is resized; its own when None.

    Raises:
        InputError: The mask is missing, truncated or no image.
    """
    seen = mask_pixels(path).seen
    if size is None or size == (seen.shape[1], seen.shape[0]):
        return seen
    return np.asarray(Image.fromarray(seen.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
