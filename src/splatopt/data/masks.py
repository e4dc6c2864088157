"""Mask files of photographs: where they lie, whether they fit, and what is said of them.

A pixel of 0 is not seen, one of 255 is; in between, half decides. COLMAP and nerfstudio mean the same by theirs.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Generic, Protocol, TypeVar, runtime_checkable

from splatopt.core.checks import InputError, cut, quoted, short
from splatopt.data.image_lookup import is_hidden
from splatopt.data.images import ImageHeader, is_smaller_copy, mask_pixels
from splatopt.data.seen_pixels import MaskUse
from splatopt.data.source import IMAGE_SUFFIXES, Finding, PosedImage, Source

FOLDERS = ("masks", "mask")
"""Where masks lie, around the folder of the photographs; of a smaller copy, ``images_4``, first ``masks_4``."""

_MAX_THREADS = 8


@runtime_checkable
class LookedAt(Protocol):
    """A view whose photograph was looked at."""

    @property
    def posed(self) -> PosedImage:
        """What the capture says."""
        ...

    @property
    def header(self) -> ImageHeader:
        """What the photograph says."""
        ...


One = TypeVar("One", bound=LookedAt)


@dataclass(frozen=True)
class MaskCheck(Generic[One]):
    """What masks make of views.

    Attributes:
        views: Those of which something is left.
        problems: Masks that cannot be used, one sentence each.
        warnings: One sentence each.
        found: Masks and see-through photographs, and what becomes of them.
    """

    views: list[One]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    found: tuple[Finding, ...]

    def refuse_problems(self) -> None:
        """Raise InputError where a mask cannot be used."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise InputError(f"{self.problems[0]}{more}")

    def told(self, source: Source) -> Source:
        """Return what was read of the capture with what is said here."""
        return replace(source, warnings=(*source.warnings, *self.warnings), found=(*source.found, *self.found))


def with_masks(path: Path, source: Source) -> Source:
    """Return what was read of a capture with the masks that lie there; those that views name come first.

    A photograph's mask has its name, that with ``.png`` behind it, or its name with another ending, in ``masks`` or
    ``mask`` in or beside the folder of the photographs, or a folder around it; or lies beside it as ``NAME_mask.png``,
    as ODM has it.

    Args:
        path: The capture.
        source: What its reader found.
    """
    root = path if path.is_dir() else path.parent
    places = _Places(root, source.images)
    images = tuple(_with_mask(places, image) for image in source.images)
    warnings, found = list(source.warnings), list(source.found)
    named = [image for image in source.images if image.mask is not None]
    missing = [image for image, after in zip(source.images, images, strict=True) if image.mask and not after.mask]
    if missing:
        warnings.append(
            f"{len(missing)} of {len(named)} masks that the capture names are not there, such as "
            f"{quoted(str(missing[0].mask))}; all pixels of those views count"
        )
    without = [image for image in images if image.mask is None]
    if 0 < len(without) < len(images) and len(without) > len(missing):
        warnings.append(
            f"{len(without)} of {len(images)} views have no mask, such as {quoted(without[0].name)}; all pixels of "
            "those views count"
        )
    if len(without) == len(images):
        counts = {folder: count for folder in places.folders if (count := _pictures(folder))}
        names = {folder: os.path.relpath(folder, root).replace(os.sep, "/") for folder in counts}
        unnamed = "none has the name of a photograph"
        found += [
            Finding(f"{count} images in {cut(names[folder])}", False, unnamed) for folder, count in counts.items()
        ]
    if layers := sum(_has_layer(one.path) for one in source.images):
        how = (
            "programs disagree on which of their pixels count; to use them, put them into a folder masks, with 0 for "
            "what is left out"
        )
        found.append(Finding(f"{layers} images ….mask.png beside the photographs", False, how))
    dynamic = sum(os.path.isfile(one.path.parent / f"dynamic_mask_{one.path.stem}.png") for one in source.images)
    if dynamic:
        how = "instant-ngp leaves out their white pixels and not the black ones; invert them into a folder masks"
        found.append(Finding(f"{dynamic} images dynamic_mask_….png", False, how))
    return replace(source, images=images, warnings=tuple(warnings), found=tuple(found))


def _has_layer(image: Path) -> bool:
    """Whether a mask as RealityCapture writes them lies beside an image."""
    names = (image.name, image.stem)
    return any(name and os.path.isfile(image.with_name(f"{name}.mask.png")) for name in names)


def _with_mask(places: _Places, image: PosedImage) -> PosedImage:
    """Return a view with the mask that is there, or with none."""
    named = (image.mask,) if image.mask is not None else ()
    mask = next((one for one in (*named, *places.of(image)) if os.path.isfile(one)), None)
    return image if mask == image.mask else replace(image, mask=mask)


