"""How far disturbed poses come back: training cameras are turned and moved, and a run refines their poses.

    python -m benchmarks.pose_refinement CAPTURE --downscale 2 --optimizer learned --steps 1000

Each training camera is turned by ``--degrees`` about a random axis, and moved by ``--share`` of the scene's extent in
a random direction; the held-out ones stay. Three runs with the same seed: undisturbed, disturbed, and disturbed with
``--refine-poses``. The poses' errors are means over the training cameras after a similarity alignment: centres by
Umeyama (1991), turns by their mean. Photographs cannot tell that similarity, and held-out cameras stay where they are:
so what the disturbance turned and moved all cameras by together is in the held-out scores, which are given both as
they are and with the held-out cameras aligned.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.data import Capture
from splatopt.scene.rigid_motion import angles_of, rotation_of
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import evaluate
from splatopt.train.loop import train
from splatopt.train.refined_poses import with_poses
from splatopt.train.run import open_run
from splatopt.train.setup import open_capture


@dataclass(frozen=True)
class PoseRefinementOptions:
    """What is trained, and how its poses are disturbed."""

    capture: tyro.conf.Positional[str]
    """Folder of the capture."""

    optimizer: str = "learned"
    """Name of the optimizer."""

    steps: int = 1000
    """Unit: steps."""

    downscale: int = 1
    """Unit: factor."""

    degrees: float = 0.5
    """Turn of each training camera. Unit: degrees."""

    share: float = 0.01
    """Way of each training camera. Unit: fraction of the extent."""

    seed: int = 0
    """Of the runs and of the disturbance."""

    threads: int = 1
    """Unit: threads."""


@dataclass(frozen=True)
class Similarity:
    """x → scale · rotation x + shift."""

    scale: float
    rotation: Tensor
    shift: Tensor

    def pose(self, world_to_camera: Tensor) -> Tensor:
        """Return the pose of the moved camera."""
        moved = world_to_camera.clone()
        moved[:3, :3] = world_to_camera[:3, :3] @ self.rotation.T
        moved[:3, 3] = -moved[:3, :3] @ (self.scale * self.rotation @ center_of(world_to_camera) + self.shift)
        return moved


@dataclass(frozen=True)
class PoseErrors:
    """Means over cameras after a similarity alignment, and what the alignment took.

    Attributes:
        degrees: Turn, degrees.
        share: Distance, fraction of the extent.
        common_degrees: Turn of all together, degrees.
        common_share: Way of their mean, fraction of the extent.
    """

    degrees: float
    share: float
    common_degrees: float
    common_share: float


def center_of(pose: Tensor) -> Tensor:
    """Return where a camera stands, (3,)."""
    return -pose[:3, :3].T @ pose[:3, 3]


def disturbed(capture: Capture, degrees: float, share: float, seed: int) -> Capture:
    """Return a capture whose training cameras are turned and moved."""
    draws = torch.Generator().manual_seed(seed)

    def direction() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(3, generator=draws, dtype=torch.float64), dim=0)

    def off(camera: Camera) -> Tensor:
        pose = camera.world_to_camera.double().clone()
        center = center_of(pose) + share * capture.extent * direction()
        pose[:3, :3] = rotation_of(math.radians(degrees) * direction()) @ pose[:3, :3]
        pose[:3, 3] = -pose[:3, :3] @ center
        return pose

    return with_poses(capture, torch.stack([off(capture.cameras[view]) for view in capture.split.train]))


def _nearest_rotation(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix)
    signs = torch.tensor([1.0, 1.0, float(torch.linalg.det(left @ right).sign())], dtype=torch.float64)
    return left @ signs.diag() @ right


def alignment(found: list[Tensor], true: list[Tensor]) -> tuple[Similarity, Tensor]:
    """Return the similarity that takes the centres of ``true`` poses to those found, and the mean turn between them.

    Args:
        found: (4, 4) each.
        true: (4, 4) each.
    """
    from_centers, to_centers = (torch.stack([center_of(pose) for pose in poses]) for poses in (true, found))
    start, end = from_centers.mean(dim=0), to_centers.mean(dim=0)
    covariance = (to_centers - end).T @ (from_centers - start)
    rotation = _nearest_rotation(covariance)
    scale = float((rotation.T @ covariance).trace() / (from_centers - start).square().sum())
    turn = _nearest_rotation(
        torch.stack([one[:3, :3].T @ other[:3, :3] for one, other in zip(found, true, strict=True)]).sum(dim=0)
    )
    return Similarity(scale, rotation, end - scale * rotation @ start), turn


def pose_errors(found: list[Tensor], true: list[Tensor], extent: float) -> PoseErrors:
    """Return how far poses are from the true ones, after an alignment; in the unit of ``extent``."""
    similarity, turn = alignment(found, true)
    pairs = list(zip(found, true, strict=True))
    turns = [angles_of(one[:3, :3] @ turn @ other[:3, :3].T).norm() for one, other in pairs]
    ways = [(center_of(one) - center_of(similarity.pose(other))).norm() for one, other in pairs]
    means = (torch.stack([center_of(pose) for pose in poses]).mean(dim=0) for poses in (found, true))
    return PoseErrors(
        degrees=math.degrees(float(torch.stack(turns).mean())),
        share=float(torch.stack(ways).mean()) / extent,
        common_degrees=math.degrees(float(angles_of(turn).norm())),
        common_share=float(torch.sub(*means).norm()) / extent,
    )


def measure(options: PoseRefinementOptions, name: str, folder: Path) -> dict[str, object]:
    """Return what one run comes to.

    Args:
        options: What is trained.
        name: undisturbed, disturbed or refined.
        folder: For its files.
    """
    settings = {"optimizer": options.optimizer, "steps": options.steps, "downscale": options.downscale}
    own = {"seed": options.seed, "threads": options.threads, "out": folder / name}
    config = TrainConfig.of(options.capture, **settings, **own, refine_poses=name == "refined")
    true = open_capture(config)
    off = disturbed(true, options.degrees, options.share, options.seed)
    given = true if name == "undisturbed" else off
    result = train(config, (), capture=given)
    run = open_run(folder / name)
    local, extent = true.localised(run.frame), given.localised(run.frame).extent
    refined = run.refined(given)
    found, right = ([one.cameras[view].world_to_camera for view in true.split.train] for one in (refined, local))
    similarity, turn = alignment(found, right)
    objective = run.objective(given)
    for view in true.split.test:
        camera = objective.cameras[view]
        pose = camera.world_to_camera.clone()
        place = similarity.scale * similarity.rotation @ center_of(pose) + similarity.shift
        pose[:3, :3] = pose[:3, :3] @ turn.T
        pose[:3, 3] = -pose[:3, :3] @ place
        objective.replace_camera(view, replace(camera, world_to_camera=pose))
    errors = pose_errors(found, right, extent)
    scores = {"psnr": result.after.psnr, "ssim": result.after.ssim, "aligned_psnr": evaluate(objective, true).psnr}
    return {"run": name, **asdict(errors), **scores, "seconds": result.seconds}


def main() -> int:
    """Take the three runs and print a line of JSON for each."""
    options = tyro.cli(PoseRefinementOptions)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("undisturbed", "disturbed", "refined"):
            print(json.dumps(measure(options, name, Path(folder))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
