"""The page of what is finished: a run, a scene, or a capture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splatopt.core.checks import short, shown
from splatopt.core.frame import USUAL_DISTANCE, Frame
from splatopt.core.stop_signals import stop_requests
from splatopt.data import CaptureOptions, load_capture
from splatopt.raster.render import make_renderer
from splatopt.raster.types import RenderOptions
from splatopt.runs.records import read_edits, read_metrics
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.run import Run
from splatopt.viewer.canvas import Canvas
from splatopt.viewer.gate import Door
from splatopt.viewer.history import History
from splatopt.viewer.live import CACHE_MEBIBYTES, IMAGE_SIDE
from splatopt.viewer.orders import Order, Orders
from splatopt.viewer.pacing import Pace
from splatopt.viewer.page import Page, Subject
from splatopt.viewer.rendering import Rendering
from splatopt.viewer.splats import Snapshot

_UP = (0.0, -1.0, 0.0)
"""What is up in a scene without cameras: against the y axis, as where most such scenes come from."""

_FOV = 0.9
"""Of the first look at a scene without cameras, radians."""

_SCENE_REACH = 2.0
"""Median distance of a scene's Gaussians from their middle where it has no cameras, local units."""

_FREE = 1.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Still:
    """What is shown.

    Attributes:
        subject: What the page is told of it.
        cloud: Its Gaussians; None where there are none.
    """

    subject: Subject
    cloud: GaussianCloud | None = None


def still_run(run: Run) -> Still:
    """Return what is shown of a run: its scene as it was trained, its capture, and curves."""
    history = History()
    history.read(read_metrics(run.folder.metrics), read_edits(run.folder.density))
    lines = [
        f"{short(run.folder.path)}: {run.steps:,} steps in {run.seconds:.0f} s",
        f"{len(run.trained):,} Gaussians, {history.added:,} added, {history.removed:,} removed",
    ]
    if history.scores:
        lines.append(f"held-out views: PSNR {history.scores[-1][1]:.2f} dB after {history.scores[-1][0]:,} steps")
    scene, side = run.config.scene, min(IMAGE_SIDE, run.config.data.max_side or IMAGE_SIDE)
    small = replace(run, config=run.config.changed(max_side=side, cache_mebibytes=CACHE_MEBIBYTES))
    degree = scene.sh_degree_at(max(0, run.steps - 1))
    background = scene.background or (0.0, 0.0, 0.0)
    rendering = Rendering(run.machine.renderer, RenderOptions(background, scene.footprint, degree))
    cloud = run.trained.to(run.machine.device)
    render = _renders(rendering, cloud)
    subject = Subject(
        small.open_capture,
        lambda: lines,
        history=history,
        start=_start,
        render=render,
        background=lambda: background,
    )
    return Still(subject, cloud)


def still_scene(cloud: GaussianCloud, name: str) -> Still:
    """Return what is shown of a scene file: its Gaussians alone, at a size that a browser's floats hold.

    Args:
        cloud: In any frame.
        name: What the page calls it.
    """
    middle = cloud.means.double().median(dim=0).values
    distance = float((cloud.means.double() - middle).norm(dim=1).median()) or 1.0
    x, y, z = middle.tolist()
    cloud = cloud.in_local(Frame((x, y, z), distance / _SCENE_REACH))
    lines = [f"{shown(name)}: {len(cloud):,} Gaussians, degree {cloud.sh_degree}"]
    render = _renders(Rendering(make_renderer(device="cpu"), RenderOptions()), cloud)
    return Still(Subject(lambda: None, lambda: lines, start=_start, render=render), cloud)


def still_capture(path: Path) -> Still:
    """Return what is shown of a capture: cameras, points and photographs.

    Raises:
        InputError: It cannot be used.
    """
    options = CaptureOptions(max_side=IMAGE_SIDE, skip_missing=True, cache_mebibytes=CACHE_MEBIBYTES)
    capture = load_capture(path, options).localised()
    points = 0 if capture.points is None else len(capture.points)
    lines = [
        f"{short(path)}: {len(capture.cameras):,} views, {len(capture.split.test):,} of them held out, "
        f"{points:,} points",
        *capture.warnings,
    ]
    return Still(Subject(lambda: capture, lambda: lines))


def show(still: Still, door: Door, say: Callable[[str], None]) -> None:
    """Serve a page until a request to stop.

    Args:
        still: What is shown.
        door: The port, and who is let in.
        say: Tells whoever sits at the terminal.
    """
    requests: list[int] = []
    page = Page(door, still.subject, Orders(), Pace(_FREE))
    try:
        if still.cloud is not None:
            page.give_scene(Snapshot.of(still.cloud), 0)
        told = False
        with stop_requests(requests, answer="closing the page"):
            while not requests:
                time.sleep(_LOOK_SECONDS)
                if page.problem and not told:
                    told = True
                    say(f"warning: {page.problem}")
    finally:
        page.close()


def _renders(rendering: Rendering, cloud: GaussianCloud) -> Callable[[Order], np.ndarray]:
    def render(order: Order) -> np.ndarray:
        return rendering.image(cloud, order)

    return render


def _start(canvas: Canvas) -> None:
    """Look at the middle from the front and a little above."""
    canvas.start_from(_UP, (0.0, -USUAL_DISTANCE / 4, -1.5 * USUAL_DISTANCE), (0.0, 0.0, 0.0), _FOV)
