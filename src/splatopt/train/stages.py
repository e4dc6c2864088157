"""Stages: consecutive optimizers on one scene, as ``adam:1500,lm:10`` says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from splatopt.core.checks import InputError, quoted

_STEPS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Stage:
    """One optimizer's part of a run.

    Attributes:
        optimizer: Its name.
        begin: Steps of the run before it.
        steps: Its own steps; its schedules end there.
    """

    optimizer: str
    begin: int
    steps: int

    @property
    def end(self) -> int:
        """Steps of the run after it."""
        return self.begin + self.steps


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Return the stages that ``text`` names, as NAME:STEPS,NAME:STEPS; the same name may come again.

    Raises:
        InputError: A part is empty or has another form, or its steps are not positive.
    """
    stages: list[Stage] = []
    for number, part in enumerate(text.split(","), start=1):
        name, colon, steps = (word.strip() for word in part.rpartition(":"))
        if not (name and colon and steps):
            raise InputError(
                f"stage {number} of --stages must be NAME:STEPS, got {quoted(part.strip())} in {quoted(text)}; write "
                "for example adam:1500,lm:10"
            )
        if not _STEPS.fullmatch(steps) or int(steps) < 1:
            raise InputError(
                f"stage {number} of --stages must have a whole number of steps of at least 1, got "
                f"{quoted(part.strip())}"
            )
        stages.append(Stage(name, stages[-1].end if stages else 0, int(steps)))
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], step: int) -> int:
    """Return the position of the stage that takes the step after ``step`` steps; the last one at the end."""
    return next((position for position, stage in enumerate(stages) if step < stage.end), len(stages) - 1)


def written(stages: tuple[Stage, ...]) -> str:
    """Return the text that :func:`parse_stages` reads."""
    return ",".join(f"{stage.optimizer}:{stage.steps}" for stage in stages)


def check_continues(stages: tuple[Stage, ...], saved: tuple[Stage, ...], step: int) -> None:
    """Make sure that a run that took ``step`` steps through ``saved`` may go on through ``stages``.

    What has ended must stay; the stage that it stands in may get another end, and other stages may follow.

    Raises:
        InputError: A step already taken would have been another optimizer's, or another stage's.
    """
    begun = [stage for stage in saved if stage.begin < step]
    for position, before in enumerate(begun):
        now = stages[position] if position < len(stages) else None
        is_last = position == len(saved) - 1
        fixed_end = before.end if before.end <= step and not is_last else None
        if (
            now is None
            or (now.optimizer, now.begin) != (before.optimizer, before.begin)
            or now.end < min(before.end, step)
            or (fixed_end is not None and now.end != fixed_end)
        ):
            raise InputError(
                f"the run took {step} steps as {written(saved)}, and cannot go on as {written(stages)}; keep the "
                "stages that have ended, and the optimizer of the one that the run stands in"
            )
