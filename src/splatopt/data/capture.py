"""Captures: posed photographs of one scene, found, checked and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, cut, quoted, short, shown
from splatopt.core.frame import USUAL_DISTANCE, WORLD, Frame, in_one_place
from splatopt.data.image_formats import UnreadFormatError, in_one_sentence
from splatopt.data.image_store import ImageSource, ImageStore
from splatopt.data.images import USUAL_MAX_SIDE, ImageHeader, UnreadableImageError, is_smaller_copy, read_header
from splatopt.data.lens import Lens, Pinhole
from splatopt.data.masks import check_masks, with_masks
from splatopt.data.readers import read_source
from splatopt.data.seen_pixels import MaskUse
from splatopt.data.source import Finding, Points, PosedImage, Source
from splatopt.data.split import Split, lacking, make_split


@dataclass(frozen=True)
class CaptureOptions:
    """How a capture is loaded.

    Attributes:
        images: Name of the capture's folder whose photographs are used, such as ``images_4``, with the lenses rescaled
            to their size; None for those that the capture itself names.
        downscale: Images are made this many times smaller, factor.
        max_side: Images whose longer side is larger are shrunk to this, pixels; 0 leaves them, and None does as
            ``USUAL_MAX_SIDE`` where there is no ``downscale``, which then says all.
        background: What lies behind see-through images, red, green, blue in [0, 1].
        skip_missing: Whether views whose image is missing or truncated are left out, with a warning.
        cache_mebibytes: Decoded images kept in memory, MiB.
        test_every: Every n-th view by name is held out (8 as in the literature, llffhold).
        mask: What becomes of masked and of see-through pixels.
    """

    images: str | None = None
    downscale: int = 1
    max_side: int | None = None
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    skip_missing: bool = False
    cache_mebibytes: int = 512
    test_every: int = 8
    mask: MaskUse = MaskUse.AUTO

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: Names the option, what it must be and what came.
        """
        if self.downscale < 1:
            raise InputError(f"downscale must be a whole number of at least 1, got {self.downscale}")
        if self.max_side is not None and self.max_side < 0:
            raise InputError(f"max_side must be at least 1 pixel, or 0 for all pixels, got {self.max_side}")
        if len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background):
            raise InputError(f"background must be three numbers between 0 and 1, got {self.background}")
        if self.cache_mebibytes < 0:
            raise InputError(f"cache_mebibytes must be at least 0, got {self.cache_mebibytes}")
        if self.test_every < 2:
            raise InputError(f"test_every must be at least 2 so that views to train on remain, got {self.test_every}")

    @property
    def longest_side(self) -> int:
        """Pixels that no longer side exceeds; 0 for no bound."""
        if self.max_side is not None:
            return self.max_side
        return USUAL_MAX_SIDE if self.downscale == 1 else 0


@dataclass(frozen=True)
class Capture:
    """A scene's photographs with undistorted pinhole cameras.

    Attributes:
        name: Name of the capture's folder.
        path: The folder, or the file of poses in it.
        kind: See :class:`splatopt.data.source.Source`.
        cameras: One per view, at the size that ``images`` hands out.
        images: One per view, (H, W, 3) uint8.
        points: Sparse points, or None.
        split: Training and held-out views.
        warnings: One sentence each.
        camera_models: COLMAP's names of the lenses before undistortion, sorted.
        background: What a renderer should put behind the scene: the option's colour where an image is
            see-through, else black, as 3DGS does for photographs.
        frame: The frame that cameras and points are in; the capture's own, unless :meth:`localised` made it.
        own: The same capture in its own frame, of one that :meth:`localised` made.
        found: What else lies in the capture, used or not.
    """

    name: str
    path: Path
    kind: str
    cameras: tuple[Camera, ...]
    images: ImageStore
    points: Points | None
    split: Split
    warnings: tuple[str, ...]
    camera_models: tuple[str, ...]
    background: tuple[float, float, float]
    frame: Frame = WORLD
    own: Capture | None = None
    found: tuple[Finding, ...] = ()

    def localised(self, frame: Frame | None = None) -> Capture:
        """Return the capture in the frame that it is trained in, see ``splatopt.core.frame``.

        One that is in that frame comes back as it is.

        Args:
            frame: That frame; when None, the one of all its cameras.
        """
        if self.own is not None and frame not in (None, self.frame):
            return self.own.localised(frame)
        if self.own is not None:
            return self
        if frame is None:
            poses = [camera.world_to_camera for camera in self.cameras]
            frame = Frame.around(poses, None if self.points is None else self.points.positions)
        cameras = tuple(replace(one, world_to_camera=frame.pose(one.world_to_camera)) for one in self.cameras)
        points = self.points and replace(self.points, positions=frame.to_local(self.points.positions))
        return replace(self, cameras=cameras, points=points, frame=frame, own=self)

    @property
    def extent(self) -> float:
        """3DGS' scene extent: 1.1 times the largest distance of a training camera from their mean, in ``frame``."""
        return scene_extent([self.cameras[index] for index in self.split.train], self.points)


