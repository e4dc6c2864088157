"""Poses of training views, refined while the scene is trained: a damped Gauss-Newton step each time a view is seen.

A step's gradient holds ∂loss/∂ξ of its view's camera already (:mod:`splatopt.scene.rigid_motion`), g, six numbers. The
matrix that it is divided by is κ M:

    ξᵀ M ξ  the mean squared motion on the image, pixels², of the Gaussians' centres that the view sees, in closed form;
    κ       what a squared pixel of motion changes the loss by: tr(M⁻¹ JᵀJ) / 6 with J of six Jacobian products, taken
            anew every so many updates and halved into what it was.

So κ M is JᵀJ with every pixel's slope taken as the usual one. With the deviation d from the given pose, a prior of
ρ κ M there, and the damping λ κ M,

    ξ = -((κ M)⁻¹ g + ρ d) / (1 + λ + ρ) - m,    shortened until ξᵀ M ξ ≤ 1 pixel².

m is the mean motion of all refined cameras in the world, as this one sees it. It cannot be told from photographs, since
the scene may follow: taken back, it keeps the cameras as a whole where the capture has them, and with them the scene
where held-out cameras look for it.

All is measured in motion on the image: nothing depends on the scene's unit or on how wide the lens is, and turns and
shifts that look alike, which no photograph tells apart, are held by the prior as they look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checkpoint import below, check_like
from splatopt.core.objective import Oracle
from splatopt.core.optimizer import Progress
from splatopt.raster.constants import NEAR_PLANE
from splatopt.raster.types import Gaussians
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.rigid_motion import (
    moved_pose,
    twist_between,
    twist_from_world,
    twist_tangents,
    twist_to_world,
)

POSES = "poses."
"""What the names of its tensors in a checkpoint begin with."""

DAMPING = 2.0
"""λ: a view's pose is the mean of what its last 1 + λ visits say, since each has the scene's own faults in it."""

PRIOR = 0.01
"""ρ: what the given pose weighs against a photograph."""

MAX_MOTION = 1.0
"""Of one update, root mean square over the Gaussians, pixels."""

BEGIN = 0.25
"""Share of the run's steps before poses are touched: a scene that is still blurred says little of them, and what it
says is wrong alike in all views, so that cameras wander off together."""

MEASURED_EVERY = 25
"""Updates between two measurements of κ."""

_ROWS = 4096
"""Gaussians whose motion is looked at, at most, evenly chosen."""

_MIN_ROWS = 6
_JITTER = 1e-9


def image_motion(gaussians: Gaussians, camera: Camera) -> Float[Tensor, "6 6"] | None:
    """Return M with ξᵀ M ξ the mean squared motion, pixels², of the centres that a camera sees; float64.

    Args:
        gaussians: The cloud; of a large one some rows are looked at.
        camera: What moves by ξ = (ω, v), in its own axes.

    Returns:
        M, or None where the camera sees too few to tell.
    """
    means = gaussians.means.detach()
    means = means[:: max(1, math.ceil(len(means) / _ROWS))].cpu().double()
    pose = camera.world_to_camera.double()
    places = means @ pose[:3, :3].T + pose[:3, 3]
    x, y, z = places[places[:, 2] > NEAR_PLANE].unbind(dim=1)
    a, b = x / z, y / z
    column, row = camera.fx * a + camera.cx, camera.fy * b + camera.cy
    inside = (column >= 0) & (column <= camera.width) & (row >= 0) & (row <= camera.height)
    if int(inside.count_nonzero()) < _MIN_ROWS:
        return None
    a, b, inverse = a[inside], b[inside], 1 / z[inside]
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    across = camera.fx * torch.stack([-a * b, one + a * a, -b, inverse, zero, -a * inverse], dim=1)
    down = camera.fy * torch.stack([-(one + b * b), a * b, a, zero, inverse, -b * inverse], dim=1)
    return (across.T @ across + down.T @ down) / len(a)


def pose_gauss_newton(objective: PhotometricObjective, view: int) -> Float[Tensor, "6 6"]:
    """Return JᵀJ of a view's residuals along its camera's six motions, by six Jacobian products; float64."""
    problem, renderer, cloud = objective.problem(view), objective.renderer, objective.cloud
    with renderer.fixed_parameters():
        columns = [renderer.jvp(cloud, problem, one).flatten().cpu() for one in twist_tangents(cloud, problem.camera)]
    jacobian = torch.stack(columns).double()
    return jacobian @ jacobian.T


class PoseRefinement:
    """Moves the cameras of an objective's training views; of no views where nothing is to be refined.

    Attributes:
        given: The poses that the views came with, (v, 4, 4), float64.
        poses: Their poses now.
    """

    def __init__(self, objective: PhotometricObjective, views: Sequence[int]) -> None:
        """Begin at the poses that the objective has.

        Args:
            objective: Whose cameras are moved.
            views: Those that are trained on.

        Raises:
            InputError: The objective lacks Jacobian products.
        """
        if views:
            objective.require(frozenset({Oracle.GRADIENT, Oracle.JVP}), "--refine-poses")
        self._objective, self._places = objective, {view: place for place, view in enumerate(views)}
        poses = [objective.cameras[view].world_to_camera.double() for view in views]
        self.given = torch.stack(poses) if poses else torch.empty(0, 4, 4, dtype=torch.float64)
        self.poses = self.given.clone()
        self._motions = torch.zeros(len(views), 6, dtype=torch.float64)
        self._curvature = torch.zeros((), dtype=torch.float64)
        self._updates = torch.zeros((), dtype=torch.int64)
        for view, pose in zip(views, self.given, strict=True):
            self._move(view, pose.clone())  # as a run that goes on does, to the same bits

    def before_step(self, progress: Progress) -> None:
        """Have the gradients of the next step leave what they say of cameras, from the time on that poses are refined.

        Args:
            progress: Where the whole run stands.
        """
        self._objective.twists = {} if self._places and progress.fraction >= BEGIN else None

    def after_step(self) -> None:
        """Move the cameras of the views that the step has seen."""
        twists, self._objective.twists = self._objective.twists or {}, None
        for view, sums in twists.items():
            place, camera = self._places[view], self._objective.cameras[view]
            motion = image_motion(self._objective.cloud, camera)
            curvature = 0.0 if motion is None else self._measured(view, motion)
            if motion is None or curvature <= 0:
                continue
            twist = self._step(place, camera, sums.seen_from(camera) / curvature, motion)
            if bool(torch.isfinite(twist).all()):
                self._move(view, moved_pose(camera.world_to_camera, twist))

    def _measured(self, view: int, motion: Tensor) -> float:
        """Return κ, measured on ``view`` where that is due."""
        if int(self._updates) % MEASURED_EVERY == 0:
            found = torch.linalg.solve(_regular(motion), pose_gauss_newton(self._objective, view)).trace() / 6
            if bool(torch.isfinite(found)):
                self._curvature = (found + self._curvature) / 2 if self._curvature > 0 else found
        self._updates += 1
        return float(self._curvature)

    def _step(self, place: int, camera: Camera, slope: Tensor, motion: Tensor) -> Tensor:
        """Return the twist that a view's camera is moved by, for ``slope`` = g / κ."""
        apart = twist_between(self.given[place], self.poses[place])
        twist = -(torch.linalg.solve(_regular(motion), slope) + PRIOR * apart) / (1 + DAMPING + PRIOR)
        twist -= twist_from_world(camera, self._motions.mean(dim=0))
        pixels = float((twist @ motion @ twist).sqrt())
        return twist * (MAX_MOTION / pixels) if pixels > MAX_MOTION else twist

    def _move(self, view: int, pose: Tensor) -> None:
        place, camera = self._places[view], replace(self._objective.cameras[view], world_to_camera=pose)
        self.poses[place] = pose
        self._motions[place] = twist_to_world(camera, twist_between(self.given[place], pose))
        self._objective.replace_camera(view, camera)

    def follow_level(self, ratio: float) -> None:
        """Go on with photographs of ``ratio`` times as many pixels a side.

        A loss per view and a motion in the world stay what they are, and a pixel of motion is 1/ratio of one: κ, loss
        by squared pixel, becomes κ/ratio².
        """
        self._curvature /= ratio**2

    def state(self) -> dict[str, Tensor]:
        """Return what goes on from here needs; nothing where no views are refined."""
        if not self._places:
            return {}
        tensors = {"world_to_camera": self.poses, "curvature": self._curvature, "updates": self._updates}
        return {f"{POSES}{name}": value.clone() for name, value in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Go on from ``tensors``.

        Args:
            tensors: As :meth:`state` gave them, and others.
            where: The checkpoint, for messages.

        Raises:
            DamagedCheckpointError: They are of other views, or not such a state.
        """
        found = below(tensors, POSES)
        check_like(found, below(self.state(), POSES), f"{where}: the poses")
        for view, pose in zip(self._places, found.get("world_to_camera", ()), strict=True):
            self._move(view, pose.clone())
        if found:
            self._curvature, self._updates = found["curvature"].clone(), found["updates"].clone()


def unmeasured_state(poses: Float[Tensor, "views 4 4"]) -> dict[str, Tensor]:
    """Return a state, its names without :data:`POSES`, of cameras at ``poses`` before κ is measured; float64."""
    return {
        "world_to_camera": poses,
        "curvature": torch.zeros((), dtype=torch.float64),
        "updates": torch.zeros((), dtype=torch.int64),
    }


def _regular(motion: Tensor) -> Tensor:
    """Return M with a trace of itself on its diagonal, so that it can be solved for whatever a camera sees."""
    return motion + _JITTER * motion.diagonal().diag()
