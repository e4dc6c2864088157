"""The page in a browser, beside a run that it pauses."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="the page needs viser")

from bench.browser import Browser, opened_browser
from train.toys import make_toy_capture

WIDTH, HEIGHT, PANEL = 640, 480, 340


@pytest.fixture
def run(tmp_path: Path):
    """A run with its page; gives its output file and the page's link."""
    capture, log = make_toy_capture(tmp_path / "capture", width=48, height=36, points=200), tmp_path / "log"
    words = ["train", str(capture), "--steps", "1000000", "--out", str(tmp_path / "run"), "--threads", "1"]
    with log.open("w") as file:
        command = [sys.executable, "-m", "splatopt", *words, "--view", "--view-port", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        assert wait_for(log, "step 1/", 120), log.read_text()
        yield process, log, re.search(r"http://\S+", log.read_text())[0]
    finally:
        process.kill()
        process.wait()


def wait_for(log: Path, text: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def seen(browser: Browser, path: Path) -> np.ndarray:
    """The scene without the panel."""
    image = Image.open(io.BytesIO(browser.screenshot(path, whole=False).read_bytes())).convert("RGB")
    return np.asarray(image).astype(int)[:, 300 : WIDTH + 300 - PANEL]


def press(browser: Browser, label: str) -> None:
    browser.evaluate(f"[...document.querySelectorAll('button')].find(b => b.innerText === {label!r}).click()")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_picture_follows_the_camera_and_the_run_its_buttons(run, tmp_path: Path):
    process, log, link = run
    with opened_browser(tmp_path, webgl=True) as browser:
        browser.visit(link, width=WIDTH + 300, height=HEIGHT)
        browser.wait("document.body?.innerText.includes('Gaussians shown')", 120)
        browser.wait("document.querySelectorAll('img').length > 0", 120)
        press(browser, "Pause")
        assert wait_for(log, "paused from the page", 60)
        browser.wait("document.body?.innerText.includes('paused')", 60)
        time.sleep(3)
        before = seen(browser, tmp_path / "before.png")
        assert before.std() > 5, "something is drawn"
        resting = np.abs(seen(browser, tmp_path / "resting.png") - before).mean()
        browser.mouse("mouseMoved", 400, 300)
        browser.call(
            "Input.dispatchMouseEvent", type="mousePressed", x=400, y=300, button="left", buttons=1, clickCount=1
        )
        for x in range(400, 500, 10):
            browser.mouse("mouseMoved", x, 330, pressed=True)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", x=500, y=330, button="left", clickCount=1)
        time.sleep(5)
        moved = np.abs(seen(browser, tmp_path / "after.png") - before).mean()
        assert moved > 1
        assert moved > 5 * resting
        foreign = [one for one in browser.requests() if not one.startswith((link, f"blob:{link}", "data:"))]
        assert foreign == [], "nothing is asked of anybody else"
        press(browser, "Resume")
        assert wait_for(log, "resumed from the page", 60)
        press(browser, "Stop and save")
        assert process.wait(60) == 130
        assert "is kept; go on with" in log.read_text()
