"""What a run begins with: its configuration resolved, its capture, and for one that goes on its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from splatopt.core.checkpoint import Checkpoint
from splatopt.core.frame import WORLD
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.raster.render import Backend
from splatopt.runs.folder import RunFolder
from splatopt.runs.plugins import load_again, recorded_plugins
from splatopt.runs.resumable import checkpoint_to_resume
from splatopt.runs.trained_on import check_resumed, training_frame
from splatopt.train.checkpoint_content import check_training
from splatopt.train.choices import check_given
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import check_scorable
from splatopt.train.machine import on_this_machine, with_own_instructions
from splatopt.train.plan import PlanFile
from splatopt.train.repeating import check_planned_capture, plan_of_run, repeating
from splatopt.train.setup import open_capture
from splatopt.train.stages import check_continues


@dataclass(frozen=True)
class Opening:
    """All that was read and found to be good.

    Attributes:
        config: With everything spelt out that was left to be chosen.
        capture: What is trained on, in its training frame.
        checkpoint: Where to go on; None for a new run.
        warnings: One sentence each.
        backend: What renders, and where; None where the renderer is given.
        plan: The plan that the run repeats or goes on with; None for a new one, and where it has none.
    """

    config: TrainConfig
    capture: Capture
    checkpoint: Checkpoint | None
    warnings: tuple[str, ...]
    backend: Backend | None
    plan: PlanFile | None = None


def open_training(config: TrainConfig, capture: Capture | None, *, has_renderer: bool) -> Opening:
    """Read and check what a run begins with; writes nothing.

    Args:
        config: What to do.
        capture: Used in place of the one that ``config`` names.
        has_renderer: Whether the renderer is given, so that ``config`` need not find one.

    Raises:
        InputError: Something that was given cannot be used.
    """
    warnings: list[str] = []
    checkpoint, asked, plan = None, None, None
    if config.saving.resume:
        asked = config
        config, capture, checkpoint, warnings = _reopen(config, capture)
        plan = plan_of_run(RunFolder(config.folder), config)
    else:
        if config.saving.out is not None:
            RunFolder(config.folder).check_free()
        check_given(config.schedule)
        if config.schedule.plan is not None:
            asked = config
            config, plan = repeating(config)
        capture = (capture or open_capture(config)).localised()
        config = config.resolved(capture.name, capture.background)
        RunFolder(config.folder).check_free()
        if plan is not None:
            check_planned_capture(config, plan, capture)
        warnings += _far_from_origin(capture)
    check_scorable(capture)
    backend = None
    if not has_renderer:
        config, backend, changes = on_this_machine(config, asked)
        warnings += changes
    elif config.processes.device == "auto":
        config = config.changed(device="cpu")
    config, changes = with_own_instructions(config, asked)
    warnings += changes
    return Opening(config, capture, checkpoint, (*capture.warnings, *warnings), backend, plan)


def _reopen(config: TrainConfig, capture: Capture | None) -> tuple[TrainConfig, Capture, Checkpoint | None, list[str]]:
    """Find the run that ``config`` wants to resume, and its last good checkpoint."""
    if config.saving.out is None:
        capture = capture or open_capture(config)
        config = config.changed(out=config.resolved(capture.name, capture.background).folder)
    folder = RunFolder(config.folder)
    again = load_again(recorded_plugins(folder), f"the run in {folder.path}")
    saved = TrainConfig.read(folder).changed(plugins=again.plugins)
    saved.check_known(str(folder.config))
    folder.check_idle()
    resumed = config.resuming(saved)
    checkpoint, warnings = checkpoint_to_resume(folder, check_training)
    warnings += again.warnings
    if checkpoint is not None and len(saved.schedule.all_stages) + len(resumed.schedule.all_stages) > 2:
        check_continues(resumed.schedule.all_stages, saved.schedule.all_stages, checkpoint.step)
    frame = training_frame(folder)
    if frame is None and checkpoint is not None and checkpoint.step > 0:
        frame = WORLD
    elif frame is None:
        checkpoint = None  # an older version's run without a step begins anew, in the training frame
    capture = (capture or open_capture(resumed)).localised(frame)
    warnings += check_resumed(folder, resumed.data.capture, fingerprint_capture(capture))
    return resumed, capture, checkpoint, warnings


def _far_from_origin(capture: Capture) -> list[str]:
    """Return a sentence where a scene file, which holds float32, cannot say where the scene's Gaussians lie."""
    frame = capture.frame
    if not frame.is_far:
        return []
    distance = math.hypot(*frame.origin)
    return [
        f"the capture lies {distance:.3g} world units from its origin, where float32 holds positions to "
        f"{frame.spacing:.2g}: "
        "it is trained around the cameras, without that loss, but scene.ply, in the capture's own frame, has it"
    ]
