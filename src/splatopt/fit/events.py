"""What a fit tells those who listen, and the line that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console

from splatopt.fit.config import FitConfig
from splatopt.runs.events import Ended, RunStarted, RunStepped, Saved, Warned
from splatopt.runs.live_line import LiveLine
from splatopt.runs.memory import resident_megabytes

_SMOOTHING = 0.95
_UNITS = {"psnr": "dB"}


@dataclass(frozen=True)
class FitStarted(RunStarted):
    """A fit begins, or goes on.

    Attributes:
        steps: Steps planned.
        size: Pixels, points or rays.
        parameters: Numbers that are trained.
    """

    config: FitConfig
    steps: int
    size: int
    parameters: int


@dataclass(frozen=True)
class FitStepped(RunStepped):
    """One step was taken.

    Attributes:
        metrics: What the task says beside the loss, such as ``psnr`` of the batch.
    """

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FitScored:
    """The field was scored after ``step`` steps."""

    step: int
    scores: Mapping[str, float]


FitEvent = FitStarted | FitStepped | FitScored | Saved | Warned | Ended
FitCallback = Callable[[FitEvent], None]
"""Called with every event, in order, between steps. Raising KeyboardInterrupt stops the run as Ctrl-C does."""


class FitProgress:
    """A callback that keeps one line up to date on a terminal, and prints one now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None."""
        self._line = LiveLine(console)
        self._means: dict[str, float] = {}

    def __call__(self, event: FitEvent) -> None:
        """Show what ``event`` tells."""
        match event:
            case FitStepped():
                self._step(event)
            case FitStarted():
                config = event.config
                verb = "going on at step" if event.step or config.saving.resume else "fitting, step"
                self._line.say(
                    f"{verb} {event.step} of {event.steps}: {config.data.task.value} of {event.size:,} examples, field "
                    f"{config.network.field} with {event.parameters:,} parameters, optimizer "
                    f"{config.schedule.optimizer} -> {config.saving.out}"
                )
                self._line.open()
            case FitScored():
                self._line.say(f"step {event.step}: {written_scores(event.scores)}")
            case Warned():
                self._line.say(f"warning: {event.message}", style="yellow")
            case Ended():
                self._line.close()

    def _step(self, event: FitStepped) -> None:
        for name, value in {"loss": event.loss, **event.metrics}.items():
            before = self._means.setdefault(name, value)
            self._means[name] = before + (1 - _SMOOTHING) * (value - before)
        shown = "  ".join(_written(name, value) for name, value in self._means.items())
        text = f"step {event.step}/{event.steps}  {shown}  {resident_megabytes():.0f} MB"
        self._line.update(text, event.step, event.steps)


def written_scores(scores: Mapping[str, float]) -> str:
    """Write scores with their units, such as ``PSNR 31.20 dB, SSIM 0.9310``."""
    return ", ".join(_written(name, value) for name, value in scores.items())


def _written(name: str, value: float) -> str:
    label = name if name == "loss" else {"iou": "IoU"}.get(name, name.upper())
    return f"{label} {value:.2f} dB" if name in _UNITS else f"{label} {value:.4g}"
