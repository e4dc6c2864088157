"""What a run says of the poses that it refined: how far cameras moved, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.core.processes import Processes
from splatopt.core.reading import read_json
from splatopt.core.typed import Fields
from splatopt.data import Capture
from splatopt.runs.folder import RunFolder, write_json
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.pose_refinement import PoseRefinement, unmeasured_state
from splatopt.scene.rigid_motion import angles_of
from splatopt.train.config import TrainConfig

FORMAT = "splatopt-poses-1"
_POSE = "world_to_camera"


@dataclass(frozen=True)
class CameraMotion:
    """How far the training cameras moved from where the capture has them.

    Attributes:
        degrees: Turn of each, degrees.
        shares: Distance of each from where it stood, in parts of the scene's extent.
    """

    degrees: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def between(cls, given: Sequence[Tensor], poses: Sequence[Tensor], extent: float) -> CameraMotion:
        """Return the motion from one list of ``world_to_camera`` to another.

        Args:
            given: (4, 4) each.
            poses: (4, 4) each, in the same frame.
            extent: The scene's, in that frame's unit.
        """
        turns = [float(angles_of(now[:3, :3] @ then[:3, :3].T).norm()) for then, now in zip(given, poses, strict=True)]
        ways = [float((_center(now) - _center(then)).norm()) for then, now in zip(given, poses, strict=True)]
        return cls(tuple(torch.tensor(turns).rad2deg().tolist()), tuple(way / extent for way in ways))

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return medians and greatest values as JSON values."""
        of = {"turned_degrees": self.degrees, "moved_share": self.shares}
        return {name: {"median": _median(values), "max": max(values)} for name, values in of.items()}

    @property
    def sentence(self) -> str:
        """Both in one sentence."""
        return (
            f"poses: {len(self.degrees)} training cameras turned by {_median(self.degrees):.3f} degrees (median; at "
            f"most {max(self.degrees):.3f}) and moved by {100 * _median(self.shares):.3f} % of the extent (at most "
            f"{100 * max(self.shares):.3f} %)"
        )


def _center(pose: Tensor) -> Tensor:
    return -pose[:3, :3].T @ pose[:3, 3]


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def open_refinement(
    config: TrainConfig, objective: PhotometricObjective, capture: Capture, processes: Processes
) -> PoseRefinement:
    """Return what refines the poses of a run's training views, of none where that was not asked for.

    Args:
        config: Says whether.
        objective: Whose cameras are moved.
        capture: Names the training views.
        processes: Those that share the run.

    Raises:
        InputError: There are several of them, or the renderer has no Jacobian products.
    """
    if config.scene.refine_poses and processes.world_size > 1:
        raise InputError("--refine-poses is for a run of one process; start it without torchrun")
    return PoseRefinement(objective, capture.split.train if config.scene.refine_poses else ())


def with_poses(capture: Capture, poses: Tensor | None) -> Capture:
    """Return a capture in its training frame with its training cameras at ``poses``, (v, 4, 4).

    One of another number of training cameras, and any for None, keeps its own.
    """
    if poses is None or len(poses) != len(capture.split.train):
        return capture
    cameras = list(capture.cameras)
    for view, pose in zip(capture.split.train, poses, strict=True):
        cameras[view] = replace(cameras[view], world_to_camera=pose)
    return replace(capture, cameras=tuple(cameras))


def write_poses(folder: RunFolder, capture: Capture, refinement: PoseRefinement) -> CameraMotion | None:
    """Write ``poses.json`` and return how far cameras moved; nothing where none were refined.

    Args:
        folder: The run's.
        capture: What was trained on, in its training frame.
        refinement: What moved its cameras.
    """
    return write_saved_poses(folder, capture, refinement.poses) if len(refinement.poses) else None


def write_saved_poses(folder: RunFolder, capture: Capture, poses: Tensor) -> CameraMotion:
    """Write ``poses.json`` of the training views of a capture and return how far they moved from where it has them.

    Args:
        folder: The run's.
        capture: What was trained on, in its training frame, its cameras where they were given.
        poses: Of its training views, (v, 4, 4), in that frame.
    """
    frame, cameras = capture.frame, [capture.cameras[view] for view in capture.split.train]
    motion = CameraMotion.between([one.world_to_camera.double() for one in cameras], list(poses), capture.extent)
    views = [
        {"name": one.name, "turned_degrees": turn, "moved_share": share, _POSE: frame.pose_to_world(pose).tolist()}
        for one, turn, share, pose in zip(cameras, motion.degrees, motion.shares, poses, strict=True)
    ]
    write_json(folder.poses, {"format": FORMAT, **motion.to_json(), "views": views})
    return motion


def saved_poses(tensors: Mapping[str, Tensor], file: Path, frame: Frame) -> Tensor | None:
    """Return the poses of a run's training views, (v, 4, 4), in its training frame; None where none were refined.

    Args:
        tensors: What its checkpoint holds of them.
        file: Its ``poses.json``, for a run whose checkpoint is gone.
        frame: The training frame.

    Raises:
        InputError: The file is damaged.
    """
    if _POSE in tensors:
        return _checked(tensors[_POSE], "the run's checkpoint")
    if not file.is_file():
        return None
    found = Fields(read_json(file), str(file))
    if found.text("format") != FORMAT:
        raise found.refusal("format", FORMAT)
    try:
        poses = torch.tensor([view.entries(_POSE) for view in found.objects("views")], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: it must hold poses of 4x4 numbers ({error})") from error
    return torch.stack([frame.pose(pose) for pose in _checked(poses, str(file))])


def state_of_poses(tensors: Mapping[str, Tensor], file: Path, frame: Frame) -> dict[str, Tensor]:
    """Return what a checkpoint has to hold of a run's refined poses; nothing where none are left.

    Args:
        tensors: What the run's checkpoint holds of them.
        file: Its ``poses.json``, for a run whose checkpoint is gone.
        frame: The training frame.

    Raises:
        InputError: The file is damaged.
    """
    poses = None if tensors else saved_poses({}, file, frame)
    return dict(tensors) if poses is None else unmeasured_state(poses)


def _checked(poses: Tensor, where: str) -> Tensor:
    """Return poses; raises InputError where they are not finite 4x4 matrices."""
    if poses.dim() != 3 or poses.shape[1:] != (4, 4) or not len(poses) or not bool(torch.isfinite(poses).all()):
        raise InputError(f"{where}: poses must be finite 4x4 matrices, got shape {tuple(poses.shape)}")
    return poses.double()
