"""A page: one server, and a thread of its own that keeps it up to date.

Who trains, or renders, hands over copies and images and never waits. The thread turns them into what a browser takes,
one thing at a time, each when the page's pace allows. Nothing at all is done while nobody has the page open.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import viser

from splatopt.core.checks import InputError, shown
from splatopt.data import Capture
from splatopt.report.pictures import greyed
from splatopt.report.scene_page import DIFFERENCE_GAIN
from splatopt.viewer.canvas import Canvas
from splatopt.viewer.eyes import Eye
from splatopt.viewer.gate import Door
from splatopt.viewer.history import History
from splatopt.viewer.orders import Order, Orders
from splatopt.viewer.pacing import Pace
from splatopt.viewer.panel import Hooks, Panel
from splatopt.viewer.server import start_server
from splatopt.viewer.splats import Snapshot, browser_splats, chosen_rows

SPLAT_SECONDS = 2.0
"""Between two copies of the scene at least."""

_TELL_SECONDS = 1.0
_CURVE_SECONDS = 5.0
_RENDER_SECONDS = 10.0
"""Between two images of a run for a camera that rests, at least."""

_LOOK_SECONDS = 0.25
_MAX_DECIBELS = 100.0
_MAX_NAMES = 500


@dataclass(frozen=True)
class Subject:
    """What a page shows.

    Attributes:
        open_capture: Loads the capture in the frame of the splats, small; called once, when somebody has the page
            open and the subject is ready. Returns None where there is none.
        describe: Says what is shown, a line each.
        history: Curves; None where there are none.
        is_live: Whether there is a run that can be paused and stopped, whose thread renders.
        start: Says what is up, and where the page begins, where there is no capture.
        render: Renders an order on the page's thread; None where a run does, or where there are no Gaussians.
        background: What Gaussians are drawn over, red, green, blue in [0, 1].
        is_ready: Says whether the capture can be opened and the background is known; asked again until it can.
    """

    open_capture: Callable[[], Capture | None]
    describe: Callable[[], list[str]]
    history: History | None = None
    is_live: bool = False
    start: Callable[[Canvas], None] | None = None
    render: Callable[[Order], np.ndarray] | None = None
    background: Callable[[], Sequence[float]] = lambda: (0.0, 0.0, 0.0)
    is_ready: Callable[[], bool] = lambda: True

    @property
    def has_gaussians(self) -> bool:
        """Whether there is a scene, and not a capture alone."""
        return self.is_live or self.render is not None


@dataclass
class _Due:
    """When something was done last, and again."""

    every: float
    last: float = field(default=float("-inf"))

    def is_due(self, now: float) -> bool:
        return now - self.last >= self.every


class Page:
    """A scene in the browsers of those who have it open."""

    def __init__(self, door: Door, subject: Subject, orders: Orders, pace: Pace) -> None:
        """Begin to serve.

        Args:
            door: The port, and who is let in.
            subject: What is shown.
            orders: Gets what is asked for.
            pace: Of what is done.
        """
        self.orders, self.pace, self.link = orders, pace, door.link
        self.problem: str | None = None
        self._subject = subject
        self._watching: set[int] = set()
        self._snapshot: Snapshot | None = None
        self._given_step = self._rendered_step = -1
        self._drawn: Snapshot | None = None
        self._images: deque[tuple[Order, np.ndarray, int]] = deque()
        self._given, self._told, self._curved = _Due(SPLAT_SECONDS), _Due(_TELL_SECONDS), _Due(_CURVE_SECONDS)
        self._rendered = _Due(_RENDER_SECONDS)
        self._waiting: list[int] = []
        self._chosen: int | None = None
        self._notes: list[str] = []
        self._capture: Capture | None = None
        self._is_open = self._closing = False
        self._wake = threading.Event()
        self._server = start_server(door)
        self._canvas = Canvas(self._server)
        hooks = Hooks(self._wake.set, self._choose, self._go_to, self._canvas.show_cameras)
        self._panel = Panel(self._server, orders, hooks)
        self._panel.build(live=subject.is_live, gaussians=subject.has_gaussians, curves=subject.history is not None)
        self._server.on_client_connect(self._connected)
        self._server.on_client_disconnect(self._disconnected)
        self._thread = threading.Thread(target=self._work, daemon=True, name="live page")
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=5)
        self._server.stop()

    # ------------------------------------------------------------------ for whoever trains

    @property
    def is_watched(self) -> bool:
        """Whether somebody has the page open."""
        return bool(self._watching) and self.problem is None

    def wants_scene(self, step: int) -> bool:
        """Whether the scene after ``step`` steps is to be copied.

        It is while somebody looks, where the last copy was taken, is of another step and some seconds old.
        """
        is_new = self.is_watched and self._snapshot is None and step != self._given_step
        return is_new and self._given.is_due(time.perf_counter())

    def give_scene(self, snapshot: Snapshot, step: int) -> None:
        """Hand over a copy of the scene after ``step`` steps."""
        self._given.last, self._given_step = time.perf_counter(), step
        self._snapshot = snapshot
        self._wake.set()

    def give_image(self, order: Order, pixels: np.ndarray, step: int) -> None:
        """Hand over the image of an order, (h, w, 3) uint8, rendered after ``step`` steps."""
        self.orders.done(order)
        if order.view is None:
            self._rendered.last, self._rendered_step = time.perf_counter(), step
        self._images.append((order, pixels, step))
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Do nothing for the page from now on, because of an error; its buttons still work."""
        self.problem = f"the page stands still: {type(error).__name__}: {shown(error)}"

    # ------------------------------------------------------------------ who is there

    async def _connected(self, client: viser.ClientHandle) -> None:
        self._watching.add(client.client_id)
        client.camera.on_update(self._moved)
        await self._moved(client.camera)
        self._wake.set()

    async def _disconnected(self, client: viser.ClientHandle) -> None:
        self._watching.discard(client.client_id)

    async def _moved(self, camera: viser.CameraHandle) -> None:
        w, x, y, z = camera.wxyz.tolist()
        a, b, c = camera.position.tolist()
        self.orders.look(Eye((w, x, y, z), (a, b, c), float(camera.fov), float(camera.aspect)))
        if self._subject.render is not None:
            self._wake.set()

    def _choose(self, view: int) -> None:
        if self._capture is not None and self._subject.has_gaussians:
            self.orders.compare(view, self._capture.cameras[view])
        self._chosen = view
        self._wake.set()

    def _go_to(self, client: viser.ClientHandle | None, view: int) -> None:
        if client is not None and self._capture is not None:
            self._canvas.look_through(client, view, self._capture.cameras[view])

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            try:
                while self.is_watched and not self._closing and (self._open() or self._do_next()):
                    pass
            except Exception as error:
                self.fail(error)

    def _open(self) -> bool:
        """Load and draw what stays, once the subject is ready; returns whether that was done now."""
        subject = self._subject
        if self._is_open or not subject.is_ready():
            return False
        self._is_open = True
        if subject.has_gaussians:
            self._canvas.draw_background(subject.background())
        try:
            self._capture = capture = subject.open_capture()
        except InputError as error:
            self._notes.append(shown(error))
            capture = None
        if capture is None:
            if subject.start is not None:
                subject.start(self._canvas)
            return True
        self._canvas.start_from_capture(capture)
        self._canvas.draw_cameras(capture, lambda view, client: self._go_to(client, view))
        self._waiting = self._canvas.views
        if not subject.has_gaussians and capture.points is not None:
            self._canvas.draw_points(capture.points)
        views, title = capture.split.test or capture.split.train, "Held out" if capture.split.test else "Trained on"
        if not subject.has_gaussians:
            views, title = tuple(range(len(capture.cameras))), "View"
        self._panel.add_views([(capture.cameras[view].name, view) for view in views[:_MAX_NAMES]], title)
        return True

    def _do_next(self) -> bool:
        """Do the most urgent thing, if there is one and the pace allows; returns whether something was done."""
        if not self.pace.is_free:
            return False
        with self.pace.spending(time.thread_time):
            shown_now = self._show_image() or self._draw_scene() or self._tell()
            return shown_now or self._render() or self._draw_images()

    def _show_image(self) -> bool:
        if self._chosen is not None and not self._subject.has_gaussians:
            self._show_alone(self._chosen)
            self._chosen = None
            return True
        if not self._images:
            return False
        order, pixels, step = self._images.popleft()
        if order.view is None:
            self._panel.show_render(pixels, f"{pixels.shape[1]}x{pixels.shape[0]} pixels{_after(step)}")
        else:
            self._compare(order.view, pixels, step)
        return True

    def _show_alone(self, view: int) -> None:
        """Show a view of a capture that has no scene."""
        if self._capture is None:
            return
        name = shown(self._capture.cameras[view].name)
        try:
            target = greyed(self._capture.images[view], self._capture.images.seen(view))
        except InputError as error:
            self._panel.show_view({}, shown(error))
        else:
            self._panel.show_view({"photograph": target.numpy()}, name)

    def _compare(self, view: int, pixels: np.ndarray, step: int) -> None:
        """Show a view's render beside its image, and how they differ."""
        if self._capture is None:
            return
        images, name = self._capture.images, shown(self._capture.cameras[view].name)
        try:
            target, seen = images[view], images.seen(view)
        except InputError as error:
            self._panel.show_view({"render": pixels}, shown(error))
            return
        apart = pixels.astype(np.int16) - target.numpy().astype(np.int16)
        counted = apart if seen is None else apart[seen.numpy()]
        squared = float(np.square(counted.astype(np.float64)).mean()) if counted.size else 0.0
        psnr = min(_MAX_DECIBELS, 10 * np.log10(255**2 / squared)) if squared else _MAX_DECIBELS
        shown_apart = np.minimum(np.abs(apart) * DIFFERENCE_GAIN, 255).astype(np.uint8)
        note = f"{name}: PSNR {psnr:.2f} dB at {pixels.shape[1]}x{pixels.shape[0]} pixels{_after(step)}. "
        note += f"The difference is {DIFFERENCE_GAIN} times as bright as it is."
        beside = greyed(target, seen).numpy()
        self._panel.show_view({"photograph": beside, "render": pixels, "difference": shown_apart}, note)

    def _draw_scene(self) -> bool:
        taken, self._snapshot = self._snapshot, None
        if taken is not None:
            self._drawn = taken
        if self._drawn is None or not (self.orders.take_new_thresholds() or taken is not None):
            return False
        rows = chosen_rows(self._drawn, self.orders.thresholds)
        self._canvas.draw_splats(browser_splats(self._drawn, rows))
        self._panel.show_count(len(rows), len(self._drawn))
        return True

    def _draw_images(self) -> bool:
        if not self._waiting or self._capture is None:
            return False
        self._canvas.draw_next_image(self._capture, self._waiting)
        return True

    def _tell(self) -> bool:
        now, history = time.perf_counter(), self._subject.history
        if history is not None and self._curved.is_due(now):
            self._curved.last = now
            self._panel.draw(history.curves)
            return True
        if not self._told.is_due(now):
            return False
        self._told.last = now
        if self._subject.is_live and self._given_step > self._rendered_step and self._rendered.is_due(now):
            self.orders.look_again()
        self._panel.tell([*self._subject.describe(), *self._notes])
        return True

    def _render(self) -> bool:
        """Render the next order here, where nobody else does."""
        if self._subject.render is None or (order := self.orders.next()) is None:
            return False
        self.give_image(order, self._subject.render(order), 0)
        return True


def _after(step: int) -> str:
    return f" after {step:,} steps" if step else ""
