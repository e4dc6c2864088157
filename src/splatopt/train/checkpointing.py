"""What a training run writes into its checkpoints, and takes out of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from splatopt.core.checkpoint import Checkpoint
from splatopt.core.optimizer import Optimizer
from splatopt.runs.checkpoint_content import OPTIMIZER, load_optimizer
from splatopt.runs.folder import MetricSums
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.pose_refinement import PoseRefinement
from splatopt.train.checkpoint_content import CLOUD
from splatopt.train.exposure import ExposureSolving
from splatopt.train.finite_rows import RowResets
from splatopt.train.growth import Growth
from splatopt.train.pacing import Pacing
from splatopt.train.plan_memory import PLAN
from splatopt.train.sampler import ViewSampler


@runtime_checkable
class Checkpointed(Protocol):
    """The parts of a run that a checkpoint holds; see ``Trainer``."""

    step: int
    seconds: float
    pacing: Pacing
    saved_at_seconds: float
    looked_at_seconds: float
    position: int
    objective: PhotometricObjective
    optimizer: Optimizer
    growth: Growth | None
    exposure: ExposureSolving
    poses: PoseRefinement
    sampler: ViewSampler
    sums: MetricSums
    resets: RowResets
    generator: torch.Generator


def checkpoint_of(run: Checkpointed) -> Checkpoint:
    """Return all that a run needs to go on bit-exactly."""
    state = run.optimizer.state()
    tensors = {f"{CLOUD}{name}": value for name, value in run.objective.parameters.items()}
    tensors |= {f"{OPTIMIZER}{name}": value for name, value in state.tensors.items()}
    maps, counts = run.exposure.state()
    tensors |= {"sampler": run.sampler.state(), "generator": run.generator.get_state(), **maps}
    tensors |= run.poses.state()
    scalars = {
        "seconds": run.seconds,
        "used": run.pacing.used,
        "stage": run.position,
        "optimizer": dict(state.scalars),
        "sums": run.sums.to_json(),
        "resets": run.resets.to_json(),
        **counts,
    }
    if (memory := run.pacing.memory) is not None:
        scalars[PLAN] = memory.to_json()
    if run.growth is not None:
        kept, scalars["density"] = run.growth.state()
        tensors |= kept
    return Checkpoint(run.step, tensors, scalars)


def load_parts(run: Checkpointed, checkpoint: Checkpoint) -> None:
    """Give a run, bound to the checkpoint's scene and at its stage, the rest of what the checkpoint holds.

    Args:
        run: With a new optimizer of that stage, and a new strategy where one is at work.
        checkpoint: Whose form was checked.
    """
    tensors, scalars = checkpoint.tensors, checkpoint.scalars
    # A run that had come to its end may go on with another stage, which starts anew.
    if run.position == scalars.get("stage", 0):
        load_optimizer(run.optimizer, checkpoint)
    if run.growth is not None:
        run.growth.load(checkpoint)
    run.exposure.load(checkpoint)
    run.poses.load_state(tensors, checkpoint.where)
    run.sampler.load_state(tensors["sampler"])
    run.step = checkpoint.step
    run.seconds = run.saved_at_seconds = run.looked_at_seconds = scalars["seconds"]
    run.sums = MetricSums(**scalars["sums"])
    run.resets.load(scalars.get("resets"))
