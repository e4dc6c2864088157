"""What a training run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.data import Capture
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores
from splatopt.train.refined_poses import CameraMotion


class CheckpointError(InputError):
    """A run ended and not one checkpoint could be written."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        folder: The run's folder.
        config: What it was told, resolved.
        capture: What it was trained on, in its own frame.
        frame: The frame that it was trained in.
        cloud: The trained scene, in the capture's own frame.
        steps: Optimizer steps taken.
        seconds: Seconds of training, evaluation not counted.
        before: Scores before the first step.
        after: Scores at the end.
        cameras_moved: How far the training cameras did where their poses were refined.
    """

    folder: Path
    config: TrainConfig
    capture: Capture
    frame: Frame
    cloud: GaussianCloud
    steps: int
    seconds: float
    before: Scores | None
    after: Scores
    cameras_moved: CameraMotion | None = None
