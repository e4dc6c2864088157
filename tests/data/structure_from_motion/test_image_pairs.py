"""Which photographs are compared."""

from __future__ import annotations

import numpy as np
from PIL import Image
from textured_corner import camera_poses, render, textures

from splatopt.data.structure_from_motion import image_pairs
from splatopt.data.structure_from_motion.image_pairs import (
    ALL_PAIRS_UP_TO,
    NEIGHBOURS,
    SIMILAR,
    all_pairs,
    describe,
    likely_pairs,
    pairs_of,
)


def test_of_few_photographs_every_pair_is_compared_once(tmp_path):
    missing = [tmp_path / f"{place}.jpg" for place in range(ALL_PAIRS_UP_TO)]
    pairs = pairs_of(missing)  # none is opened
    assert len(pairs) == len(set(pairs)) == ALL_PAIRS_UP_TO * (ALL_PAIRS_UP_TO - 1) // 2
    assert all(one < other for one, other in pairs)
    # Pairs that follow each other are of few photographs.
    assert max(len({place for pair in pairs[at : at + 256] for place in pair}) for at in range(0, 2000, 256)) <= 128


def test_of_many_neighbours_in_time_and_similar_ones_are(monkeypatch):
    rng = np.random.default_rng(0)
    # A walk that comes by the same 200 places twice.
    once = rng.standard_normal((200, 16)).astype(np.float32)
    places = np.concatenate([once, once + 0.05 * rng.standard_normal(once.shape)]).astype(np.float32)
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    pairs = likely_pairs(places)
    assert len(pairs) == len(set(pairs)) <= 400 * (NEIGHBOURS + SIMILAR)
    found = set(pairs)
    assert all((at, at + step) in found for at in range(400 - NEIGHBOURS) for step in range(1, NEIGHBOURS + 1))
    assert all((at, at + 200) in found for at in range(200))
    monkeypatch.setattr(image_pairs, "SIMILAR", 0)
    assert len(likely_pairs(places)) == sum(min(NEIGHBOURS, 399 - at) for at in range(400))
    assert all_pairs(2) == [(0, 1)]


def test_photographs_from_near_places_look_alike(tmp_path):
    planes, poses = textures(3, side=128), camera_poses(12)
    for place, pose in enumerate(poses):
        Image.fromarray(render(pose, planes, 96, 72)).save(tmp_path / f"{place:02d}.png")
    found = np.stack([describe(path) for path in sorted(tmp_path.iterdir())])
    np.testing.assert_allclose((found**2).sum(axis=1), 2, atol=1e-5)
    alike = found @ found.T
    np.fill_diagonal(alike, -1)
    distance = np.abs(np.argmax(alike, axis=1) - np.arange(12))
    assert (distance == 1).all()
    assert alike[0, 1] > alike[0, 4] > alike[0, 11]


def test_a_photograph_of_one_colour_is_described_too(tmp_path):
    Image.new("L", (5, 4), 77).save(tmp_path / "grey.png")
    found = describe(tmp_path / "grey.png")
    assert np.isfinite(found).all()
    assert (found**2).sum() == np.float32(1)
