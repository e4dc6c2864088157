"""The panel beside the scene: what the run is doing, what is rendered, and what may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import viser
from viser import uplot

from splatopt.viewer.orders import Orders
from splatopt.viewer.splats import Thresholds

_SIZES = (-3.0, 3.0)
"""Powers of ten between which sizes can be cut; the last is all of them."""

_CURVES = {
    "loss": "loss",
    "psnr": "PSNR of the views trained on, dB",
    "held_out": "PSNR of held-out views, dB",
    "gaussians": "Gaussians",
}
_STROKES = {"loss": "#b5563c", "psnr": "#2a6f97", "held_out": "#e07b28", "gaussians": "#4a7c59"}
_PLOT_HEIGHT = 150
_QUALITY = 85
_EMPTY = np.full((9, 16, 3), 235, dtype=np.uint8)


@dataclass(frozen=True)
class Hooks:
    """What the panel's clicks lead to.

    Attributes:
        changed: Something was asked for.
        chosen: A view of the capture was chosen.
        go_to: A client is to look through the camera of a view.
        show_cameras: Cameras are to be shown, or hidden.
    """

    changed: Callable[[], None]
    chosen: Callable[[int], None]
    go_to: Callable[[viser.ClientHandle | None, int], None]
    show_cameras: Callable[[bool], None]


class Panel:
    """The panel of one server."""

    def __init__(self, server: viser.ViserServer, orders: Orders, hooks: Hooks) -> None:
        """Begin with nothing.

        Args:
            server: Where to.
            orders: Gets what is asked for.
            hooks: Told of it.
        """
        self._gui, self._orders, self._hooks = server.gui, orders, hooks
        self._said = ""
        self._views: dict[str, int] = {}
        self._plots: dict[str, viser.GuiUplotHandle] = {}

    def build(self, *, live: bool, gaussians: bool, curves: bool) -> None:
        """Build it.

        Args:
            live: Whether there is a training to be paused.
            gaussians: Whether there is a scene.
            curves: Whether there are curves.
        """
        self._status = self._gui.add_markdown("")
        if live:
            self._add_buttons()
        self._tabs = self._gui.add_tab_group()
        with self._tabs.add_tab("Scene"):
            if gaussians:
                self._add_scene()
            cameras = self._gui.add_checkbox("Cameras", initial_value=True, hint="Click one to look through it.")
            cameras.on_update(lambda _: self._hooks.show_cameras(cameras.value))
        if curves:
            self._curves_tab = self._tabs.add_tab("Curves")

    # ------------------------------------------------------------------ what it consists of

    def _add_buttons(self) -> None:
        gui, orders = self._gui, self._orders
        self._pause = gui.add_button("Pause", hint="Training waits after the step at hand; its clock stands still.")
        self._resume = gui.add_button("Resume", visible=False)
        self._stop = gui.add_button("Stop and save", hint="As Ctrl-C: a checkpoint is written, to go on with --resume.")

        def set_paused(paused: bool) -> None:
            orders.paused = paused
            self._pause.visible, self._resume.visible = not paused, paused
            self._hooks.changed()

        def stop() -> None:
            orders.stopped = True
            for button in (self._pause, self._resume, self._stop):
                button.disabled = True

        self._pause.on_click(lambda _: set_paused(True))
        self._resume.on_click(lambda _: set_paused(False))
        self._stop.on_click(lambda _: stop())

    def _add_scene(self) -> None:
        gui = self._gui
        self._render = gui.add_image(_EMPTY, label="Rendered by splatopt", jpeg_quality=_QUALITY, visible=False)
        self._render_note = gui.add_markdown("", visible=False)
        again = gui.add_button("Render again", hint="From the same place, with the Gaussians as they are now.")
        again.on_click(lambda _: self._look_again())
        opacity = gui.add_slider(
            "Opacity from", 0.0, 1.0, 0.01, 0.0, hint="Gaussians that are less opaque are left out in the browser."
        )
        size = gui.add_slider(
            "Size up to 10^",
            *_SIZES,
            0.1,
            _SIZES[1],
            marks=tuple((power, f"{power}") for power in range(round(_SIZES[0]), round(_SIZES[1]) + 1)),
            hint="Gaussians whose largest standard deviation is more than 10 to this power are left out in the browser;"
            " half of the cameras stand within 3.5 of their middle.",
        )

        def cut() -> None:
            max_size = float("inf") if size.value >= _SIZES[1] else 10.0**size.value
            self._orders.show(Thresholds(float(opacity.value), max_size))
            self._hooks.changed()

        opacity.on_update(lambda _: cut())
        size.on_update(lambda _: cut())
        self._shown = gui.add_markdown("")

    def _look_again(self) -> None:
        self._orders.look_again()
        self._hooks.changed()

    def add_views(self, names: Sequence[tuple[str, int]], title: str) -> None:
        """Add the tab of views that can be compared.

        Args:
            names: What each is called, with its number in the capture.
            title: Which they are.
        """
        self._views = {f"{place + 1}: {name}": view for place, (name, view) in enumerate(names)}
        gui, labels = self._gui, tuple(self._views)
        with self._tabs.add_tab("Views"):
            choice = gui.add_dropdown(title, labels, initial_value=labels[0])
            steps = gui.add_button_group("Click through", ("previous", "next"))
            go = gui.add_button("Look through its camera")
            self._compared = {
                name: gui.add_image(_EMPTY, label=name, jpeg_quality=_QUALITY, visible=False)
                for name in ("photograph", "render", "difference")
            }
            self._view_note = gui.add_markdown("Choose a view, or click through them.")

        def move() -> None:
            place = labels.index(choice.value) + (1 if steps.value == "next" else -1)
            setattr(choice, "value", labels[place % len(labels)])  # noqa: B010 - read-only in viser's types alone

        choice.on_update(lambda _: self._hooks.chosen(self._views[choice.value]))
        steps.on_click(lambda _: move())
        go.on_click(lambda event: self._hooks.go_to(event.client, self._views[choice.value]))

    # ------------------------------------------------------------------ what it shows

    def tell(self, lines: Sequence[str]) -> None:
        """Show what the run is doing."""
        text = "  \n".join(lines)
        if text != self._said:
            self._said = self._status.content = text

    def show_render(self, image: np.ndarray, note: str) -> None:
        """Show what the renderer sees through the viewed camera."""
        self._render.image, self._render_note.content = image, note
        self._render.visible = self._render_note.visible = True

    def show_count(self, shown: int, every: int) -> None:
        """Say how many Gaussians the browser draws."""
        self._shown.content = f"{shown:,} of {every:,} Gaussians shown"

    def show_view(self, images: Mapping[str, np.ndarray], note: str) -> None:
        """Show a view of the capture: photograph, render and difference, or some of them."""
        for name, handle in self._compared.items():
            if name in images:
                handle.image = images[name]
            handle.visible = name in images
        self._view_note.content = note

    def draw(self, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Draw the curves that have at least two points."""
        for name, (steps, values) in curves.items():
            if len(steps) < 2:
                continue
            if name in self._plots:
                self._plots[name].data = (steps, values)
                continue
            label = name.replace("_", " ")
            series = (uplot.Series(label="step"), uplot.Series(label=label, stroke=_STROKES[name], width=2))
            with self._curves_tab:
                self._plots[name] = self._gui.add_uplot(
                    (steps, values),
                    series,
                    title=_CURVES[name],
                    scales={"x": {"time": False}},
                    legend={"show": False},
                    height=_PLOT_HEIGHT,
                    order=list(_CURVES).index(name),
                )
