"""What a run begins with: its configuration resolved, its capture, and for one that goes on its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from splatopt.core.checkpoint import Checkpoint
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.runs.folder import RunFolder
from splatopt.runs.plugins import load_again, recorded_plugins
from splatopt.runs.resumable import checkpoint_to_resume
from splatopt.runs.trained_on import check_resumed
from splatopt.train.checkpoint_content import check_training
from splatopt.train.config import TrainConfig, read_config
from splatopt.train.evaluate import check_scorable
from splatopt.train.setup import on_this_machine, open_capture, with_own_instructions
from splatopt.train.stages import check_continues


@dataclass(frozen=True)
class Opening:
    """All that was read and found to be good.

    Attributes:
        config: With everything spelt out that was left to be chosen.
        capture: What is trained on.
        checkpoint: Where to go on; None for a new run.
        warnings: One sentence each.
    """

    config: TrainConfig
    capture: Capture
    checkpoint: Checkpoint | None
    warnings: tuple[str, ...]


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
    checkpoint, asked = None, None
    if config.resume:
        asked = config
        config, capture, checkpoint, warnings = _reopen(config, capture)
    else:
        if config.out is not None:
            RunFolder(config.folder).check_free()
        capture = capture or open_capture(config)
        config = config.resolved(capture.name, capture.background)
        RunFolder(config.folder).check_free()
    check_scorable(capture)
    if not has_renderer:
        config, changes = on_this_machine(config, asked)
        warnings += changes
    elif config.device == "auto":
        config = replace(config, device="cpu")
    config, changes = with_own_instructions(config, asked)
    warnings += changes
    return Opening(config, capture, checkpoint, (*capture.warnings, *warnings))


def _reopen(config: TrainConfig, capture: Capture | None) -> tuple[TrainConfig, Capture, Checkpoint | None, list[str]]:
    """Find the run that ``config`` wants to resume, and its last good checkpoint."""
    if config.out is None:
        capture = capture or open_capture(config)
        config = replace(config, out=config.resolved(capture.name, capture.background).out)
    folder = RunFolder(config.folder)
    again = load_again(recorded_plugins(folder), f"the run in {folder.path}")
    saved = replace(read_config(folder), plugins=again.plugins)
    saved.check_known(str(folder.config))
    folder.check_idle()
    resumed = config.resuming(saved)
    checkpoint, warnings = checkpoint_to_resume(folder, check_training)
    warnings += again.warnings
    if checkpoint is not None and len(saved.plan) + len(resumed.plan) > 2:
        check_continues(resumed.plan, saved.plan, checkpoint.step)
    capture = capture or open_capture(resumed)
    warnings += check_resumed(folder, resumed.capture, fingerprint_capture(capture))
    return resumed, capture, checkpoint, warnings
