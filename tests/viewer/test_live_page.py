"""A run with its page: it neither waits for it nor changes by it; pauses and stops come from there."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("viser", reason="the page needs viser")

from splatopt.cli import main
from splatopt.runs.resumable import InterruptedRunError
from splatopt.train.config import TrainConfig
from splatopt.train.events import Stepped
from splatopt.train.loop import train
from splatopt.train.machine import open_machine
from splatopt.viewer.eyes import Eye, eye_of
from splatopt.viewer.gate import open_door
from splatopt.viewer.live import LivePage
from splatopt.viewer.orders import HEIGHTS, Orders
from splatopt.viewer.pacing import TRAINING_SHARE, Pace
from train.toys import load_toy_capture, make_toy_capture

EYE = Eye((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -3.0), 0.9, 1.5)


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy", width=48, height=36, points=50)


@pytest.fixture
def live():
    page = LivePage(open_door("localhost", 0))
    yield page
    page.close()


def config(capture: Path, out: Path, steps: int = 30) -> TrainConfig:
    return TrainConfig.of(str(capture), steps=steps, out=out, threads=1)


def test_without_a_client_nothing_is_copied_and_no_number_changes(capture, tmp_path, live, monkeypatch):
    monkeypatch.setattr("splatopt.viewer.live.Snapshot", None)  # a copy would fail
    with_page = train(config(capture, tmp_path / "a"), [live])
    without = train(config(capture, tmp_path / "b"))
    assert (with_page.cloud.means == without.cloud.means).all()
    assert live.history.curves["loss"][0][-1] == 30


def test_a_watched_run_has_its_scene_taken_and_images_rendered_and_no_number_changes(capture, tmp_path, live):
    live.orders.look(EYE)
    live._page._watching.add(0)  # as a client that has connected
    result = train(config(capture, tmp_path / "a"), [live])
    assert (result.cloud.means == train(config(capture, tmp_path / "b")).cloud.means).all()
    assert live._page._given_step > 0


def test_a_view_is_compared_with_its_image_and_curves_are_drawn(capture, tmp_path, live):
    train(config(capture, tmp_path / "run"), [live])
    page = live._page
    assert page._open()
    view = page._capture.split.test[0]
    page._choose(view)
    assert live.orders.next().view == view
    page._compare(view, page._capture.images[view].numpy(), 30)
    assert "PSNR 100.00 dB at 48x36 pixels after 30 steps" in page._panel._view_note.content
    page._panel.draw(live.history.curves)
    assert {"loss", "psnr", "gaussians"} <= set(page._panel._plots)
    assert page.problem is None


def test_a_page_that_is_opened_before_the_run_begins_gets_its_capture_and_background(
    capture, tmp_path, live, monkeypatch
):
    page, drawn = live._page, []
    monkeypatch.setattr(page._canvas, "draw_background", drawn.append)
    assert not page._open(), "nothing is known yet"
    assert drawn == []
    train(config(capture, tmp_path / "run").changed(background=(0.2, 0.4, 0.6)), [live])
    assert page._open()
    assert drawn == [(0.2, 0.4, 0.6)]
    assert page._capture.split.test[0] in page._canvas.views
    assert not page._open(), "once is enough"


def test_the_capture_is_not_opened_while_the_run_is_still_being_set_up(capture, tmp_path, live, monkeypatch):
    opened = []

    def watch(config):
        opened.append(live._page._open())
        return open_machine(config)

    monkeypatch.setattr("splatopt.viewer.live.open_machine", watch)
    train(config(capture, tmp_path / "run", steps=1), [live])
    assert opened == [False]


def test_a_pause_holds_the_run_until_it_is_resumed_and_counts_no_seconds(capture, tmp_path, live):
    told = []
    live._say = told.append
    seen = []

    def watch(event) -> None:
        if isinstance(event, Stepped):
            seen.append(event.step)
            if event.step == 5:
                live.orders.paused = True
                threading.Timer(1.0, lambda: setattr(live.orders, "paused", False)).start()

    began = time.perf_counter()
    result = train(config(capture, tmp_path / "run"), [watch, live])
    passed = time.perf_counter() - began
    assert seen[-1] == 30
    assert passed - result.seconds > 0.9
    assert told == ["paused from the page: resume there, or Ctrl-C to save and stop", "resumed from the page"]


@dataclass
class Processors:
    """Seconds that all threads of a process have taken."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_image_that_several_threads_render_is_charged_with_what_all_of_them_take(
    capture, tmp_path, live, monkeypatch
):
    clock, steps = Processors(), []

    def render(*_: object) -> np.ndarray:
        clock.now += 4 * 0.25  # a quarter of a second on four threads, of which the calling one waits
        return np.zeros((2, 3, 3), dtype=np.uint8)

    train(config(capture, tmp_path / "run", steps=1), [steps.append])
    step = next(one for one in steps if isinstance(one, Stepped))
    live._pace = Pace(TRAINING_SHARE, clock)
    live.orders.look(EYE)
    monkeypatch.setattr(live, "_image", render)
    assert live._serve(step)
    clock.now += 1.0 / TRAINING_SHARE - 0.1
    assert not live._pace.is_free
    clock.now += 0.2
    assert live._pace.is_free


