"""Files among photographs that are no pictures which are decoded: told by their first bytes, named, and what to do.

A whole file of such a format is not damaged, and leaving it out is seldom what is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from splatopt.core.checks import InputError, quoted, short

RAW_ENDINGS = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
        *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    )
)
"""Endings of cameras' raw files, most of which are TIFF files that begin with a small preview."""

UNREAD_ENDINGS = frozenset((".avif", ".heic", ".heif", ".hif", ".jxl", *RAW_ENDINGS))
"""Endings of photographs that are not read everywhere."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
_BEGINNINGS = {
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "JPEG XL",
    b"FUJIFILMCCD-RAW": "raw",
    b"IIRO": "raw",
    b"IIRS": "raw",
    b"MMOR": "raw",
    b"IIU\x00": "raw",
    b"FOVb": "raw",
    b"\x00MRM": "raw",
    b"II*\x00\x10\x00\x00\x00CR": "raw",
    b"II\x1a\x00\x00\x00HEAPCCDR": "raw",
    b"\x1aE\xdf\xa3": "video",
    b"\x00\x00\x01\xba": "video",
    b"\x00\x00\x01\xb3": "video",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"version https://git-lfs": "LFS",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP archive",
    b"\x93NUMPY": "NumPy array",
    b"ply\n": "PLY",
    b"ply\r": "PLY",
}
_MARKUP = {b"<?xml": "XML file", b"<svg": "SVG drawing", b"<html": "web page", b"<!doctype html": "web page"}
_HEAD_BYTES = 64
_REDUCED, _SUBFILE_TYPE, _DNG_VERSION = 1, 254, 50706

_CONVERT = "convert the photographs (JPEG or PNG)"
_ADVICE = {
    "HEIC": f"{_CONVERT}, for example with heif-convert or ImageMagick, or have them read by pip install "
    "'splatopt[heic]'",
    "AVIF": f"{_CONVERT}, for example with avifdec or ImageMagick, or install a Pillow with AVIF",
    "JPEG XL": f"{_CONVERT}, for example with djxl",
    "raw": f"{_CONVERT}, for example with darktable or RawTherapee",
    "video": "take its frames as photographs (JPEG or PNG), for example with ffmpeg",
    "OpenEXR": "save the pictures with 8 or 16 bits (PNG)",
    "Radiance HDR": "save the pictures with 8 or 16 bits (PNG)",
    "LFS": "fetch the photographs themselves with git lfs pull",
}
_NAMES = {
    "raw": "a camera's raw format",
    "video": "a video",
    "LFS": "a pointer of Git LFS",
    "ZIP archive": "a ZIP archive",
    "PLY": "a PLY file",
}


class UnreadFormatError(InputError):
    """A whole file of a format that is not decoded.

    Attributes:
        path: The file.
        form: The format's name.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.path, self.form = path, form
        super().__init__(f"image {short(path)}: {_sentence(form)}")


def form_name(form: str) -> str:
    """Return what a format that :func:`unread_form` found is called in a sentence."""
    return _NAMES.get(form, form)


def _sentence(form: str) -> str:
    """Return what is said of a format that is not read, and what to do."""
    return f"{form_name(form)} is not read; {_ADVICE.get(form, 'put the photographs (JPEG or PNG) in its place')}"


def in_one_sentence(errors: Sequence[UnreadFormatError]) -> list[str]:
    """Return a sentence for each format among these errors: how many files, one of them, and what to do."""
    files: dict[str, list[Path]] = {}
    for error in errors:
        files.setdefault(error.form, []).append(error.path)
    return [
        f"{len(paths)} photograph{'' if len(paths) == 1 else 's'} such as {quoted(paths[0].name)}: {_sentence(form)}"
        for form, paths in files.items()
    ]


def unread_form(path: Path) -> str | None:
    """Return the format of a file that Pillow could not open, by its first bytes, else its ending; None if unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if head[4:8] == b"ftyp":
        return _boxed(head)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "video"
    for beginning, form in _BEGINNINGS.items():
        if head.startswith(beginning):
            return form
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, form in _MARKUP.items():
        if text.startswith(beginning):
            return form
    return "raw" if head[:2] in (b"II", b"MM") and path.suffix.lower() in RAW_ENDINGS else None


def _boxed(head: bytes) -> str | None:
    """Return what a file of ISO boxes is: its own brand, then those that it is compatible with."""
    Image.init()
    register_heif()
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        # Pillow reads AVIF where it was built with it; what it then refuses is damaged.
        return None if "AVIF" in Image.OPEN else "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return None if "HEIF" in Image.OPEN else "HEIC"
    return "raw" if brands[0] == b"crx " else "video"


def is_raw_preview(image: Image.Image, path: Path) -> bool:
    """Return whether an opened TIFF is a camera's raw file, of which Pillow would decode the small preview."""
    if image.format != "TIFF":
        return False
    tags = getattr(image, "tag_v2", {})
    kind = tags.get(_SUBFILE_TYPE, 0)
    reduced = isinstance(kind, int) and bool(kind & _REDUCED)
    return reduced or _DNG_VERSION in tags or path.suffix.lower() in RAW_ENDINGS


def register_heif() -> None:
    """Have Pillow read HEIC where the extra ``heic`` is installed: pi-heif, a decoder alone."""
    try:
        import pi_heif
    except ImportError:
        return
    pi_heif.register_heif_opener()
