"""Which views are trained on and which are held out, and whether enough of them are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.data.image_lookup import none_there
from splatopt.data.source import PosedImage, Source


@dataclass(frozen=True)
class Split:
    """Which views are trained on and which are held out.

    Attributes:
        name: Named in every result: ``every-8th-test``, or what the capture's own split is called, as ``blender``.
        train: Indices of training views.
        test: Indices of held-out views.
        is_own: Whether the capture itself says which views are which.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    is_own: bool = False


def make_split(images: Sequence[PosedImage], test_every: int, own: str = "own") -> Split:
    """Hold out what the capture itself holds out, else every n-th view by name, the first included.

    A view whose image is missing keeps its place in the count. Only ``skip_missing`` takes it out, and
    then the views after it may change sides.

    Args:
        images: The views.
        test_every: Of captures without a split of their own.
        own: What the capture's own split is called.

    Raises:
        InputError: There are fewer than two views, or none on one side.
    """
    if len(images) < 2:
        raise InputError(
            f"the capture has {len(images)} view{'' if len(images) == 1 else 's'}; at least 2 are needed, "
            "one to train on and one to test on"
        )
    is_own = any(image.part for image in images)
    if is_own:
        name = own
        test = tuple(index for index, image in enumerate(images) if image.part == "test")
    else:
        ending = {2: "nd", 3: "rd"}.get(test_every, "th")
        name = f"every-{test_every}{ending}-test"
        order = sorted(range(len(images)), key=lambda index: images[index].name)
        test = tuple(sorted(order[::test_every]))
    held_out = set(test)
    train = tuple(index for index in range(len(images)) if index not in held_out)
    if not train or not test:
        raise InputError(f"the split {name} leaves {len(train)} training and {len(test)} test views; both need one")
    return Split(name, train, test, is_own)


def lacking(path: Path, source: Source, left: Sequence[PosedImage], test_every: int) -> str:
    """Return the sentence that says why a capture cannot do without the images that it lacks; empty where it can.

    Args:
        path: The capture.
        source: What was read of it.
        left: The views whose images are there.
        test_every: As in :class:`CaptureOptions`.
    """
    if source.images and not any(os.path.isfile(posed.path) for posed in source.images):
        return none_there(path, source.images)
    try:
        make_split(left, test_every, source.split)
    except InputError as error:
        return f"without the {len(source.images) - len(left)} views whose image is missing or cannot be used, {error}"
    return ""
