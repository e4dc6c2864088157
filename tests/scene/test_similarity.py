"""Scenes turned, resized and shifted as a whole: the pictures stay what they were."""

from __future__ import annotations

import pytest
import torch

from raster.cases import make_camera, random_cloud
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.raster.reference import render_reference
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.raster.types import RenderOptions
from splatopt.scene.rigid_motion import rotation_of
from splatopt.scene.similarity import HALF_TURN_ABOUT_X, Similarity, harmonics_rotation, robust_up, turn_between

TURNS = [[0.3, -0.7, 1.1], [torch.pi, 0, 0], [0, torch.pi, 0], [0, 0, torch.pi / 2], [2.9, 0.1, -0.4]]


def turn(angles) -> torch.Tensor:
    return rotation_of(torch.tensor(angles, dtype=torch.float64))


@pytest.mark.parametrize("angles", TURNS)
def test_turned_harmonics_look_the_same_from_turned_directions(angles):
    rotation = turn(angles)
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=1)
    coefficients = torch.randn(15, generator=generator, dtype=torch.float64)
    matrix = harmonics_rotation(rotation)
    before = spherical_harmonics_basis(directions, 3) @ coefficients
    after = spherical_harmonics_basis(directions @ rotation.T, 3) @ (matrix @ coefficients)
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(15, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_pictures_stay(degree):
    cloud = random_cloud(torch.Generator().manual_seed(degree), 30, degree)
    camera = make_camera(40, 30)
    moves = Similarity(turn(TURNS[0]), 2.5, torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    before = render_reference(cloud, camera, RenderOptions()).image
    after = render_reference(moves.cloud(cloud), moves.camera(camera), RenderOptions()).image
    torch.testing.assert_close(after, before, atol=1e-8, rtol=0)
    assert before.std() > 0.01
    for name, tensor in moves.then(moves.inverse).cloud(cloud).tensors.items():
        assert (tensor - getattr(cloud, name)).abs().max() < 1e-9 if tensor.numel() else True, name


def test_the_way_to_the_world_is_that_of_the_frame():
    cloud = random_cloud(torch.Generator().manual_seed(0), 30, 1).to(torch.float32)
    frame = Frame((1e5, -3.0, 7.5), 0.37)
    for one, other in zip(
        Similarity.to_world(frame).cloud(cloud).tensors.values(), cloud.in_world(frame).tensors.values(), strict=True
    ):
        assert torch.equal(one, other)


def test_half_a_turn_is_exact():
    cloud = random_cloud(torch.Generator().manual_seed(0), 30, 3).to(torch.float32)
    twice = HALF_TURN_ABOUT_X.then(HALF_TURN_ABOUT_X).cloud(cloud)
    assert torch.equal(twice.means, cloud.means)
    matrix = harmonics_rotation(HALF_TURN_ABOUT_X.rotation)
    torch.testing.assert_close(matrix.abs(), torch.eye(15, dtype=torch.float64), atol=1e-12, rtol=0)
    assert matrix.diagonal()[:3].round().tolist() == [-1, -1, 1], "y, z, x"


def camera_with(rotation: torch.Tensor) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    return Camera(pose, 50, 50, 16, 16, 32, 32)


def test_up_is_what_most_cameras_say():
    level = [camera_with(turn([0, angle, 0])) for angle in (0.0, 1.0, 2.0, 3.0, -1.0)]
    rolled = camera_with(turn([0, 0, torch.pi / 2]))
    up = robust_up([*level, rolled])
    torch.testing.assert_close(up, torch.tensor([0.0, -1, 0], dtype=torch.float64), atol=1e-4, rtol=0)
    # Cameras that look down and turn say nothing by their images' tops, but all look the same way.
    down = [camera_with(turn([0, 0, angle])) for angle in (0.0, torch.pi / 2, torch.pi, -torch.pi / 2)]
    torch.testing.assert_close(robust_up(down), torch.tensor([0.0, 0, -1], dtype=torch.float64), atol=1e-9, rtol=0)
    around = [camera_with(turn([angle, 0, 0])) for angle in (0.0, torch.pi / 2, torch.pi, -torch.pi / 2)]
    with pytest.raises(InputError, match="agree on no direction as up"):
        robust_up(around)


@pytest.mark.parametrize("target", [[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1], [0.6, 0, 0.8]])
def test_the_turn_between_directions(target):
    source, target = torch.tensor([[0.0, 1, 0], target], dtype=torch.float64)
    rotation = turn_between(source, target)
    torch.testing.assert_close(rotation @ source, target, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.linalg.det(rotation) > 0
