"""What a capture holds, found out without failing on what is missing."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data.capture import (
    CameraMaker,
    CaptureOptions,
    View,
    check_view,
    gather_warnings,
    make_split,
    scene_extent,
)
from splatopt.data.images import UnreadableImageError
from splatopt.data.masks import MaskCheck, check_masks, with_masks
from splatopt.data.readers import read_source
from splatopt.data.source import Finding, PosedImage


@dataclass(frozen=True)
class SizeCount:
    """How many views are loaded at a size, in pixels."""

    width: int
    height: int
    views: int


@dataclass(frozen=True)
class CaptureSummary:
    """What ``splatopt inspect`` says.

    Attributes:
        name: Name of the folder.
        path: The folder.
        kind: ``colmap``, ``blender``, ``nerfstudio``, ``instant-ngp`` or ``procedural``.
        views: Views that the capture names, whether or not their images are there.
        sizes: Sizes after undistortion and resizing, the most frequent first.
        camera_models: COLMAP's names of the lenses before undistortion.
        points: Number of sparse points.
        extent: 3DGS' scene extent, world units.
        split: Name of the split; empty if none can be made.
        train: Number of training views.
        test: Number of held-out views.
        missing: Images that are not there.
        truncated: Images that are there but cannot be read.
        problems: What keeps the capture from being trained on, one sentence each, beside unreadable images.
        warnings: One sentence each.
        next_command: What to type next.
        points_file: Name of the file that the points are from, where it lies beside the poses.
        found: What else lies in the capture and is used; what is not stands among the warnings.
    """

    name: str
    path: Path
    kind: str
    views: int
    sizes: tuple[SizeCount, ...]
    camera_models: tuple[str, ...]
    points: int
    extent: float
    split: str
    train: int
    test: int
    missing: tuple[str, ...]
    truncated: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    next_command: str
    points_file: str = ""
    found: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Findings:
    views: tuple[View, ...]
    unreadable: tuple[PosedImage, ...]
    cameras: tuple[Camera, ...]
    kept: tuple[PosedImage, ...]
    problems: tuple[str, ...]
    masks: MaskCheck[View]


def _look(images: tuple[PosedImage, ...], options: CaptureOptions) -> _Findings:
    """Check every view and collect what is wrong instead of raising it."""
    views, unreadable, cameras, kept, problems = [], [], [], [], []
    maker = CameraMaker(options)
    for posed in images:
        lens = posed.lens
        try:
            view = check_view(posed)
            views.append(view)
            lens = view.lens
        except UnreadableImageError:
            unreadable.append(posed)
            if options.skip_missing:
                continue
        except InputError as error:
            problems.append(str(error))
        try:
            cameras.append(maker.camera(posed, lens))
            kept.append(posed)
        except InputError as error:
            problems.append(str(error))
    masks = check_masks(views, options.mask)
    empty = {id(view.posed) for view in views} - {id(view.posed) for view in masks.views}
    left = [(camera, posed) for camera, posed in zip(cameras, kept, strict=True) if id(posed) not in empty]
    return _Findings(
        views=tuple(masks.views),
        unreadable=tuple(unreadable),
        cameras=tuple(camera for camera, _ in left),
        kept=tuple(posed for _, posed in left),
        problems=(*problems, *masks.problems),
        masks=masks,
    )


def inspect_capture(path: Path, options: CaptureOptions | None = None) -> CaptureSummary:
    """Say what a capture holds and what to type next.

    Images that are missing, truncated or of the wrong size are reported, not raised. They keep their
    place in the split, as in :func:`splatopt.data.capture.make_split`, unless ``skip_missing`` is on.

    Args:
        path: The capture.
        options: As for :func:`splatopt.data.capture.load_capture`.

    Raises:
        InputError: There is no capture, or its file of poses is malformed.
    """
    options = options or CaptureOptions()
    path = Path(path)
    source = with_masks(path, read_source(path, options.images))
    found = _look(source.images, options)
    source, problems, split = found.masks.told(source), list(found.problems), None
    try:
        split = make_split(found.kept, options.test_every, source.split)
    except InputError as error:
        problems.append(str(error))
    train = split.train if split else range(len(found.cameras))
    sizes = Counter((camera.width, camera.height) for camera in found.cameras)
    points = len(source.points) if source.points is not None else 0
    unreadable = found.unreadable
    return CaptureSummary(
        name=path.resolve().name,
        path=path,
        kind=source.kind,
        views=len(source.images),
        sizes=tuple(SizeCount(width, height, views) for (width, height), views in sizes.most_common()),
        camera_models=tuple(sorted({posed.lens.model for posed in source.images})),
        points=points,
        extent=scene_extent([found.cameras[index] for index in train], source.points) if found.cameras else 1.0,
        split=split.name if split else "",
        train=len(split.train) if split else 0,
        test=len(split.test) if split else 0,
        missing=tuple(posed.name for posed in unreadable if not os.path.isfile(posed.path)),
        truncated=tuple(posed.name for posed in unreadable if os.path.isfile(posed.path)),
        problems=tuple(problems),
        warnings=gather_warnings(source, found.views, unreadable if options.skip_missing else ()),
        next_command=_next_command(path, options.images, points=points, unreadable=len(unreadable)),
        points_file=source.points.file if source.points is not None else "",
        found=tuple(one for one in source.found if one.used),
    )


def _next_command(path: Path, images: str | None, *, points: int, unreadable: int) -> str:
    """Return the command that trains on the capture as it is."""
    words = ["splatopt", "train", str(path), "--out", f"runs/{path.resolve().name}"]
    if images is not None:
        words += ["--images", images]
    if unreadable:
        words.append("--skip-missing")
    if not points:
        words += ["--init", "random"]
    return shlex.join(words)