def scene_extent(cameras: Sequence[Camera], points: Points | None) -> float:
    """Return 1.1·max‖cᵢ - mean(c)‖ over the cameras' centres c.

    Cameras that all stand in one place, see ``splatopt.core.frame.in_one_place``, have none; 1.1 times the median
    distance of the points from there stands in, and 1 where there are no points.
    """
    centers = torch.stack([camera.center.double() for camera in cameras])
    mean = centers.mean(dim=0)
    distance = float((centers - mean).norm(dim=1).max())
    reach = None
    if points is not None and len(points):
        reach = float((points.positions.double() - mean).norm(dim=1).median())
    if in_one_place(distance, USUAL_DISTANCE if reach is None else reach, float(mean.norm())):
        distance = reach or 0.0
    return 1.1 * distance if distance > 0 else 1.0


@dataclass(frozen=True)
class View:
    """A view whose image has been looked at.

    Attributes:
        posed: What the capture says.
        header: What the image says.
        lens: The capture's lens, at the image's size.
    """

    posed: PosedImage
    header: ImageHeader
    lens: Lens


def check_view(posed: PosedImage) -> View:
    """Open the header of a view's image and fit the lens to it.

    An image of another size but the same shape is used with the lens rescaled, if the shapes agree to
    within a pixel; of a smaller copy each side may be rounded up or down. Every other size is refused.

    Raises:
        UnreadableImageError: The image is missing, truncated or no image.
        InputError: Its size disagrees with the camera.
    """
    header, lens = read_header(posed.path), posed.lens
    width, height = header.width, header.height
    same_shape = (
        abs(height - width * lens.height / lens.width) < 1 and abs(width - height * lens.width / lens.height) < 1
    )
    if not same_shape and not is_smaller_copy(width, height, lens.width, lens.height):
        turned = (width, height) == (lens.height, lens.width)
        advice = "the image was turned, save it upright" if turned else "use the images that the poses were made from"
        raise InputError(
            f"image {short(posed.path)} is {width}x{height} pixels but its camera is {lens.width}x{lens.height}; "
            f"{advice}"
        )
    return View(posed, header, lens.resized(width, height))


def check_views(images: Sequence[PosedImage]) -> tuple[list[View], list[tuple[PosedImage, UnreadableImageError]]]:
    """Check every view's image; return the good views and, with the reason, those without a readable image.

    Raises:
        InputError: An image has a format that is not read, or a size that disagrees with its camera.
    """
    views, unreadable, unread = [], [], []
    for posed in images:
        try:
            views.append(check_view(posed))
        except UnreadableImageError as error:
            unreadable.append((posed, error))
        except UnreadFormatError as error:
            unread.append(error)
    if unread:
        raise InputError("; ".join(in_one_sentence(unread)))
    return views, unreadable


def target_size(pinhole: Pinhole, options: CaptureOptions) -> tuple[int, int]:
    """Return width and height after ``downscale`` and ``max_side``, rounded, at least 1."""
    width, height = pinhole.width / options.downscale, pinhole.height / options.downscale
    if 0 < options.longest_side < max(width, height):
        shrink = options.longest_side / max(width, height)
        width, height = width * shrink, height * shrink
    return max(1, round(width)), max(1, round(height))


class Shrunk(Finding):
    """That photographs are shrunk to ``USUAL_MAX_SIDE``."""


class CameraMaker:
    """Turns posed lenses into cameras of the loaded size; each lens is undistorted once."""

    def __init__(self, options: CaptureOptions) -> None:
        """Keep the options that decide on the size."""
        self.options = options
        self._pinholes: dict[Lens, Pinhole] = {}
        self._shrunk: Counter[str] = Counter()

    @property
    def found(self) -> tuple[Shrunk, ...]:
        """What is said of photographs that are shrunk though nobody asked for it, of their most frequent size."""
        if self.options.max_side is not None or not self._shrunk:
            return ()
        sizes = self._shrunk.most_common()
        (of, _, to), more = sizes[0][0].partition(" to "), f" and {len(sizes) - 1} other sizes" if sizes[1:] else ""
        how = f"shrunk to {to} as in 3DGS; --max-side 0 keeps all pixels"
        return (Shrunk(f"photographs of {of}{more}", used=True, how=how),)

    def camera(self, posed: PosedImage, lens: Lens) -> Camera:
        """Return the pinhole camera of a view.

        Args:
            posed: Name and pose.
            lens: The lens, at the size of the image file.

        Raises:
            InputError: The pose or the intrinsics are impossible.
        """
        if lens not in self._pinholes:
            self._pinholes[lens] = lens.pinhole()
        pinhole = self._pinholes[lens]
        pose: Tensor = posed.world_to_camera
        # From here on the name is for people: in tables, pages, messages and the names of pictures.
        name = shown(posed.name)
        full = Camera(pose, pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy, pinhole.width, pinhole.height, name)
        camera = full.resized(*target_size(pinhole, self.options))
        if self.options.downscale == 1 and camera.width < full.width:
            self._shrunk[f"{lens.width}x{lens.height} to {camera.width}x{camera.height}"] += 1
        return camera


