"""What a person sees while a run goes on."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from splatopt.train.events import Ended, Evaluated, Event, Started, Stepped, Warned
from splatopt.train.memory import resident_megabytes

_REFRESH_SECONDS = 0.2
_PLAIN_SECONDS = 5.0
_SMOOTHING = 0.95


class LiveLine:
    """One line that is kept up to date on a terminal, and printed now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None, so that output can be piped."""
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._shown_at = 0.0
        self._first: tuple[int, float] | None = None

    def open(self) -> None:
        """Begin the line where there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, auto_refresh=False)
            self._live.start()

    def close(self) -> None:
        """Leave the line as it stands."""
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line that stays."""
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def update(self, text: str, step: int, steps: int) -> None:
        """Show ``text`` with pace and time left, unless something was shown a moment ago.

        Args:
            text: What there is to say of this step.
            step: Steps done.
            steps: Steps planned; the last is always shown.
        """
        now = time.perf_counter()
        if self._first is None:
            # Later steps are timed from here: the first one warms up.
            self._first = (step, now)
        pause = _REFRESH_SECONDS if self._live else _PLAIN_SECONDS
        if now - self._shown_at < pause and step < steps:
            return
        self._shown_at = now
        first_step, began = self._first
        if step > first_step:
            each = (now - began) / (step - first_step)
            text = f"{text}  {1000 * each:.1f} ms/step  ETA {_clock(each * (steps - step))}"
        if self._live:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.say(text)


class ProgressLine:
    """A callback that keeps one line up to date on a terminal, and prints one now and then elsewhere.

    The line holds step, loss, PSNR, Gaussians, memory and the time that is left; loss and PSNR are
    running means, since each step sees other views.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None, so that output can be piped."""
        self._line = LiveLine(console)
        self._loss = self._psnr = 0.0
        self._fresh = True

    def __call__(self, event: Event) -> None:
        """Show what ``event`` tells."""
        match event:
            case Stepped():
                self._step(event)
            case Started():
                self._start(event)
            case Evaluated():
                scores = event.scores
                self._line.say(
                    f"step {event.step}: {scores.subset} PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f} "
                    f"({len(scores.views)} views, {scores.split})"
                )
            case Warned():
                self._line.say(f"warning: {event.message}", style="yellow")
            case Ended():
                self._line.close()

    def _start(self, event: Started) -> None:
        verb = "going on at step" if event.step else "training, step"
        self._line.say(
            f"{verb} {event.step} of {event.config.steps}: {event.gaussians:,} Gaussians, {event.views} views, "
            f"optimizer {event.config.optimizer}, {event.renderer} renderer -> {event.config.out}"
        )
        self._line.open()

    def _step(self, event: Stepped) -> None:
        if self._fresh:
            self._fresh = False
            self._loss, self._psnr = event.loss, event.psnr
        self._loss += (1 - _SMOOTHING) * (event.loss - self._loss)
        self._psnr += (1 - _SMOOTHING) * (event.psnr - self._psnr)
        self._line.update(
            f"step {event.step}/{event.steps}  loss {self._loss:.4f}  PSNR {self._psnr:.2f} dB  "
            f"{len(event.cloud):,} Gaussians  {resident_megabytes():.0f} MB",
            event.step,
            event.steps,
        )


def _clock(seconds: float) -> str:
    """Write a duration as minutes and seconds, or with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
