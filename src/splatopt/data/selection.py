"""Choosing a few views that see a scene from all around."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data.capture import Capture, Split


def camera_centers(cameras: Sequence[Camera]) -> Float[Tensor, "cameras 3"]:
    """Return where the cameras stand, (n, 3) float64, world units."""
    return torch.stack([camera.center.double() for camera in cameras])


def farthest_points(positions: Float[Tensor, "points 3"], count: int, first: int) -> list[int]:
    """Choose points by farthest-point sampling: each next one maximises its distance to those chosen.

    Ties go to the lowest index, so that the choice depends on nothing but the positions.

    Args:
        positions: (n, 3).
        count: How many to choose, at most n.
        first: Index of the point to begin with.

    Returns:
        Indices in the order of choice, ``first`` at their head.

    Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance.
    """
    if not 1 <= count <= len(positions):
        raise ValueError(f"count must lie between 1 and the {len(positions)} positions, got {count}")
    chosen = [first]
    nearest = (positions - positions[first]).norm(dim=1)
    nearest[first] = -1.0
    while len(chosen) < count:
        # A chosen point is at -1, below any other, even one at the same place.
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = torch.minimum(nearest, (positions - positions[index]).norm(dim=1))
        nearest[index] = -1.0
    return chosen


def sparse_split(capture: Capture, count: int) -> Split:
    """Return a split with ``count`` training views far from each other, and the others held out.

    The first is the one nearest to the cameras' mean position. Where the capture itself names its test views,
    those stay the ones held out and the choice is among its training views.

    Args:
        capture: Its cameras, in the order of their names, are chosen from.
        count: Training views.

    Raises:
        InputError: There are too few views for that.
    """
    own_test = capture.split.is_own
    candidates = capture.split.train if own_test else tuple(range(len(capture.cameras)))
    candidates = tuple(sorted(candidates, key=lambda index: capture.cameras[index].name))
    max_count = len(candidates) - (0 if own_test else 1)
    if not 1 <= count <= max_count:
        raise InputError(
            f"input views must lie between 1 and {max_count} for capture {capture.path}, which has {len(candidates)} "
            "to "
            f"choose from, got {count}"
        )
    positions = camera_centers([capture.cameras[index] for index in candidates])
    first = int((positions - positions.mean(dim=0)).norm(dim=1).argmin())
    chosen = {candidates[place] for place in farthest_points(positions, count, first)}
    test = capture.split.test if own_test else tuple(i for i in range(len(capture.cameras)) if i not in chosen)
    return Split(f"sparse-{count}-of-{len(candidates)}", tuple(sorted(chosen)), test, own_test)