def out_of_memory(*_: object) -> None:
    raise MemoryError("no room for the page's image")


def test_an_error_while_the_page_is_served_ends_the_page_and_not_the_run(capture, tmp_path, live, monkeypatch):
    told = []
    live._say = told.append
    live._pace.idle = True  # so that an image is due after every step
    live.orders.look(EYE)
    live._page._watching.add(0)
    monkeypatch.setattr(live, "_image", out_of_memory)
    result = train(config(capture, tmp_path / "a"), [live])
    assert (result.cloud.means == train(config(capture, tmp_path / "b")).cloud.means).all()
    assert told == [
        "warning: the page stands still: MemoryError: no room for the page's image; training goes on",
    ]
    assert not live.is_watched


def test_an_error_in_a_pause_leaves_the_run_paused_until_it_is_resumed(capture, tmp_path, live, monkeypatch):
    told = []

    def say(line: str) -> None:
        told.append(line)
        if line.startswith("warning"):
            live.orders.paused = False  # as the button does

    live._say = say
    live.orders.look(EYE)
    live.orders.paused = True
    live._page._watching.add(0)
    monkeypatch.setattr(live, "_image", out_of_memory)
    assert train(config(capture, tmp_path / "run"), [live]).steps == 30
    assert told == [
        "paused from the page: resume there, or Ctrl-C to save and stop",
        "warning: the page stands still: MemoryError: no room for the page's image; "
        "the run stays paused: resume it on the page, or Ctrl-C to save and stop",
        "resumed from the page",
    ]


def test_stop_from_the_page_saves_as_ctrl_c_does(capture, tmp_path, live):
    def watch(event) -> None:
        if isinstance(event, Stepped) and event.step == 7:
            live.orders.paused = live.orders.stopped = True

    with pytest.raises(InterruptedRunError, match="stopped at step 7 of 30, step-000007 is kept"):
        train(config(capture, tmp_path / "run"), [watch, live])
    assert (tmp_path / "run" / "checkpoints" / "step-000007").is_dir()


def test_the_viewed_camera_is_rendered_small_first_and_larger_when_it_rests():
    orders = Orders()
    assert orders.next() is None
    orders.look(EYE)
    first = orders.next()
    assert (first.camera.height, first.camera.width) == (HEIGHTS[0], round(HEIGHTS[0] * 1.5))
    orders.done(first)
    second = orders.next()
    assert second.camera.height == HEIGHTS[1]
    orders.look(Eye(EYE.wxyz, (0.0, 0.0, -2.0), EYE.fov, EYE.aspect))
    orders.done(second)
    assert orders.next().camera.height == HEIGHTS[0], "it moved meanwhile"


def test_a_view_that_was_clicked_goes_first(capture):
    orders, camera = Orders(), load_toy_capture(capture.parent / "other").cameras[2]
    orders.look(EYE)
    orders.compare(2, camera)
    order = orders.next()
    assert (order.view, order.camera) == (2, camera)
    orders.done(order)
    assert orders.next().view is None


@pytest.mark.parametrize(
    "eye",
    [
        Eye((0.0,) * 4, (0.0,) * 3, 1, 1),
        Eye((1e-200, 0.0, 0.0, 0.0), (0.0,) * 3, 1, 1),
        Eye((1e200, 0.0, 0.0, 0.0), (0.0,) * 3, 1, 1),
        Eye(EYE.wxyz, (float("nan"), 0, 0), 1, 1),
        Eye(EYE.wxyz, (0, -1.1e30, 0), 1, 1),
        Eye(EYE.wxyz, (0, 0, 0), 0, 1),
        Eye(EYE.wxyz, (0, 0, 0), 1, -1),
    ],
)
def test_what_is_no_camera_is_not_looked_through(eye):
    orders = Orders()
    orders.look(eye)
    assert orders.next() is None


def test_an_eye_is_the_camera_that_it_came_from(capture):
    camera = load_toy_capture(capture.parent / "again").cameras[3]
    again = eye_of(camera).camera(camera.height)
    assert (again.width, again.height) == (camera.width, camera.height)
    assert again.fy == pytest.approx(camera.fy)
    assert (again.world_to_camera - camera.world_to_camera).abs().max() < 1e-9


def test_without_viser_it_is_one_sentence(capture, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("splatopt.viewer.serving.is_installed", lambda name: False)
    assert main(["train", str(capture), "--out", str(tmp_path / "run"), "--view"]) == 2
    assert "pip install 'splatopt[viewer]'" in capsys.readouterr().err
    assert main(["view", str(capture)]) == 2
    assert not (tmp_path / "run").exists()
