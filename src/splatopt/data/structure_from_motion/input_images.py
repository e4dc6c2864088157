"""The photographs that poses are looked for: which files they are, which cannot be read, which share a lens."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from splatopt.core.checks import InputError, quoted, short
from splatopt.data.image_folders import has_image_ending
from splatopt.data.image_formats import UnreadFormatError
from splatopt.data.image_lookup import is_hidden
from splatopt.data.images import UnreadableImageError, read_header

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".3gp", ".insv"})
"""Endings by which a video in a folder is told from a photograph; a file that is given itself may have any."""

MIN_IMAGES = 3
"""Poses of fewer photographs are no capture."""

# Make, model; then of the part about the exposure: focal length, the same in 35 mm film, digital zoom, lens.
_CAMERA_TAGS = (0x010F, 0x0110)
_LENS_TAGS = (0x920A, 0xA405, 0xA404, 0xA434)
_EXPOSURE_PART = 0x8769
_DIRECTLY_READ = frozenset({("JPEG", "RGB"), ("JPEG", "L"), ("MPO", "RGB"), ("PNG", "RGB"), ("PNG", "L")})
"""Formats and modes in which COLMAP sees the pixels that our own reader sees."""


@dataclass(frozen=True)
class InputImage:
    """One photograph that can be read.

    Attributes:
        name: Its path below the folder of photographs, with slashes; its name in the capture.
        path: The file.
        lens: What is the same for photographs that one lens at one focal length took.
        as_it_is: Whether COLMAP can read the file; others are converted for it.
    """

    name: str
    path: Path
    lens: tuple[str, ...]
    as_it_is: bool


def image_root(folder: Path) -> Path:
    """Return the folder whose photographs are meant: ``images`` below it, where none lie in it directly."""
    inner = folder / "images"
    return inner if inner.is_dir() and not _images_in(folder) else folder


def image_files(folder: Path, without: Sequence[Path] = ()) -> list[Path]:
    """Return the photographs in ``folder``, in the order of their names as people count; unreadable ones too.

    Those that lie in it directly, or else all below it, in folders that are not hidden and hold no masks.

    Args:
        folder: From :func:`image_root`.
        without: Folders below which nothing is looked at.
    """
    found = _images_in(folder) or [
        path
        for path in folder.rglob("*")
        if _is_image(path)
        and not any(is_hidden(part) or part == "masks" for part in path.relative_to(folder).parts)
        and not any(path.resolve().is_relative_to(other.resolve()) for other in without)
    ]
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what sorts names as people count: ``IMG_2`` before ``IMG_10``; equal for no two names."""
    parts = re.findall(r"[0-9]+|[^0-9]", name)
    return (*((0, int(one), "") if one[0] in "0123456789" else (1, 0, one) for one in parts), (-1, 0, name))


def read_images(folder: Path, files: Iterable[Path]) -> tuple[list[InputImage], list[str]]:
    """Return the photographs that can be read, and the names of those that cannot."""
    readable, unreadable = [], []
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            header = read_header(path)
        except (UnreadableImageError, UnreadFormatError):
            unreadable.append(name)
            continue
        kind, mode, lens = _kind_and_lens(path)
        group = (Path(name).parent.as_posix(), f"{header.width}x{header.height}", *lens)
        readable.append(InputImage(name, path, group, (kind, mode) in _DIRECTLY_READ))
    return readable, unreadable


def check_enough(images: Sequence[InputImage], unreadable: Sequence[str], folder: Path) -> None:
    """Raise InputError where there are fewer than MIN_IMAGES photographs that can be read."""
    if len(images) >= MIN_IMAGES:
        return
    unread = f"; {len(unreadable)} more cannot be read, such as {quoted(unreadable[0])}" if unreadable else ""
    raise InputError(
        f"{short(folder)} holds {len(images)} photographs that can be read{unread}; expected at least {MIN_IMAGES} of "
        "one place, as JPEG or PNG, or give a video"
    )


def by_lens(images: Sequence[InputImage]) -> list[list[int]]:
    """Return the places in ``images`` of those that share a camera: folder, size and what EXIF says are the same."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.lens, []).append(place)
    return list(groups.values())


def offered_command(path: Path) -> str:
    """Return the command that finds poses for what lies at ``path``; empty where there is nothing to find them for."""
    videos = [path] if path.is_file() else sorted(one for one in _listed(path) if _is_video(one))
    if path.is_dir() and (_images_in(path) or _images_in(image_root(path))):
        source = path
    elif videos and _is_video(videos[0]):
        source = videos[0]
    else:
        return ""
    out = Path("captures") / (source.resolve().stem if source.is_file() else source.resolve().name)
    return shlex.join(["splatopt", "poses", str(source), "--out", str(out)])


def _listed(folder: Path) -> list[Path]:
    """What lies directly in a folder, hidden files left out."""
    return [path for path in folder.iterdir() if not is_hidden(path.name)] if folder.is_dir() else []


def _images_in(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if _is_image(path)]


def _is_image(path: Path) -> bool:
    return has_image_ending(path.name) and path.is_file()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def opened(path: Path) -> Image.Image:
    """Open a photograph that has been checked, without Pillow's warning of large ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _kind_and_lens(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return format and mode of an image, and what its EXIF says of camera and lens, which damaged EXIF does not."""
    with opened(path) as image:
        kind, mode = image.format or "", image.mode
        try:
            exif = image.getexif()
            exposure = exif.get_ifd(_EXPOSURE_PART)
            found = [exif.get(tag) for tag in _CAMERA_TAGS] + [exposure.get(tag) for tag in _LENS_TAGS]
        except Exception:  # whatever Pillow makes of damaged bytes
            found = []
    return kind, mode, tuple(str(value) for value in found)
