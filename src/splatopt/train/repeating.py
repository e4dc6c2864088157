"""Going on with a run's plan, and repeating it."""

from __future__ import annotations

from splatopt.core.checks import InputError
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.runs.folder import RunFolder
from splatopt.runs.trained_on import difference
from splatopt.train.config import TrainConfig
from splatopt.train.plan import PlanFile, read_plan


def plan_of_run(folder: RunFolder, config: TrainConfig) -> PlanFile | None:
    """Return the plan that a run goes on with; None where its steps were given, or nothing was planned yet.

    Args:
        folder: The run's.
        config: What it goes on with.

    Raises:
        InputError: The plan is gone or damaged.
    """
    is_begun = folder.plan.exists() or folder.has_progress
    return read_plan(folder.plan) if config.schedule.is_planned and is_begun else None


def repeating(asked: TrainConfig) -> tuple[TrainConfig, PlanFile]:
    """Return the configuration that repeats a plan, and the plan.

    What was left at its default is as it was in the run that planned itself; what was given must agree with it, except
    for what changes no number.

    Args:
        asked: Names the plan.

    Raises:
        InputError: There is no plan, or something that was given contradicts it.
    """
    path = asked.schedule.plan
    assert path is not None
    kept = read_plan(path)
    saved = kept.config.changed(plan=path, minutes=None, until_plateau=False)
    saved.check_known(str(path))
    return asked.resuming(saved), kept


def check_planned_capture(config: TrainConfig, kept: PlanFile, capture: Capture) -> None:
    """Raise InputError where ``capture`` is not what the run was trained on whose plan is repeated."""
    if differs := difference(kept.trained_on, fingerprint_capture(capture)):
        raise InputError(
            f"{config.data.capture} is not what the run of the plan {config.schedule.plan} was trained on: {differs}; "
            "give that capture"
        )
