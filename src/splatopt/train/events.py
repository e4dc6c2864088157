"""What a run tells those who listen: one dataclass per kind of event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splatopt.runs.events import Ended, RunStarted, RunStepped, Saved, Warned
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores
from splatopt.train.stages import Stage


@dataclass(frozen=True)
class Started(RunStarted):
    """A run begins, or goes on.

    Attributes:
        gaussians: Number of Gaussians.
        views: Number of training views.
        renderer: Name of what renders.
        device: Where it computes.
        world_size: How many processes share the views.
        points_file: Name of the file beside the poses whose points the scene began from; empty where it has none.
        found: What else lies in the capture and is used, one sentence each.
    """

    config: TrainConfig
    gaussians: int
    views: int
    renderer: str
    device: str = "cpu"
    world_size: int = 1
    points_file: str = ""
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stepped(RunStepped):
    """One step was taken.

    Attributes:
        psnr: PSNR of the step's training views, dB.
        cloud: The live cloud, in the training frame; whoever keeps it clones it.
        stage: The stage that took the step, which in a run without --stages is the whole run; None where it is
            not told.
        seconds_left: Until the run is done, scoring and files included; None before enough steps were taken to tell.
    """

    psnr: float
    cloud: GaussianCloud
    stage: Stage | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Scoring:
    """The held-out views are being scored.

    Attributes:
        done: Views that are scored already.
    """

    done: int


@dataclass(frozen=True)
class Evaluated:
    """The held-out views were scored.

    Attributes:
        step: Steps done.
        seconds: Seconds of training so far, without evaluation.
        scores: Of the held-out views.
        cloud: The live cloud, in the training frame; whoever keeps it clones it.
    """

    step: int
    seconds: float
    scores: Scores
    cloud: GaussianCloud


@dataclass(frozen=True)
class Edited:
    """The Gaussians were edited: by a density strategy after a step, or since some of them broke down in it.

    Attributes:
        step: Steps done, that one included.
        added: How many there are that are further copies of one.
        removed: How many have no copy.
        gaussians: How many there are now.
    """

    step: int
    added: int
    removed: int
    gaussians: int


Event = Started | Stepped | Edited | Scoring | Evaluated | Saved | Warned | Ended
Callback = Callable[[Event], None]
"""Called with every event, in order, between steps. Raising KeyboardInterrupt stops the run as Ctrl-C does."""
