"""A headless browser that does what a person does, and tells what the page asked the network for."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def opened_browser(folder: Path, *, webgl: bool = False) -> Iterator[Browser]:
    """A browser for a while; skips where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the search path")
    found = Browser(program, folder, webgl=webgl)
    try:
        yield found
    finally:
        found.close()


class Browser:
    """Chromium, spoken to through a pair of pipes in its DevTools protocol."""

    def __init__(self, program: str, folder: Path, *, webgl: bool = False) -> None:
        self._folder = folder
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # The protocol's pipes are the descriptors 3 and 4.
        switches = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        # Without a graphics card WebGL is computed.
        switches += (
            ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"] if webgl else ["--disable-gpu"]
        )
        switches += ["--disable-quic", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
        words = [program, *switches, "--remote-debugging-pipe", "about:blank"]
        script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, "browser", *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if time.monotonic() > deadline:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._message(deadline)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, self._session, **parameters)

    def visit(self, address: str, *, width: int = 1200, height: int = 900) -> None:
        """Open an address."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)

    def open(
        self,
        page: Path,
        *,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        on_paper: bool = False,
        scripted: bool = True,
    ) -> None:
        """Open a file, as it is printed if wanted, and wait until its script has run where it has one."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if on_paper else "screen", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        ready = f"location.href === {json.dumps(page.resolve().as_uri())} && document.readyState === 'complete'"
        self.wait(f"{ready} && document.documentElement.dataset.ready === 'yes'" if scripted else ready)

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never came true: {condition}")
            time.sleep(0.02)

    def _center(self, selector: str) -> tuple[float, float]:
        name = json.dumps(selector)
        self.evaluate(f"document.querySelector({name}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"document.querySelector({name}).getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def mouse(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        button = {"button": "left", "buttons": 1 if pressed else 0, "clickCount": 1} if pressed else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a person does."""
        x, y = self._center(selector)
        self.mouse("mouseMoved", x, y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened; pictures inside the page are none."""
        self.evaluate("1")
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent if not one["request"]["url"].startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors and breaches of the content policy that the page caused."""
        self.evaluate("1")
        entries = [e["params"]["entry"] for e in self.events if e.get("method") == "Log.entryAdded"]
        thrown = [str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        return [f"{entry['level']}: {entry['text']}" for entry in entries] + thrown

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def lightness(self, selector: str, what: str) -> float | None:
        """Mean of an element's color or backgroundColor, 0 to 255; None where that is see-through."""
        color = self.evaluate(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{what}")
        red, green, blue, *alpha = (float(part) for part in re.findall(r"[\d.]+", color))
        return None if alpha == [0.0] else (red + green + blue) / 3

    def printed(self, path: Path | None = None) -> int:
        """Print the page as its media says; returns how many sheets that takes."""
        pdf = base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])
        if path is not None:
            path.write_bytes(pdf)
        return len(re.findall(rb"/Type\s*/Page\b", pdf))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
