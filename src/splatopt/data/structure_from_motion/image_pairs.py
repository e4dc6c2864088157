"""Which photographs are compared with which: all pairs of few; of many, neighbours in time and those that look alike.

A photograph is described by a small copy of it, with two histograms, each of length 1, side by side:

- where which edges are: in 4 × 4 cells, gradients of the grey copy by 8 directions, weighted by their size,
- which colours there are: 4 × 4 × 4 of them, under a root so that large surfaces do not drown the rest.

How much two look alike is the scalar product. Neither is a match of features: it only says what is worth comparing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from splatopt.data.structure_from_motion.input_images import opened

ALL_PAIRS_UP_TO = 150
"""Of so many photographs every pair is compared."""

NEIGHBOURS = 10
"""Of more, each is compared with so many that follow it in the order of names, which is that of time."""

SIMILAR = 20
"""And with so many that look most like it."""

_SIDE = 64
_CELLS = 4
_DIRECTIONS = 8
_COLORS = 4
_BLOCK = 32


def few_enough(count: int) -> bool:
    """Whether every pair of ``count`` photographs is compared, so that nothing needs to be described."""
    return count <= ALL_PAIRS_UP_TO


def all_pairs(count: int) -> list[tuple[int, int]]:
    """Return every pair of ``count`` photographs, by their places."""
    return in_blocks(combinations(range(count), 2))


def likely_pairs(descriptors: Float[np.ndarray, "count length"]) -> list[tuple[int, int]]:
    """Return the pairs of neighbours in time, and of those that look alike.

    Args:
        descriptors: Of each photograph, from :func:`describe`, in the order of time.
    """
    count = len(descriptors)
    pairs = {(one, other) for one in range(count) for other in range(one + 1, min(count, one + 1 + NEIGHBOURS))}
    for one in range(count):
        alike = descriptors @ descriptors[one]
        alike[one] = -np.inf
        nearest = np.argsort(-alike, kind="stable")[: min(SIMILAR, count - 1)]
        pairs.update((min(one, int(other)), max(one, int(other))) for other in nearest)
    return in_blocks(pairs)


def in_blocks(pairs: Iterator[tuple[int, int]] | set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return pairs so sorted that those which follow each other are of few photographs, whose features stay at hand."""
    return sorted(pairs, key=lambda pair: (pair[0] // _BLOCK, pair[1] // _BLOCK, pair))


def describe(path: Path) -> Float[np.ndarray, " length"]:
    """Return what a photograph looks like, float32 of length √2; one that is damaged in its middle looks black."""
    small = np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8)
    with opened(path) as image, contextlib.suppress(Exception):  # whatever Pillow makes of damaged bytes
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
        small = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return np.concatenate([_edges(small.astype(np.float32).mean(axis=2)), _colors(small)])


def _edges(grey: Float[np.ndarray, "side side"]) -> Float[np.ndarray, " length"]:
    down, right = np.gradient(grey)
    turn = np.arctan2(down, right) / (2 * np.pi) % 1.0
    direction = np.minimum((turn * _DIRECTIONS).astype(int), _DIRECTIONS - 1)
    cell = np.arange(_SIDE) * _CELLS // _SIDE
    place = (cell[:, None] * _CELLS + cell[None, :]) * _DIRECTIONS + direction
    found = np.bincount(place.ravel(), np.hypot(down, right).ravel(), _CELLS * _CELLS * _DIRECTIONS)
    return _unit(np.sqrt(found))


def _colors(small: np.ndarray) -> Float[np.ndarray, " length"]:
    steps = small.astype(int) * _COLORS // 256
    place = (steps[..., 0] * _COLORS + steps[..., 1]) * _COLORS + steps[..., 2]
    return _unit(np.sqrt(np.bincount(place.ravel(), minlength=_COLORS**3).astype(np.float64)))


def _unit(values: np.ndarray) -> Float[np.ndarray, " length"]:
    return (values / max(float(np.linalg.norm(values)), 1e-12)).astype(np.float32)


def pairs_of(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return the pairs of photographs that are worth comparing, by their places in ``files``."""
    if few_enough(len(files)):
        return all_pairs(len(files))
    return likely_pairs(np.stack([describe(path) for path in files]))
