"""Photographs of which some pixels do not count: undistorted and resized without a trace of those.

What an image becomes is a mean of the pixels that count, Σ k·m·x / Σ k·m, with the kernel k of undistortion or resizing
and m = 1 where a pixel counts, else 0. A pixel of the result counts where at least half of what it covers does, and is
0 where it does not. Where all that it covers counts, it is what it would be without a mask.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from splatopt.data.lens import Lens

_BICUBIC_REACH = 2.0
"""Pixels on either side that a bicubic kernel sees, of the coarser image."""


class MaskUse(Enum):
    """What becomes of masked pixels: those where a mask is 0, or a photograph is see-through.

    AUTO ignores those of mask files, and lays see-through photographs over the background. IGNORE gives both no weight
    anywhere. BACKGROUND lays both over the background, so that nothing is learned to be there.
    """

    AUTO = "auto"
    IGNORE = "ignore"
    BACKGROUND = "background"


def undistorted(
    pixels: UInt8[np.ndarray, "height width 3"], seen: Bool[np.ndarray, "height width"], lens: Lens
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Return an image as the lens's pinhole sees it, from the pixels that are seen, and which of it are seen then."""
    if lens.is_pinhole:
        return _blanked(pixels, seen), seen
    share = lens.undistort(np.repeat(_bytes(seen)[:, :, None], 3, axis=2))[:, :, 0]
    return _mean(lens.undistort(_blanked(pixels, seen)), share)


def resized(
    pixels: UInt8[np.ndarray, "height width 3"], seen: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Return an image at another size, (width, height), from the pixels that are seen, and which of it are seen then.

    Bicubic where the kernel sees nothing but what counts, else the mean of what a pixel covers and counts.
    """
    blanked = _blanked(pixels, seen)
    if size == (pixels.shape[1], pixels.shape[0]):
        return blanked, seen
    covered, counted = box_mean(blanked, seen, size)
    sharp = np.asarray(Image.fromarray(blanked).resize(size, Image.Resampling.BICUBIC))
    hidden = _any_within(_any_within(~seen, 0, size[1]), 1, size[0])
    return np.where(hidden[:, :, None], covered, sharp), counted


def box_mean(
    pixels: UInt8[np.ndarray, "height width 3"], seen: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Return the means of what is seen of what each pixel of an image of ``size`` covers, and which are seen then."""
    box = Image.Resampling.BOX
    sums = np.asarray(Image.fromarray(_blanked(pixels, seen)).resize(size, box))
    return _mean(sums, np.asarray(Image.fromarray(_bytes(seen)).resize(size, box)))


def _mean(sums: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over what is seen by its share, 255 for all; 0 where that is less than half, which is not seen."""
    seen = share >= 128
    colors = np.rint(sums.astype(np.float32) * 255 / np.maximum(share, 1)[:, :, None])
    return _blanked(np.minimum(colors, 255).astype(np.uint8), seen), seen


def _blanked(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The pixels that are seen, the others 0."""
    return np.where(seen[:, :, None], pixels, np.uint8(0))


def _bytes(seen: np.ndarray) -> np.ndarray:
    return seen.astype(np.uint8) * 255


def _any_within(hidden: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Whether a bicubic kernel that takes an axis to ``size`` pixels sees something hidden."""
    length = hidden.shape[axis]
    scale = length / size
    middle, reach = (np.arange(size) + 0.5) * scale, _BICUBIC_REACH * max(scale, 1.0)
    first = np.clip(np.floor(middle - reach), 0, length).astype(np.int64)
    last = np.clip(np.ceil(middle + reach), 0, length).astype(np.int64)
    before = np.concatenate([np.zeros_like(hidden.take([0], axis), dtype=np.int64), hidden.cumsum(axis)], axis)
    return before.take(last, axis) > before.take(first, axis)
