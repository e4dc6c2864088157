"""The images of a capture as they are compared: decoded when asked for, kept as bytes within a budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from splatopt.core.checks import InputError, short
from splatopt.data.images import USUAL_MAX_SIDE, over_background, read_channels, read_mask
from splatopt.data.lens import Lens, Pinhole
from splatopt.data.seen_pixels import MaskUse, resized, undistorted


def shrunk_size(width: float, height: float, factor: int) -> tuple[int, int]:
    """Return width and height divided by ``factor``, rounded, at least 1."""
    return max(1, round(width / factor)), max(1, round(height / factor))


@dataclass(frozen=True)
class ImageSource:
    """How the pixels of one view come about.

    Attributes:
        path: The file.
        lens: Intrinsics of the file, at its own size.
        width: Width after undistortion and resizing, pixels.
        height: Height after undistortion and resizing, pixels.
        has_alpha: Whether the file is see-through.
        mask: The file of its mask; None where it has none.
        use: What becomes of masked pixels.
        pinhole: What the view is seen by, of any size; the lens's own when None.
    """

    path: Path
    lens: Lens
    width: int
    height: int
    has_alpha: bool = False
    mask: Path | None = None
    use: MaskUse = MaskUse.AUTO
    pinhole: Pinhole | None = None

    def shrunk(self, factor: int) -> ImageSource:
        """Return the source of the same view whose sides are ``factor`` times shorter, rounded."""
        width, height = shrunk_size(self.width, self.height, factor)
        return replace(self, width=width, height=height)

    @property
    def is_masked(self) -> bool:
        """Whether some of its pixels may not count."""
        if self.use is MaskUse.BACKGROUND:
            return False
        return self.mask is not None or (self.has_alpha and self.use is MaskUse.IGNORE)

    @property
    def decoded_bytes(self) -> int:
        """Bytes that it takes once decoded."""
        return self.width * self.height * (4 if self.is_masked else 3)

    @property
    def shows_background(self) -> bool:
        """Whether some of its pixels may be see-through."""
        if self.use is MaskUse.BACKGROUND:
            return self.has_alpha or self.mask is not None
        return self.has_alpha and self.use is MaskUse.AUTO


@dataclass(frozen=True)
class LoadedImage:
    """The pixels of one view.

    Attributes:
        pixels: (H, W, 3) uint8, red, green, blue; 0 where a pixel does not count.
        seen: (H, W) bool, which pixels count; None where all do.
    """

    pixels: Tensor
    seen: Tensor | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pixels.numel() + (0 if self.seen is None else self.seen.numel())


def load_image(source: ImageSource, background: tuple[float, float, float]) -> LoadedImage:
    """Decode, composite, undistort and resize one view (bicubic with antialiasing, as 3DGS).

    Raises:
        InputError: The file or its mask is unreadable, or its size is no longer the lens's.
    """
    return _composed(*_decoded(source), background)


_REDUCTIONS = (8, 4, 2)
_MIN_UNDISTORTED_SHRINK = 2.4
"""From which on what is undistorted is decoded at half its size: from 12 megapixels to 1600 pixels it is 2.5."""


def _decoded(source: ImageSource) -> tuple[ImageSource, UInt8[np.ndarray, "height width channels"]]:
    """Decode a view's file, at a part of its size where that is enough and the decoder can.

    Only of files with a longer side than ``USUAL_MAX_SIDE``, whose sides are multiples of what they are divided by.
    Where it could be a quarter or less it is decoded one step finer, and what is to be undistorted, which is bilinear,
    at a half at most: against what comes of the whole file the PSNR stays above 40 dB.

    Returns:
        How the view comes about from what was decoded, and that.
    """
    lens = source.lens
    reduction = _reduction(source)
    decoded = read_channels(source.path, reduction=reduction)
    size, whole = (lens.width // reduction, lens.height // reduction), (lens.width, lens.height)
    if reduction > 1 and (found := (decoded.shape[1], decoded.shape[0])) == size:
        return replace(source, lens=lens.resized(*size), pinhole=lens.pinhole()), decoded
    if reduction > 1 and found != whole:
        decoded = read_channels(source.path)  # another file than was checked, which is said of its own size
    return source, decoded


def _reduction(source: ImageSource) -> int:
    """By how much the sides of a view's file may be shorter when it is decoded: no pixel is made of less than one."""
    lens = source.lens
    if lens.longer_side <= USUAL_MAX_SIDE or (source.is_masked and not lens.is_pinhole):
        return 1  # a mask is undistorted along with its photograph, pixel by pixel
    shrunk = min(lens.width / source.width, lens.height / source.height)
    fits = [one for one in _REDUCTIONS if one <= shrunk and not (lens.width % one or lens.height % one)]
    if not lens.is_pinhole:
        return 2 if fits and shrunk >= _MIN_UNDISTORTED_SHRINK else 1
    return max(2, fits[0] // 2) if fits else 1


def _composed(source: ImageSource, decoded: np.ndarray, background: tuple[float, float, float]) -> LoadedImage:
    """Make of what was decoded what is compared."""
    if not source.is_masked:
        laid = over_background(_with_matte(source, decoded), background)
        return LoadedImage(torch.from_numpy(_at_size(laid, source)), None)
    _check_size(decoded, source)
    seen = np.ones(decoded.shape[:2], dtype=np.bool_)
    if source.mask is not None:
        seen = read_mask(source.mask, (decoded.shape[1], decoded.shape[0]))
    if source.use is MaskUse.IGNORE and decoded.shape[2] == 4:
        seen = seen & (decoded[:, :, 3] >= 128)
        decoded = decoded[:, :, :3]
    pixels, seen = undistorted(over_background(decoded, background), seen, source.lens)
    pixels, seen = resized(pixels, seen, (source.width, source.height))
    return LoadedImage(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(np.ascontiguousarray(seen)))


def _with_matte(source: ImageSource, decoded: np.ndarray) -> np.ndarray:
    """Return what was decoded, see-through where its mask is 0 if that is what masks are for."""
    if source.mask is None or source.use is not MaskUse.BACKGROUND:
        return decoded
    seen = read_mask(source.mask, (decoded.shape[1], decoded.shape[0])).astype(np.uint8)
    alpha = decoded[:, :, 3] if decoded.shape[2] == 4 else np.uint8(255)
    return np.concatenate([decoded[:, :, :3], (alpha * seen)[:, :, None]], axis=2)


def _at_size(pixels: UInt8[np.ndarray, "_ _ 3"], source: ImageSource) -> UInt8[np.ndarray, "height width 3"]:
    """Undistort and resize what was decoded; raises InputError where it has not the size of the lens."""
    _check_size(pixels, source)
    return resampled(source.lens.undistort(pixels), (source.width, source.height), _part_seen(source))


def _part_seen(source: ImageSource) -> tuple[float, float, float, float] | None:
    """Return left, upper, right and lower border of what a view sees of its undistorted file, pixels; None for all.

    A lens of a reduced file has a pinhole whose sides are rounded, and so sees a little more or less.
    """
    if source.pinhole is None or source.lens.is_pinhole:
        return None
    own, wanted = source.lens.pinhole(), source.pinhole
    across, down = own.fx / wanted.fx, own.fy / wanted.fy
    left, upper = own.cx - across * wanted.cx, own.cy - down * wanted.cy
    right, lower = left + across * wanted.width, upper + down * wanted.height
    return max(0.0, left), max(0.0, upper), min(float(own.width), right), min(float(own.height), lower)


def resampled(
    pixels: UInt8[np.ndarray, "_ _ 3"],
    size: tuple[int, int],
    part: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image, or a part of it, at another size, (width, height): bicubic, low-passed where it shrinks."""
    if part is not None or (pixels.shape[1], pixels.shape[0]) != size:
        pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, part))
    return np.ascontiguousarray(pixels)


def _check_size(pixels: np.ndarray, source: ImageSource) -> None:
    height, width = pixels.shape[:2]
    if (width, height) != (source.lens.width, source.lens.height):
        raise InputError(
            f"image {short(source.path)} is {width}x{height} but its camera is "
            f"{source.lens.width}x{source.lens.height}; it changed since it was checked"
        )


class PixelWeights:
    """How much each pixel of a store's views counts: 1, or 0 where it is masked."""

    def __init__(self, store: ImageStore) -> None:
        """Read them from ``store``, which reads them with the images."""
        self._store = store

    def __len__(self) -> int:
        """Number of views."""
        return len(self._store)

    def __getitem__(self, index: int) -> Float[Tensor, "height width"] | None:
        """Return the weights of view ``index``, float32; None where all pixels count.

        Raises:
            InputError: The file or its mask is missing, truncated or corrupt, and is named.
        """
        seen = self._store.seen(index)
        return None if seen is None else seen.float()


class ImageStore:
    """The views' pixels, decoded on first use; the least recently used leave when the budget is spent.

    Safe to use from several threads. A tensor that is handed out is shared with the cache and
    must not be written to.
    """

    def __init__(
        self, sources: Sequence[ImageSource], background: tuple[float, float, float], budget_bytes: int
    ) -> None:
        """Keep what is needed to decode.

        Args:
            sources: One per view.
            background: What lies behind see-through images, red, green, blue in [0, 1].
            budget_bytes: Decoded bytes that are kept at most; one image larger than this is handed out uncached.
        """
        self.sources = tuple(sources)
        self.background = background
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, LoadedImage] = OrderedDict()
        self._cached_bytes = 0
        self._under_way: dict[int, threading.Event] = {}
        self._is_given = False

    @classmethod
    def decoded(
        cls,
        sources: Sequence[ImageSource],
        background: tuple[float, float, float],
        images: Sequence[UInt8[Tensor, "_ _ 3"]],
    ) -> ImageStore:
        """Return a store whose images are all there already and stay, one per source; no file is opened."""
        store = cls(sources, background, sum(image.numel() for image in images))
        store._is_given = True
        for index, image in enumerate(images):
            store._keep(index, LoadedImage(image, None))
        return store

    def shrunk(self, factor: int) -> ImageStore:
        """Return a store of the same views whose sides are ``factor`` times shorter, with a budget of its own.

        They are made from the files as this store's are, and filtered as for a capture's ``downscale``; where there
        are no files, from this store's pixels.
        """
        sources = [source.shrunk(factor) for source in self.sources]
        if not self._is_given:
            return ImageStore(sources, self.background, self.budget_bytes)
        sizes = [(source.width, source.height) for source in sources]
        images = [resampled(self[index].numpy(), size) for index, size in enumerate(sizes)]
        return ImageStore.decoded(sources, self.background, [torch.from_numpy(image) for image in images])

    def __len__(self) -> int:
        """Number of views."""
        return len(self.sources)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded images that are kept now."""
        return self._cached_bytes

    def has(self, index: int) -> bool:
        """Whether view ``index`` is decoded, or about to be."""
        return index in self._cache or index in self._under_way

    @property
    def weights(self) -> PixelWeights | None:
        """How much each pixel of each view counts; None where all count alike."""
        return PixelWeights(self) if any(source.is_masked for source in self.sources) else None

    def __getitem__(self, index: int) -> UInt8[Tensor, "height width 3"]:
        """Return view ``index`` as (H, W, 3) uint8, red, green, blue; 0 where a pixel does not count.

        Raises:
            InputError: The file or its mask is missing, truncated or corrupt, and is named.
        """
        return self._loaded(index).pixels

    def seen(self, index: int) -> Bool[Tensor, "height width"] | None:
        """Return which pixels of view ``index`` count; None where all do.

        Raises:
            InputError: The file or its mask is missing, truncated or corrupt, and is named.
        """
        return self._loaded(index).seen if self.sources[index].is_masked else None

    def _loaded(self, index: int) -> LoadedImage:
        if not 0 <= index < len(self.sources):
            raise IndexError(f"view {index} of {len(self.sources)}")
        while True:
            with self._lock:
                if index in self._cache:
                    self._cache.move_to_end(index)
                    return self._cache[index]
                other = self._under_way.get(index)
                if other is None:
                    own = self._under_way[index] = threading.Event()
                    break
            other.wait()  # for the thread that decodes it already
        # Decoding happens outside the lock, so that threads decode side by side.
        try:
            loaded = load_image(self.sources[index], self.background)
            self._keep(index, loaded)
        finally:
            with self._lock:
                del self._under_way[index]
            own.set()
        return loaded

    def with_alpha(self, index: int) -> tuple[UInt8[Tensor, "height width 3"], UInt8[Tensor, "height width"] | None]:
        """Return view ``index``, and its alpha, 255 where it is opaque; None where nothing of it shows the background.

        Raises:
            InputError: The file or its mask is missing, truncated or corrupt, and is named.
        """
        if not 0 <= index < len(self.sources) or not (source := self.sources[index]).shows_background:
            return self[index], None
        source, decoded = _decoded(source)
        loaded = _composed(source, decoded, self.background)
        self._keep(index, loaded)
        opaque = _with_matte(source, decoded)
        alpha = np.repeat(opaque[:, :, -1:], 3, axis=2) if opaque.shape[2] == 4 else np.full_like(opaque, 255)
        return loaded.pixels, torch.from_numpy(_at_size(alpha, source)[:, :, 0].copy())

    def _keep(self, index: int, image: LoadedImage) -> None:
        if image.size > self.budget_bytes:
            return
        with self._lock:
            if index in self._cache:
                return
            while self._cached_bytes + image.size > self.budget_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.size
            self._cache[index] = image
            self._cached_bytes += image.size