class _Places:
    """Where the masks of a capture's views may lie: in the folders around each photograph, up to the capture's.

    Args:
        root: The capture.
        images: Its views.
    """

    def __init__(self, root: Path, images: Sequence[PosedImage]) -> None:
        self.root = Path(os.path.normpath(root))
        self._tops: dict[Path, set[str]] = defaultdict(set)
        self._there: dict[Path, bool] = {}
        for image in images:
            for around, below in self._around(image.path):
                self._tops[around] |= set(below[:-1][:1])

    @property
    def folders(self) -> list[Path]:
        """The folders of masks that are there, by name."""
        return sorted(one for around in self._tops for name in FOLDERS if self._is_there(one := around / name))

    def of(self, image: PosedImage) -> Iterator[Path]:
        """Where a view's mask may lie, the likeliest first.

        Below a folder of masks, the name of the photographs' folder is repeated only where there are several.
        """
        for around, below in self._around(image.path):
            shrunk = re.fullmatch(r"images?(_\d+)", below[0])
            folders = (*(name + shrunk[1] for name in FOLDERS if shrunk), *FOLDERS)
            strip = len(below) > 1 and len(self._tops[around]) == 1
            names = [PurePath(*below[1:]) if strip else PurePath(*below), PurePath(image.name)]
            for folder in (around / name for name in folders if self._is_there(around / name)):
                for name in names:
                    if name.is_absolute() or ".." in name.parts or not name.name:
                        continue
                    yield folder / name
                    yield folder / name.with_name(f"{name.name}.png")
                    yield from (folder / name.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)
        stem = image.path.stem
        yield from (image.path.with_name(f"{stem}_mask{suffix}") for suffix in IMAGE_SUFFIXES if stem)

    def _around(self, image: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield the folders around an image, from its own to the capture's, and its path below each.

        Of one outside of the capture they end with the folder that holds both, and the capture's is added.
        """
        file = Path(os.path.normpath(image))
        ends = os.path.abspath(self.root), os.path.abspath(file)
        try:
            depth = len(Path(ends[1]).relative_to(os.path.commonpath(ends)).parts)
        except ValueError:  # on another disk
            depth = 0
        for up in range(min(depth, len(file.parents))):
            yield file.parents[up], file.parts[-1 - up :]
        if not ends[1].startswith(os.path.join(ends[0], "")):
            yield self.root, (file.name,)

    def _is_there(self, folder: Path) -> bool:
        if folder not in self._there:
            self._there[folder] = os.path.isdir(folder)
        return self._there[folder]


def _pictures(folder: Path) -> int:
    """How many images lie in a folder."""
    if not folder.is_dir():
        return 0
    return sum(1 for one in folder.rglob("*") if one.suffix in IMAGE_SUFFIXES and not is_hidden(one.name))


def check_masks(views: Sequence[One], use: MaskUse) -> MaskCheck[One]:
    """Look into all masks, and leave out the views of which none of the pixels would count.

    Args:
        views: Views whose photographs were looked at.
        use: What becomes of masked pixels.
    """
    files = sorted({view.posed.mask for view in views if view.posed.mask is not None})
    with ThreadPoolExecutor(max_workers=_MAX_THREADS) as threads:
        looks = dict(zip(files, threads.map(_look, files), strict=True))
    kept: list[One] = []
    empty: dict[str, int] = {}
    problems: list[str] = []
    for view in views:
        mask = view.posed.mask
        look = None if mask is None else looks[mask]
        if isinstance(look, str):
            problems.append(look)
        elif mask is not None and look is not None:
            if not _fits(view.header, look):
                problems.append(
                    f"mask {short(mask)} is {look.width}x{look.height} pixels but its photograph "
                    f"{quoted(view.posed.name)} is {view.header.width}x{view.header.height}; use masks of the "
                    "photographs' shape"
                )
            if look.is_empty:
                empty[view.posed.name] = look.highest
            if look.is_empty and use is not MaskUse.BACKGROUND:
                continue
        kept.append(view)
    warnings = tuple(_said_of_empty(empty, use))
    return MaskCheck(kept, tuple(dict.fromkeys(problems)), warnings, _findings(views, use))


@dataclass(frozen=True)
class _Look:
    """Size of a mask in pixels, whether it leaves nothing, and its largest value."""

    width: int
    height: int
    is_empty: bool
    highest: int


def _look(path: Path) -> _Look | str:
    """What a mask is, or in a sentence why it cannot be used."""
    try:
        pixels = mask_pixels(path)
    except InputError as error:
        return str(error)
    height, width = pixels.seen.shape
    return _Look(width, height, not pixels.seen.any(), pixels.highest)


def _said_of_empty(empty: Mapping[str, int], use: MaskUse) -> Iterator[str]:
    """Yield what is said of masks that leave nothing: the views they are of, and their largest values."""
    highest = max(empty.values(), default=0)
    if not empty or (use is MaskUse.BACKGROUND and not highest):
        return
    said = f"the masks of {len(empty)} views leave none of their pixels"
    if highest:
        labels = ", which looks like class numbers" if highest < 128 else ""
        said += (
            f"; their highest value is {highest}{labels}, and pixels count from half of "
            f"{255 if highest <= 255 else 65535} on"
        )
    if use is not MaskUse.BACKGROUND:
        said += f"; left out are {', '.join(cut(name) for name in list(empty)[:5])}{', …' if len(empty) > 5 else ''}"
    yield said


def _fits(header: ImageHeader, mask: _Look) -> bool:
    """Whether a mask has the shape of its photograph, to within a pixel."""
    across, down = mask.width / header.width, mask.height / header.height
    differences = abs(mask.height - header.height * across), abs(mask.width - header.width * down)
    same_shape = differences[0] <= max(1.0, across) and differences[1] <= max(1.0, down)
    return same_shape or is_smaller_copy(mask.width, mask.height, header.width, header.height)


def _findings(views: Sequence[LookedAt], use: MaskUse) -> tuple[Finding, ...]:
    """Say how many views have masks or are see-through, and what becomes of it."""
    ignored = "have no weight in loss, scores and growth"
    laid = "show the background"
    found = []
    masks = [view.posed.mask for view in views if view.posed.mask is not None]
    if masks:
        folders = ", ".join(cut(name) for name in sorted({mask.parent.name for mask in masks})[:3])
        how = laid if use is MaskUse.BACKGROUND else ignored
        found.append(Finding(f"masks of {len(masks)} of {len(views)} views ({folders})", True, f"pixels of 0 {how}"))
    if see_through := sum(view.header.has_alpha for view in views):
        how = ignored if use is MaskUse.IGNORE else laid
        found.append(Finding(f"alpha of {see_through} of {len(views)} views", True, f"see-through pixels {how}"))
    return tuple(found)
