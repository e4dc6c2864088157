"""Cameras of an objective find back to where its photographs were taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checkpoint import DamagedCheckpointError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import Progress
from splatopt.raster.losses import Loss, SquaredError
from splatopt.raster.reference import ReferenceRenderer, render_reference
from splatopt.raster.types import RenderOptions
from splatopt.scene import pose_refinement
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.pose_refinement import PoseRefinement, image_motion, pose_gauss_newton
from splatopt.scene.rigid_motion import moved_pose, twist_between, twist_from_world

LATE = Progress(50, 100)
OFF = torch.tensor([0.02, -0.03, 0.01, 0.04, 0.03, -0.05], dtype=torch.float64)


def a_cloud() -> GaussianCloud:
    draws = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    return GaussianCloud(
        means=0.7 * normal(20, 3),
        log_scales=-1.7 + 0.2 * normal(20, 3),
        quats=normal(20, 4),
        logit_opacities=1 + normal(20),
        sh_dc=normal(20, 3),
        sh_rest=0.1 * normal(20, 3, 3),
    )


def a_camera(x: float) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([x, 0.1, 3.5], dtype=torch.float64)
    return Camera(pose, 21.0, 21.0, 9.0, 7.5, 18, 15, name=f"at {x}")


def an_objective(
    *, is_off: bool = True, renderer: ReferenceRenderer | None = None, loss: Loss | None = None
) -> PhotometricObjective:
    cloud, cameras = a_cloud(), [a_camera(0.3), a_camera(-0.4)]
    images = [render_reference(cloud, camera, RenderOptions()).image.clamp(0, 1) for camera in cameras]
    if is_off:
        cameras[0] = replace(cameras[0], world_to_camera=moved_pose(cameras[0].world_to_camera, OFF))
    photographs = [(image * 255).round().to(torch.uint8) for image in images]
    return PhotometricObjective(cloud, cameras, photographs, renderer or ReferenceRenderer(), loss=loss)


def take_steps(objective: PhotometricObjective, refinement: PoseRefinement, count: int) -> None:
    for _ in range(count):
        refinement.before_step(LATE)
        objective.gradient([0, 1])
        refinement.after_step()


def pixels_off(objective: PhotometricObjective, view: int, true: Camera) -> float:
    motion = image_motion(objective.cloud, true)
    assert motion is not None
    apart = twist_between(true.world_to_camera, objective.cameras[view].world_to_camera)
    return float((apart @ motion @ apart).sqrt())


def test_the_motion_on_the_image_is_that_of_the_centres() -> None:
    cloud, camera = a_cloud(), a_camera(0.3)
    found = image_motion(cloud, camera)

    def centres(twist: Tensor) -> Tensor:
        pose = moved_pose(camera.world_to_camera, twist)
        places = cloud.means @ pose[:3, :3].T + pose[:3, 3]
        return torch.stack([21 * places[:, 0] / places[:, 2] + 9, 21 * places[:, 1] / places[:, 2] + 7.5], dim=1)

    still = centres(torch.zeros(6, dtype=torch.float64))
    inside = ((still >= 0) & (still <= torch.tensor([18, 15]))).all(dim=1)
    for twist in (OFF, torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.tensor([0.0, 0, 0, 0, 0, 1])):
        step = 1e-6 * twist.double()
        expected = ((centres(step) - centres(-step)) / 2)[inside].square().sum(dim=1).mean()
        assert float(step @ found @ step) == pytest.approx(float(expected), rel=1e-5)


def test_the_jacobian_products_make_up_the_matrix_of_the_residuals() -> None:
    objective, step, columns = an_objective(loss=SquaredError()), 1e-6, []
    camera = objective.cameras[0]
    for axis in range(6):
        moved = []
        for signed in (step, -step):
            twist = torch.zeros(6, dtype=torch.float64)
            twist[axis] = signed
            objective.replace_camera(0, replace(camera, world_to_camera=moved_pose(camera.world_to_camera, twist)))
            moved.append(objective.residuals([0])[0].flatten())
        columns.append((moved[0] - moved[1]) / (2 * step))
    objective.replace_camera(0, camera)
    expected = torch.stack(columns) @ torch.stack(columns).T
    found = pose_gauss_newton(objective, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_camera_that_was_moved_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_refinement, "PRIOR", 0.0)
    monkeypatch.setattr(pose_refinement, "DAMPING", 1.0)
    objective, true = an_objective(), a_camera(0.3)
    refinement = PoseRefinement(objective, [0, 1])
    # The scene is right and does not follow, so that the cameras' mean motion can be told.
    monkeypatch.setattr(pose_refinement, "twist_to_world", lambda camera, twist: torch.zeros(6, dtype=torch.float64))
    before = pixels_off(objective, 0, true)
    take_steps(objective, refinement, 20)
    assert before > 0.4
    assert pixels_off(objective, 0, true) < 0.2 * before
    torch.testing.assert_close(objective.cameras[0].world_to_camera, refinement.poses[0], rtol=0, atol=0)
    assert objective.twists is None


def test_nothing_moves_at_first_and_no_update_moves_far() -> None:
    objective = an_objective()
    given = objective.cameras[0]
    far = torch.tensor([0.0, 0.3, 0, 0, 0, 0], dtype=torch.float64)
    objective.replace_camera(0, replace(given, world_to_camera=moved_pose(given.world_to_camera, far)))
    refinement = PoseRefinement(objective, [0, 1])
    refinement.before_step(Progress(24, 100))
    objective.gradient([0, 1])
    refinement.after_step()
    assert torch.equal(refinement.poses, refinement.given)
    for _ in range(3):
        start = objective.cameras[0]
        take_steps(objective, refinement, 1)
        assert 0 < pixels_off(objective, 0, start) < 1.1


def test_cameras_as_a_whole_stay() -> None:
    objective = an_objective(is_off=False)
    refinement = PoseRefinement(objective, [0, 1])
    take_steps(objective, refinement, 1)
    together = torch.tensor([0.01, 0.02, -0.01, 0.02, -0.03, 0.01], dtype=torch.float64)
    for view, camera in enumerate(objective.cameras):
        refinement._move(view, moved_pose(camera.world_to_camera, twist_from_world(camera, together)))
    objective.cloud.logit_opacities.fill_(-20.0)  # nothing is drawn, and no gradient says anything
    assert refinement._motions.mean(dim=0).norm() > 0.9 * together.norm()
    take_steps(objective, refinement, 4)
    assert refinement._motions.mean(dim=0).norm() < 0.1 * together.norm()


def test_the_prior_holds_a_camera_where_no_photograph_says_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = an_objective(is_off=False)
    refinement = PoseRefinement(objective, [0, 1])
    take_steps(objective, refinement, 1)
    before = twist_between(refinement.given[0], refinement.poses[0])
    monkeypatch.setattr(pose_refinement, "twist_from_world", lambda camera, motion: torch.zeros(6, dtype=torch.float64))
    objective.cloud.logit_opacities.fill_(-20.0)  # nothing is drawn, and no gradient says anything
    take_steps(objective, refinement, 2)
    shrinks = 1 - pose_refinement.PRIOR / (1 + pose_refinement.DAMPING + pose_refinement.PRIOR)
    now = twist_between(refinement.given[0], refinement.poses[0])
    torch.testing.assert_close(now, shrinks**2 * before, rtol=1e-3, atol=1e-9)


def test_a_batch_gives_each_view_its_own() -> None:
    objective = an_objective()
    refinement = PoseRefinement(objective, [0, 1])
    refinement.before_step(LATE)
    objective.gradient([0, 1])
    together = dict(objective.twists or {})
    for view in (0, 1):
        refinement.before_step(LATE)
        objective.gradient([view])
        alone = (objective.twists or {})[view]
        torch.testing.assert_close(together[view].force, alone.force, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(together[view].torque, alone.torque, rtol=1e-9, atol=1e-13)


def test_a_camera_that_sees_nothing_stays() -> None:
    objective = an_objective()
    turned = moved_pose(objective.cameras[0].world_to_camera, torch.tensor([0, math.pi, 0, 0, 0, 0.0]))
    objective.replace_camera(0, replace(objective.cameras[0], world_to_camera=turned))
    refinement = PoseRefinement(objective, [0, 1])
    take_steps(objective, refinement, 3)
    assert torch.equal(refinement.poses[0], refinement.given[0])


def test_a_state_goes_on_and_another_is_refused() -> None:
    first, second = an_objective(), an_objective()
    one, two = PoseRefinement(first, [0, 1]), PoseRefinement(second, [0, 1])
    take_steps(first, one, 5)
    two.load_state(one.state() | {"sampler": torch.zeros(1)}, "here")
    for objective, refinement in ((first, one), (second, two)):
        take_steps(objective, refinement, 3)
    assert torch.equal(one.poses, two.poses)
    with pytest.raises(DamagedCheckpointError, match="world_to_camera must be"):
        PoseRefinement(an_objective(), [0]).load_state(one.state(), "here")
    with pytest.raises(DamagedCheckpointError, match="lacks the tensor"):
        two.load_state({}, "here")
    with pytest.raises(DamagedCheckpointError, match="should not"):
        PoseRefinement(an_objective(), []).load_state(one.state(), "here")


def test_of_no_views_nothing_is_refined() -> None:
    objective = an_objective()
    refinement = PoseRefinement(objective, [])
    refinement.before_step(LATE)
    assert objective.twists is None
    objective.gradient([0])
    refinement.after_step()
    assert refinement.state() == {}


class WithoutProducts(ReferenceRenderer):
    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset({Oracle.GRADIENT})


def test_a_renderer_without_products_is_refused() -> None:
    with pytest.raises(MissingOracleError, match="--refine-poses"):
        PoseRefinement(an_objective(renderer=WithoutProducts()), [0])
