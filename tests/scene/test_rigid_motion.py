"""The motion of a camera as a motion of the scene, against finite differences in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.schema import GAUSSIAN_TENSORS, GaussianTensors
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.reference import ReferenceRenderer, render_reference
from splatopt.raster.types import RenderOptions
from splatopt.scene.rigid_motion import (
    WorldTwist,
    angles_of,
    moved_pose,
    rotation_of,
    twist_between,
    twist_from_world,
    twist_tangents,
    twist_to_world,
)

COUNT = 12


def a_cloud(degree: int = 3) -> GaussianTensors:
    draws = torch.Generator().manual_seed(degree)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    bands = (degree + 1) ** 2 - 1
    return GaussianTensors(
        means=0.5 * normal(COUNT, 3) + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64),
        log_scales=-1.6 + 0.3 * normal(COUNT, 3),
        quats=1.7 * normal(COUNT, 4),
        logit_opacities=normal(COUNT),
        sh_dc=0.3 * normal(COUNT, 3),
        sh_rest=0.15 * normal(COUNT, bands, 3),
    )


def a_camera() -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation_of(torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64))
    pose[:3, 3] = torch.tensor([0.2, -0.1, 3.0], dtype=torch.float64)
    return Camera(pose, 21.0, 19.0, 10.5, 7.5, 21, 15)


def moved(camera: Camera, axis: int, step: float) -> Camera:
    twist = torch.zeros(6, dtype=torch.float64)
    twist[axis] = step
    return replace(camera, world_to_camera=moved_pose(camera.world_to_camera, twist))


def image_change(cloud: GaussianTensors, camera: Camera, tangent: dict[str, Tensor], options: RenderOptions) -> Tensor:
    values = tuple(cloud)
    along = tuple(tangent.get(name, torch.zeros_like(getattr(cloud, name))) for name in GAUSSIAN_TENSORS)
    image = torch.func.jvp(lambda *of: render_reference(GaussianTensors(*of), camera, options).image, values, along)
    return image[1]


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("axis", range(6))
def test_columns_are_the_change_of_the_image_when_the_camera_moves(axis: int, degree: int) -> None:
    cloud, camera, options, step = a_cloud(degree), a_camera(), RenderOptions((0.2, 0.3, 0.4)), 1e-6
    after, before = (render_reference(cloud, moved(camera, axis, signed), options).image for signed in (step, -step))
    expected = (after - before) / (2 * step)
    found = image_change(cloud, camera, dict(twist_tangents(cloud, camera)[axis]), options)
    assert expected.abs().max() > 0.05
    off = (found - expected).abs() > 1e-5 * expected.abs().max()
    # A pixel where α is cut off at 1/255 within the step has no derivative.
    assert off.any(dim=2).sum() <= 3


def test_a_lower_degree_than_stored_is_rendered_alike() -> None:
    cloud, camera, options = a_cloud(3), a_camera(), RenderOptions(sh_degree=1)
    short = cloud._replace(sh_rest=cloud.sh_rest[:, :3])
    for whole, few in zip(twist_tangents(cloud, camera), twist_tangents(short, camera), strict=True):
        changes = [image_change(one, camera, dict(by), options) for one, by in ((cloud, whole), (short, few))]
        torch.testing.assert_close(*changes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 2, 3])
def test_sums_of_a_gradient_are_its_products_with_the_columns(degree: int) -> None:
    cloud, camera = a_cloud(degree), a_camera()
    draws = torch.Generator().manual_seed(9)
    image = torch.randint(0, 256, (camera.height, camera.width, 3), generator=draws, dtype=torch.uint8)
    gradient = {name: torch.zeros_like(getattr(cloud, name)) for name in GAUSSIAN_TENSORS}
    seen = torch.zeros(COUNT, dtype=torch.bool)
    ReferenceRenderer().accumulate_gradient(cloud, ViewProblem(camera, image), WeightedSum(gradient), seen)
    expected = [sum((gradient[name] * by).sum() for name, by in one.items()) for one in twist_tangents(cloud, camera)]
    found = WorldTwist.of(cloud, gradient).seen_from(camera)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-14)


def test_a_gradient_along_a_motion_is_the_change_of_the_loss() -> None:
    cloud, camera, renderer, step = a_cloud(), a_camera(), ReferenceRenderer(), 1e-6
    target = render_reference(cloud, moved(moved(camera, 0, 0.02), 4, 0.03), RenderOptions()).image
    image = (target * 255).round().clamp(0, 255).to(torch.uint8)
    gradient = {name: torch.zeros_like(getattr(cloud, name)) for name in GAUSSIAN_TENSORS}
    seen = torch.zeros(COUNT, dtype=torch.bool)
    renderer.accumulate_gradient(cloud, ViewProblem(camera, image), WeightedSum(gradient), seen)
    found = WorldTwist.of(cloud, gradient).seen_from(camera)
    for axis in range(6):
        losses = [
            renderer.value(cloud, ViewProblem(moved(camera, axis, signed), image)).loss for signed in (step, -step)
        ]
        assert float(found[axis]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 0.5, 3.0])
def test_turns_and_poses_come_back(size: float) -> None:
    angles = size * torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), dim=0)
    rotation = rotation_of(angles)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(rotation, torch.linalg.matrix_exp(torch.stack([
        torch.stack([angles[0] * 0, -angles[2], angles[1]]),
        torch.stack([angles[2], angles[0] * 0, -angles[0]]),
        torch.stack([-angles[1], angles[0], angles[0] * 0]),
    ])), rtol=0, atol=1e-13)  # fmt: skip
    torch.testing.assert_close(angles_of(rotation), angles, rtol=1e-12, atol=1e-15)
    twist = torch.cat([angles, torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)])
    given = a_camera().world_to_camera
    torch.testing.assert_close(twist_between(given, moved_pose(given, twist)), twist, rtol=1e-9, atol=1e-12)


def test_a_motion_of_the_scene_looks_as_its_twist() -> None:
    cloud, camera = a_cloud(), a_camera()
    motion = torch.tensor([0.2, -0.1, 0.3, 0.5, 0.4, -0.6], dtype=torch.float64)
    twist = twist_from_world(camera, motion)
    torch.testing.assert_close(twist_to_world(camera, twist), motion, rtol=1e-12, atol=1e-12)
    means = twist_tangents(cloud, camera)
    along = sum(size * one["means"] for size, one in zip(twist, means, strict=True))
    expected = torch.linalg.cross(motion[:3].expand_as(cloud.means), cloud.means) + motion[3:]
    torch.testing.assert_close(along, expected, rtol=1e-10, atol=1e-10)