_MAX_DOUBTS = 3
_OUTLIER = 1000.0


def _doubts(source: Source) -> list[str]:
    """What is seldom meant: lenses unlike any other, and a camera that stands far from all others."""
    lenses = dict.fromkeys(image.lens for image in source.images)
    said = [sentence for lens in lenses for sentence in lens.doubts]
    if len(said) > _MAX_DOUBTS:
        said = [*said[:_MAX_DOUBTS], f"{len(said) - _MAX_DOUBTS} more cameras are as unusual"]
    if len(source.images) > 2:
        poses = torch.stack([image.world_to_camera for image in source.images])
        centers = -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:])[..., 0]
        apart = (centers - centers.median(dim=0).values).norm(dim=1)
        farthest, usual = int(apart.argmax()), float(apart.median())
        if float(apart[farthest]) > _OUTLIER * usual > 0:
            said.append(
                f"view {quoted(source.images[farthest].name)} stands {float(apart[farthest]) / usual:.3g} times as far "
                "from the middle of the cameras as half of the others; its pose may be wrong"
            )
    return said


def gather_warnings(source: Source, views: Sequence[View], skipped: Sequence[PosedImage]) -> tuple[str, ...]:
    """Return the source's warnings, those about images, and what lies in the capture without being used."""
    warnings = [*source.warnings, *_doubts(source), *(str(one) for one in source.found if not one.used)]
    if skipped:
        names = ", ".join(cut(image.name) for image in skipped[:5]) + (", …" if len(skipped) > 5 else "")
        warnings.append(f"{len(skipped)} of {len(source.images)} views have no readable image and are skipped: {names}")
    rescaled = [view for view in views if view.lens is not view.posed.lens]
    if rescaled:
        sizes = Counter(
            f"{view.posed.lens.width}x{view.posed.lens.height} to {view.header.width}x{view.header.height}"
            for view in rescaled
        )
        listed = ", ".join(sizes)
        warnings.append(f"{len(rescaled)} cameras were rescaled to the size of their images ({listed})")
    return tuple(warnings)


def _refuse_unreadable(
    path: Path,
    source: Source,
    views: Sequence[View],
    unreadable: Sequence[tuple[PosedImage, UnreadableImageError]],
    options: CaptureOptions,
) -> None:
    """Raise UnreadableImageError unless the views without a readable image are to be, and can be, left out."""
    if sentence := lacking(path, source, [view.posed for view in views], options.test_every):
        raise UnreadableImageError(sentence)
    if not options.skip_missing:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise UnreadableImageError(f"{unreadable[0][1]}{more}")


def capture_name(path: Path) -> str:
    """Return what a capture is called: the name of its folder, also where the file of poses in it was given."""
    whole = path.resolve()
    return whole.parent.name if whole.is_file() else whole.name


def image_source(view: View, camera: Camera, use: MaskUse) -> ImageSource:
    """Return how the pixels of a view come about, at the size of its camera."""
    size, posed = (camera.width, camera.height), view.posed
    return ImageSource(posed.path, view.lens, *size, view.header.has_alpha, posed.mask, use)


def load_capture(path: Path, options: CaptureOptions | None = None) -> Capture:
    """Find, check and split a capture; images are decoded only when asked for.

    Headers of all images are read here, so that a missing image or a wrong size is an error now and
    not at step 700.

    Args:
        path: Folder of a capture, or the file of poses in it.
        options: Sizes, background, split; the defaults if None.

    Raises:
        InputError: Anything that cannot be used, in one sentence.
    """
    options = options or CaptureOptions()
    path = Path(path)
    source = with_masks(path, read_source(path, options.images))
    views, unreadable = check_views(source.images)
    if unreadable:
        _refuse_unreadable(path, source, views, unreadable, options)
    masks = check_masks(views, options.mask)
    masks.refuse_problems()
    views, source = masks.views, masks.told(source)
    maker = CameraMaker(options)
    try:
        split = make_split([view.posed for view in views], options.test_every, source.split)
    except InputError as error:
        raise InputError("; ".join((*masks.warnings, str(error)))) from error
    cameras = tuple(maker.camera(view.posed, view.lens) for view in views)
    sources = [image_source(view, camera, options.mask) for view, camera in zip(views, cameras, strict=True)]
    see_through = any(one.shows_background for one in sources)
    return Capture(
        name=capture_name(path),
        path=path,
        kind=source.kind,
        cameras=cameras,
        images=ImageStore(sources, options.background, options.cache_mebibytes << 20),
        points=source.points,
        split=split,
        warnings=gather_warnings(source, views, [posed for posed, _ in unreadable]),
        camera_models=tuple(sorted({view.posed.lens.model for view in views})),
        background=options.background if see_through else (0.0, 0.0, 0.0),
        found=(*source.found, *maker.found),
    )
