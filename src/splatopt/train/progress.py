"""What a person sees while a run goes on."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from splatopt.train.config import TrainConfig
from splatopt.train.events import Ended, Evaluated, Event, Started, Stepped, Warned
from splatopt.train.memory import resident_megabytes
from splatopt.train.stages import Stage

_REFRESH_SECONDS = 0.2
_PLAIN_SECONDS = 5.0
_SMOOTHING = 0.95


class ProgressLine:
    """A callback that keeps one line up to date on a terminal, and prints one now and then elsewhere.

    The line holds step, loss, PSNR, Gaussians, memory and the time that is left; loss and PSNR are
    running means, since each step sees other views.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None, so that output can be piped."""
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._shown_at = 0.0
        self._first: tuple[int, float] | None = None
        self._stage: Stage | None = None
        self._loss = self._psnr = 0.0

    def __call__(self, event: Event) -> None:
        """Show what ``event`` tells."""
        match event:
            case Stepped():
                self._step(event)
            case Started():
                self._start(event)
            case Evaluated():
                scores = event.scores
                self._say(
                    f"step {event.step}: {scores.subset} PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f} "
                    f"({len(scores.views)} views, {scores.split})"
                )
            case Warned():
                self._say(f"warning: {event.message}", style="yellow")
            case Ended():
                if self._live:
                    self._live.stop()
                    self._live = None

    def _start(self, event: Started) -> None:
        verb = "going on at step" if event.step else "training, step"
        self._say(
            f"{verb} {event.step} of {event.config.total_steps}: {event.gaussians:,} Gaussians, {event.views} views, "
            f"{_optimizers(event.config)}, {event.renderer} renderer -> {event.config.out}"
        )
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, auto_refresh=False)
            self._live.start()

    def _step(self, event: Stepped) -> None:
        fresh = self._first is None or event.stage != self._stage
        if fresh:
            # Later steps are timed from here: the first one warms up, and stages take as long as their optimizers.
            self._first, self._stage = (event.step, time.perf_counter()), event.stage
            self._loss, self._psnr = event.loss, event.psnr
        self._loss += (1 - _SMOOTHING) * (event.loss - self._loss)
        self._psnr += (1 - _SMOOTHING) * (event.psnr - self._psnr)
        now = time.perf_counter()
        pause = _REFRESH_SECONDS if self._live else _PLAIN_SECONDS
        if now - self._shown_at < pause and event.step < event.steps and not (fresh and event.step > 1):
            return
        self._shown_at = now
        line = Text(self._line(event, now), no_wrap=True, overflow="ellipsis")
        if self._live:
            self._live.update(line, refresh=True)
        else:
            self._say(line.plain)

    def _line(self, event: Stepped, now: float) -> str:
        first_step, began = self._first or (event.step, now)
        stage = event.stage
        several = stage is not None and stage.steps < event.steps
        part = f" ({stage.optimizer} {event.step - stage.begin}/{stage.steps})" if stage and several else ""
        line = (
            f"step {event.step}/{event.steps}{part}  loss {self._loss:.4f}  PSNR {self._psnr:.2f} dB  "
            f"{len(event.cloud):,} Gaussians  {resident_megabytes():.0f} MB"
        )
        if event.step == first_step:
            return line
        each = (now - began) / (event.step - first_step)
        end = stage.end if stage else event.steps
        goal = f" of {stage.optimizer}'s end" if stage and several else ""
        return f"{line}  {1000 * each:.1f} ms/step  ETA {_clock(each * (end - event.step))}{goal}"

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _optimizers(config: TrainConfig) -> str:
    """Say what optimizes: one optimizer, or stages."""
    return f"optimizer {config.optimizer}" if config.stages is None else f"stages {config.stages}"


def _clock(seconds: float) -> str:
    """Write a duration as minutes and seconds, or with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
