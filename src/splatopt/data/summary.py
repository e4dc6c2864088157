"""What a capture holds, found out without failing on what is missing."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, quoted, short
from splatopt.data.capture import (
    CameraMaker,
    CaptureOptions,
    View,
    capture_name,
    check_view,
    gather_warnings,
    scene_extent,
)
from splatopt.data.image_formats import UnreadFormatError, in_one_sentence
from splatopt.data.image_lookup import first_names
from splatopt.data.images import UnreadableImageError
from splatopt.data.masks import MaskCheck, check_masks, with_masks
from splatopt.data.readers import read_source
from splatopt.data.source import Finding, PosedImage, Source
from splatopt.data.split import Split, lacking, make_split


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
        path: The folder, or the file of poses in it.
        kind: See :class:`splatopt.data.source.Source`.
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
        next_command: What to type next: training, where it can begin, else this again once the problems are mended.
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
    usable: tuple[PosedImage, ...]
    problems: tuple[str, ...]
    masks: MaskCheck[View]
    shrunk: tuple[Finding, ...]


def _look(images: tuple[PosedImage, ...], options: CaptureOptions) -> _Findings:
    """Check every view and collect what is wrong instead of raising it."""
    views, unreadable, unread, cameras, kept, usable = [], [], [], [], [], []
    problems: list[tuple[PosedImage, str]] = []
    maker = CameraMaker(options)
    for posed in images:
        view = None
        try:
            view = check_view(posed)
            views.append(view)
        except UnreadableImageError:
            unreadable.append(posed)
            if options.skip_missing:
                continue
        except UnreadFormatError as error:
            unread.append(error)
        except InputError as error:
            problems.append((posed, str(error)))
        try:
            cameras.append(maker.camera(posed, view.lens if view else posed.lens))
            kept.append(posed)
            usable += [posed] if view else []
        except InputError as error:
            problems.append((posed, str(error)))
    masks = check_masks(views, options.mask)
    empty = {id(view.posed) for view in views} - {id(view.posed) for view in masks.views}
    left = [(camera, posed) for camera, posed in zip(cameras, kept, strict=True) if id(posed) not in empty]
    return _Findings(
        views=tuple(masks.views),
        unreadable=tuple(unreadable),
        cameras=tuple(camera for camera, _ in left),
        kept=tuple(posed for _, posed in left),
        usable=tuple(posed for posed in usable if id(posed) not in empty),
        problems=(*in_one_sentence(unread), *_grouped(problems), *masks.problems),
        masks=masks,
        shrunk=maker.found,
    )


def _grouped(problems: Sequence[tuple[PosedImage, str]]) -> Iterator[str]:
    """Yield one sentence for each kind of problem: the first, and the views that have the same with other numbers."""
    groups: dict[str, list[tuple[PosedImage, str]]] = {}
    for posed, sentence in problems:
        kind = sentence.replace(short(posed.path), "").replace(quoted(posed.name), "")
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "", kind), []).append((posed, sentence))
    for group in groups.values():
        others = [posed.name for posed, _ in group[1:]]
        more = f" (and {len(others)} more views: {first_names(others)})" if others else ""
        yield f"{group[0][1]}{more}"


def _split_and_problems(
    path: Path, source: Source, found: _Findings, options: CaptureOptions, min_side: int
) -> tuple[Split | None, list[str]]:
    """Return the split, if one can be made, and all that keeps the capture from being trained on."""
    problems, split = list(found.problems), None
    try:
        split = make_split(found.kept, options.test_every, source.split)
    except InputError as error:
        problems.append(str(error))
    if found.unreadable and (sentence := lacking(path, source, found.usable, options.test_every)):
        problems.append(sentence)
    scored = [found.cameras[index] for index in split.test] if split else []
    if small := [camera for camera in scored if min(camera.width, camera.height) < min_side]:
        problems.append(
            f"{len(small)} held-out views are too small to be scored, such as {quoted(small[0].name)} of "
            f"{small[0].width}x{small[0].height} pixels; both sides must have at least {min_side}"
        )
    return split, problems


def inspect_capture(path: Path, options: CaptureOptions | None = None, *, min_side: int = 1) -> CaptureSummary:
    """Say what a capture holds and what to type next.

    Images that are missing, truncated or of the wrong size are reported, not raised. They keep their
    place in the split, as in :func:`splatopt.data.capture.make_split`, unless ``skip_missing`` is on.

    Args:
        path: The capture.
        options: As for :func:`splatopt.data.capture.load_capture`.
        min_side: Sides that held-out views must have to be scored, pixels; below it is a problem.

    Raises:
        InputError: There is no capture, or its file of poses is malformed.
    """
    options = options or CaptureOptions()
    path = Path(path)
    source = with_masks(path, read_source(path, options.images))
    found = _look(source.images, options)
    source = found.masks.told(source)
    split, problems = _split_and_problems(path, source, found, options, min_side)
    train = split.train if split else range(len(found.cameras))
    sizes = Counter((camera.width, camera.height) for camera in found.cameras)
    points = len(source.points) if source.points is not None else 0
    unreadable = found.unreadable
    return CaptureSummary(
        name=capture_name(path),
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
        next_command=_next_command(path, options, can_train=not problems, points=points, unreadable=len(unreadable)),
        points_file=source.points.file if source.points is not None else "",
        found=(*(one for one in source.found if one.used), *found.shrunk),
    )


def _next_command(path: Path, options: CaptureOptions, *, can_train: bool, points: int, unreadable: int) -> str:
    """Return the command that trains on the capture as it is, or looks at it again where none can."""
    words = ["splatopt", "train" if can_train else "inspect", str(path)]
    if can_train:
        words += ["--out", str(_free_folder(Path("runs"), capture_name(path)))]
    if options.images is not None:
        words += ["--images", options.images]
    for name in ("downscale", "max_side", "test_every"):
        value = getattr(options, name)
        if value != getattr(CaptureOptions, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    if can_train and unreadable:
        words.append("--skip-missing")
    if can_train and not points:
        words += ["--init", "random"]
    return shlex.join(words)


def _free_folder(parent: Path, name: str) -> Path:
    """Return the first of ``name``, ``name-2``, … in ``parent`` that is not there, or empty."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(
        one for one in map(parent.joinpath, names) if not one.exists() or (one.is_dir() and not os.listdir(one))
    )
