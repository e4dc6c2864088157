"""The box and the depths that a radiance field is fitted in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from splatopt.data import load_capture
from splatopt.data.source import Points
from splatopt.fit.setup import scene_bounds
from train.toys import make_toy_capture


def test_bounds_of_a_capture_hold_its_points(tmp_path):
    capture = load_capture(make_toy_capture(tmp_path / "toy", points=200))
    bounds = scene_bounds(capture)
    positions = capture.points.positions.double()
    for view in capture.split.train:
        distances = (positions - capture.cameras[view].center).norm(dim=1)
        assert ((distances > bounds.near) & (distances < bounds.far)).double().mean() > 0.95
    assert (positions - bounds.center).abs().max() < 1.5 * bounds.radius


def test_bounds_are_of_the_points_in_the_picture(tmp_path):
    """Half of these points lie beside it or above it, by less than half its width, a thousand times as far away."""
    capture = load_capture(make_toy_capture(tmp_path / "toy", points=200))
    camera = capture.cameras[0]
    places = [(0.5, 0.5, 3.0)] * 4 + [(-0.4, 0.5, 3e3), (1.4, 0.5, 3e3), (0.5, -0.4, 3e3), (0.5, 1.4, 3e3)]
    u, v, depth = torch.tensor(places, dtype=torch.float64).T
    x, y = (u * camera.width - camera.cx) / camera.fx, (v * camera.height - camera.cy) / camera.fy
    pose = camera.world_to_camera.double()
    positions = (torch.stack([x, y, torch.ones(8)], dim=-1) * depth[:, None] - pose[:3, 3]) @ pose[:3, :3]
    points = Points(positions, torch.zeros(8, 3, dtype=torch.uint8))
    bounds = scene_bounds(replace(capture, points=points, split=replace(capture.split, train=(0,))))
    assert (bounds.near, bounds.far) == pytest.approx((0.9 * 3, 1.1 * 3), rel=1e-3)


def test_bounds_without_points_are_those_of_blenders_captures(data_folder):
    bounds = scene_bounds(load_capture(data_folder / "lego_200"))
    assert bounds.near == pytest.approx(2, rel=0.05)
    assert bounds.far == pytest.approx(6, rel=0.05)
    assert bounds.center.norm() < 0.01
