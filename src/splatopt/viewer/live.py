"""The live page of a run: a callback that never waits for a browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splatopt.core.checks import shown
from splatopt.core.frame import WORLD
from splatopt.core.stop_signals import stop_requests
from splatopt.data import Capture
from splatopt.raster.types import RenderOptions
from splatopt.runs.events import Ended, Warned
from splatopt.runs.folder import RunFolder
from splatopt.runs.records import read_edits, read_metrics
from splatopt.runs.trained_on import training_frame
from splatopt.train.config import TrainConfig
from splatopt.train.events import Edited, Evaluated, Event, Started, Stepped
from splatopt.train.machine import open_machine
from splatopt.train.setup import open_capture
from splatopt.viewer.gate import Door
from splatopt.viewer.history import History
from splatopt.viewer.orders import Order, Orders
from splatopt.viewer.pacing import TRAINING_SHARE, Pace
from splatopt.viewer.page import Page, Subject
from splatopt.viewer.rendering import Rendering
from splatopt.viewer.splats import Snapshot

IMAGE_SIDE = 480
"""Longer side of the views that are compared, at most; pixels."""

CACHE_MEBIBYTES = 64
_PAUSE_LOOK_SECONDS = 0.05


@dataclass
class _Standing:
    """What was heard of the run last."""

    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    psnr: float = 0.0
    gaussians: int = 0
    scores: str = ""
    warning: str = ""
    is_over: bool = False
    is_paused: bool = False


class LivePage:
    """Called with every event of a run; see :data:`splatopt.train.events.Callback`."""

    def __init__(self, door: Door, say: Callable[[str], None] = lambda _: None) -> None:
        """Begin to serve.

        Args:
            door: The port, and who is let in.
            say: Tells whoever sits at the terminal.
        """
        self.orders, self.history = Orders(), History()
        self._say = say
        self._pace = Pace(TRAINING_SHARE, time.process_time)
        self._standing = _Standing()
        self._config: TrainConfig | None = None
        self._rendering: Rendering | None = None
        self._told_problem, self._rendered_last = False, True
        subject = Subject(
            self._open_capture,
            self._describe,
            self.history,
            is_live=True,
            background=self._background,
            is_ready=lambda: self._config is not None,
        )
        self._page = Page(door, subject, self.orders, self._pace)

    @property
    def link(self) -> str:
        """What a person opens."""
        return self._page.link

    @property
    def is_watched(self) -> bool:
        """Whether somebody has the page open."""
        return self._page.is_watched

    def close(self) -> None:
        """Stop serving."""
        self._page.close()

    def __call__(self, event: Event) -> None:
        """Note an event, and after a step do what the page is due."""
        match event:
            case Stepped():
                self._step(event)
            case Started():
                self._start(event)
            case Edited():
                self.history.edited(event.added, event.removed)
            case Evaluated():
                scores = event.scores
                self.history.scored(event.step, scores.psnr)
                which = "held-out" if scores.subset == "test" else "training"
                self._standing.scores = f"{which} views: PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f}"
            case Warned():
                self._standing.warning = event.message
            case Ended():
                self._standing.is_over = True

    # ------------------------------------------------------------------ on the thread that trains

    def _start(self, event: Started) -> None:
        self._standing.step, self._standing.gaussians = event.step, event.gaussians
        scene = event.config.scene
        options = RenderOptions(scene.background or (0.0, 0.0, 0.0), scene.footprint, scene.sh_degree)
        self._rendering = Rendering(open_machine(event.config).renderer, options)
        if event.step:
            folder = RunFolder(event.config.folder)
            self.history.read(read_metrics(folder.metrics), read_edits(folder.density))
        self._config = event.config  # last: from here on the page's thread opens the capture

    def _step(self, event: Stepped) -> None:
        standing, gaussians = self._standing, len(event.cloud)
        standing.step, standing.steps, standing.seconds = event.step, event.steps, event.seconds
        standing.loss, standing.psnr, standing.gaussians = event.loss, event.psnr, gaussians
        self.history.add(event.step, event.loss, event.psnr, gaussians)
        if self.orders.paused or self.orders.stopped:
            self._hold(event)
        if self._page.is_watched and self._pace.is_free:
            self._serve(event)
        self._tell_problem("training goes on")

    def _tell_problem(self, outlook: str) -> None:
        """Say once why the page stands still, if it does, and what becomes of the run."""
        if self._page.problem and not self._told_problem:
            self._told_problem = True
            self._say(f"warning: {self._page.problem}; {outlook}")

    def _serve(self, event: Stepped) -> bool:
        """Do what the page is due; returns whether there was something. An error ends the page and not the run."""
        try:
            return self._give(event)
        except Exception as error:
            self._page.fail(error)
            return False

    def _give(self, event: Stepped) -> bool:
        """Render what was asked for, or copy the scene, by turns; returns whether there was something to do."""
        order, wants_scene = self.orders.next(), self._page.wants_scene(event.step)
        if order is None and not wants_scene:
            return False
        with self._pace.spending():  # by the clock of all threads: a renderer has several, and training stands still
            if order is not None and not (wants_scene and self._rendered_last):
                self._page.give_image(order, self._image(event, order), event.step)
                self._rendered_last = True
            else:
                self._page.give_scene(Snapshot.of(event.cloud), event.step)
                self._rendered_last = False
        return True

    def _image(self, event: Stepped, order: Order) -> np.ndarray:
        """Render an order as the next step would."""
        if self._config is None or self._rendering is None:
            raise ValueError("a step was told before the run's start")
        return self._rendering.image(event.cloud, order, self._config.scene.sh_degree_at(event.step))

    def _hold(self, event: Stepped) -> None:
        """Wait until the page, or a request to stop, ends the pause; raises KeyboardInterrupt for the latter."""
        requests: list[int] = []
        if not self.orders.stopped:
            self._say("paused from the page: resume there, or Ctrl-C to save and stop")
        self._pace.idle = self._standing.is_paused = True
        self.orders.look_again()
        with stop_requests(requests):
            while self.orders.paused and not self.orders.stopped and not requests:
                if not (self._page.is_watched and self._serve(event)):
                    self._tell_problem("the run stays paused: resume it on the page, or Ctrl-C to save and stop")
                    time.sleep(_PAUSE_LOOK_SECONDS)
        self._pace.idle = self._standing.is_paused = False
        if self.orders.stopped or requests:
            raise KeyboardInterrupt
        self._say("resumed from the page")

    # ------------------------------------------------------------------ on the page's thread

    def _open_capture(self) -> Capture | None:
        """Load the run's capture once more, small, in the frame of the run."""
        config = self._config
        if config is None:
            return None
        side = min(IMAGE_SIDE, config.data.max_side or IMAGE_SIDE)
        small = open_capture(config.changed(max_side=side, cache_mebibytes=CACHE_MEBIBYTES))
        return small.localised(training_frame(RunFolder(config.folder)) or WORLD)

    def _background(self) -> Sequence[float]:
        return (self._config and self._config.scene.background) or (0.0, 0.0, 0.0)

    def _describe(self) -> list[str]:
        standing, history = self._standing, self.history
        state = "ended" if standing.is_over else "**paused**" if standing.is_paused else "training"
        lines = [
            f"{state}, step {standing.step:,} of {standing.steps:,}, {standing.seconds:.0f} s",
            f"loss {standing.loss:.4f}, PSNR {standing.psnr:.2f} dB of the last step's views",
            f"{standing.gaussians:,} Gaussians, {history.added:,} added, {history.removed:,} removed",
        ]
        return [*lines, *(shown(one) for one in (standing.scores, standing.warning) if one)]
