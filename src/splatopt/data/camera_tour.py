"""A round trip through where the cameras of a capture stood, for captures that no circle fits.

Two cameras are as far apart as

    d² = ‖c₁ - c₂‖² + s²·‖f₁ - f₂‖²

with centres c, viewing directions f and s the root mean square distance of the centres from their mean, so that turning
counts as moving does. A short closed tour through the cameras, its corners rounded, is walked at a constant speed in d.
Where its longest leg stands out, as the chord of an arc does, the tour goes there and back without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.distance import cdist

from splatopt.core.camera import Camera
from splatopt.data.camera_paths import attention, check_path, looking

_MAX_STOPS = 200
"""Cameras that the tour goes through at most, the ones farthest from each other."""

_OUTLIER = 5.0
"""Times their mean distance from the middle of the cameras at which one is left aside: its pose may be wrong."""

_NEAREST = 0.1
"""Share of the usual distance of what cameras look at below which one looks past it."""

_SAME_PLACE = 1e-9
"""Of what is looked at: cameras that are closer to each other turn on the spot."""

_LEAP = 3.0
"""A tour's longest leg is not walked where it is so many times as long as half of its legs."""

_ROUNDED_STOPS = 0.75
"""Width of the rounding in space, mean distances of two stops; it takes the wobble out of what a hand held."""

_ROUNDED_FRAMES = 3.0
"""Width of the rounding in time, frames; where the tour turns back, it slows down and sets off again."""

_MAX_ROUNDED = 0.05
"""Width of either at most, as a share of the tour."""

_POINTS_A_FRAME, _FEWEST_FRAMES = 20, 50
_MAX_REVERSALS, _NO_GAIN = 10, 1e-9


def tour(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """Return cameras on a closed, smooth path of constant speed that stays by ``cameras`` and looks as they do.

    Args:
        cameras: The capture's, at least one; the first gives size and focal length.
        frames: Number of cameras on the round trip.

    Raises:
        InputError: ``frames`` is below 1.
    """
    check_path(cameras, frames)
    centers = torch.stack([camera.center.double() for camera in cameras])
    turns = torch.stack([camera.world_to_camera[:3, :3].double() for camera in cameras])
    forwards, apart = turns[:, 2], (centers - centers.quantile(0.5, dim=0)).norm(dim=1)
    depths = ((attention(cameras) - centers) * forwards).sum(dim=1)
    usual = max(float(depths.quantile(0.5)), float(apart.mean())) or 1.0
    depths = depths.where(depths > _NEAREST * usual, usual)
    # What a camera looks at is what it keeps in its picture on the way to the next.
    looked = torch.cat([centers, centers + depths[:, None] * forwards, -turns[:, 1]], dim=1)
    rows = looked[apart <= _OUTLIER * apart.mean()].numpy()
    middle = rows[:, :3].mean(axis=0)
    size = float(np.sqrt(((rows[:, :3] - middle) ** 2).sum(axis=1).mean()))
    unit = size if size > _SAME_PLACE * float(np.abs(rows[:, :6]).max()) else usual
    rows[:, :6] = (rows[:, :6] - np.tile(middle, 2)) / unit
    path = torch.from_numpy(_walked(rows[_stops(_places(rows))], frames))
    path[:, :6] = path[:, :6] * unit + torch.from_numpy(np.tile(middle, 2))
    return [looking(cameras[0], row[:3], row[3:6], row[6:], f"tour-{frame:04d}") for frame, row in enumerate(path)]


def _places(rows: np.ndarray) -> np.ndarray:
    """Return centre and viewing direction of cameras given by centre, what they look at and up, (n, 9)."""
    forwards = rows[:, 3:6] - rows[:, :3]
    # Of cameras that turn on the spot, two may look opposite ways, and nowhere in between.
    return np.hstack([rows[:, :3], forwards / np.maximum(np.linalg.norm(forwards, axis=1, keepdims=True), _NO_GAIN)])


def _stops(places: np.ndarray) -> np.ndarray:
    """Return the rows of a short closed tour through ``places`` (n, k), in order, at most ``_MAX_STOPS`` of them.

    There and back where closing it takes a leap: the shortest way from one end to another is that of a tour on which
    one stop more costs nothing.
    """
    chosen = _spread(places)
    between = cdist(places[chosen], places[chosen])
    route = _short_tour(between)
    legs = between[route, np.roll(route, -1)]
    if legs.max() <= _LEAP * np.median(legs):
        return chosen[route]
    route = _short_tour(np.pad(between, (0, 1)))
    route = np.roll(route, -1 - int(route.argmax()))[:-1]
    return chosen[np.concatenate([route, route[-2:0:-1]])]


def _short_tour(between: np.ndarray) -> np.ndarray:
    """Return stops in the order of a short closed tour, given the distances between them, (n, n).

    Always to the nearest that is left, then stretches are reversed while that shortens it (2-opt; Croes 1958).
    """
    count = len(between)
    order, left = [0], set(range(1, count))
    while left:
        order.append(min(left, key=lambda stop: (between[order[-1], stop], stop)))
        left.remove(order[-1])
    route = np.array(order)
    first, second = np.triu_indices(count, k=2)
    for _ in range(_MAX_REVERSALS * count if count > 3 else 0):
        after, last = route[first + 1], route[(second + 1) % count]
        saved = between[route[first], after] + between[route[second], last]
        saved = saved - between[route[first], route[second]] - between[after, last]
        best = int(saved.argmax())
        if saved[best] <= _NO_GAIN:
            break
        begin, end = first[best] + 1, second[best] + 1
        route[begin:end] = route[begin:end][::-1].copy()
    return route


def _spread(places: np.ndarray) -> np.ndarray:
    """Return all rows, or ``_MAX_STOPS`` of which each is the farthest from those before."""
    if len(places) <= _MAX_STOPS:
        return np.arange(len(places))
    chosen, nearest = [0], np.full(len(places), np.inf)
    while len(chosen) < _MAX_STOPS:
        nearest = np.minimum(nearest, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return np.array(sorted(chosen))


def _walked(stops: np.ndarray, frames: int) -> np.ndarray:
    """Return ``frames`` rows along the closed line through ``stops``: rounded, at a constant speed."""
    count = _POINTS_A_FRAME * max(frames, _FEWEST_FRAMES)
    line = _at_equal_distances(stops, count)
    line = gaussian_filter1d(line, count * min(_MAX_ROUNDED, _ROUNDED_STOPS / len(stops)), axis=0, mode="wrap")
    line = _at_equal_distances(line, count)
    line = gaussian_filter1d(line, count * min(_MAX_ROUNDED, _ROUNDED_FRAMES / frames), axis=0, mode="wrap")
    return line[np.arange(frames) * count // frames]


def _at_equal_distances(line: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` rows at equal distances on the closed line through ``line``, which begins where that does."""
    closed = np.vstack([line, line[:1]])
    steps = np.linalg.norm(np.diff(_places(closed), axis=0), axis=1)
    # Where nothing moves, time passes all the same.
    along = np.concatenate([[0.0], np.cumsum(steps + 1e-12)])
    wanted = np.arange(count) * along[-1] / count
    return np.stack([np.interp(wanted, along, column) for column in closed.T], axis=1)
