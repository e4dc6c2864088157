"""What a person sees while a run goes on."""

from __future__ import annotations

from rich.console import Console

from splatopt.core.checks import shown
from splatopt.runs.events import Ended, Warned
from splatopt.runs.live_line import LiveLine
from splatopt.runs.memory import resident_megabytes
from splatopt.train.events import Evaluated, Event, Scoring, Started, Stepped
from splatopt.train.options import ScheduleOptions
from splatopt.train.stages import Stage

_SMOOTHING = 0.95


class ProgressLine:
    """A callback that keeps one line up to date on a terminal, and prints one now and then elsewhere.

    The line holds step, loss, PSNR, Gaussians, memory and the time that is left; loss and PSNR are
    running means, since each step sees other views.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None, so that output can be piped."""
        self._line = LiveLine(console)
        self._stage: Stage | None = None
        self._loss = self._psnr = 0.0
        self._fresh = True

    def __call__(self, event: Event) -> None:
        """Show what ``event`` tells."""
        match event:
            case Stepped():
                self._step(event)
            case Started():
                self._start(event)
            case Scoring():
                self._line.note(f"scoring held-out views: {event.done} done")
            case Evaluated():
                scores = event.scores
                self._line.say(
                    f"step {event.step}: {scores.subset} PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f} "
                    f"({len(scores.views)} views, {scores.split}){scores.over_pixels}"
                )
            case Warned():
                self._line.say(f"warning: {event.message}", style="yellow")
            case Ended():
                self._line.close()

    def say(self, sentence: str) -> None:
        """Print a line that stays, above the one that is kept up to date."""
        self._line.say(sentence)

    def _start(self, event: Started) -> None:
        for sentence in event.found:
            self._line.say(f"found: {sentence}")
        schedule, saving = event.config.schedule, event.config.saving
        verb = "going on at step" if event.step or saving.resume else "training, step"
        source = f" from {shown(event.points_file)}" if event.points_file and not event.step else ""
        for sentence in _plan_sentences(event):
            self._line.say(sentence)
        self._line.say(
            f"{verb} {event.step}{_total(schedule)}: {event.gaussians:,} Gaussians{source}, "
            f"{event.views} views, {_optimizers(schedule)}, {event.renderer} renderer{_place(event)} -> {saving.out}"
        )
        self._line.open()

    def _step(self, event: Stepped) -> None:
        stage = event.stage
        if self._fresh or stage != self._stage:
            # Stages take as long as their optimizers.
            if not self._fresh:
                self._line.restart()
            self._fresh, self._stage = False, stage
            self._loss, self._psnr = event.loss, event.psnr
        self._loss += (1 - _SMOOTHING) * (event.loss - self._loss)
        self._psnr += (1 - _SMOOTHING) * (event.psnr - self._psnr)
        several = stage is not None and stage.steps < event.steps
        part = f" ({stage.optimizer} {event.step - stage.begin}/{stage.steps})" if stage and several else ""
        self._line.update(
            f"step {event.step}/{event.steps}{part}  loss {self._loss:.4f}  PSNR {self._psnr:.2f} dB  "
            f"{len(event.cloud):,} Gaussians  {resident_megabytes():.0f} MB",
            event.step,
            stage.end if stage else event.steps,
            left=event.seconds_left,
            goal=f" of {stage.optimizer}'s end" if stage and several and event.seconds_left is None else "",
        )


def _plan_sentences(event: Started) -> list[str]:
    """Say when a run ends that plans itself, and how to have it otherwise."""
    schedule = event.config.schedule
    if schedule.plan is not None:
        return [f"repeating {schedule.plan}: {schedule.total_steps} steps, whatever time they take"]
    if schedule.minutes is None:
        return []
    minutes = f"{schedule.minutes:g} minute" + "s" * (schedule.minutes != 1)
    sooner = ", or sooner once the training views no longer improve" if schedule.until_plateau else ""
    more = 2 * schedule.minutes
    return [
        f"the run ends {minutes} after its start{sooner}; it chooses steps, sizes and Gaussians for that",
        f"more time makes a better scene: --minutes {more:g}; --steps N trains plainly for N steps",
    ]


def _total(schedule: ScheduleOptions) -> str:
    """Say how many steps there are, where that is known."""
    return "" if schedule.minutes is not None else f" of {schedule.total_steps}"


def _optimizers(schedule: ScheduleOptions) -> str:
    """Say what optimizes: one optimizer, or stages."""
    if schedule.stages is None:
        return f"optimizer {schedule.optimizer}"
    names = " and then ".join(stage.optimizer for stage in schedule.all_stages)
    return f"stages {schedule.stages}" if schedule.minutes is None else f"optimizers {names}"


def _place(event: Started) -> str:
    """Say where a run computes, unless it is one process on the CPU."""
    device = "" if event.device == "cpu" else f" on {event.device}"
    return device if event.world_size == 1 else f"{device}, {event.world_size} processes"
