"""What the live page costs a run: `python -m benchmarks.live_page CAPTURE`.

The same steps are trained without a page, with one that nobody has open, and with one that a headless browser has
open, each in a process of its own. Of its processor time the benchmark counts apart what the training thread spends
in the page's callback, and what all other threads take: shares of what training takes itself, so that what else the
machine does hardly matters. Of the second half of the steps, when the page is drawn, and of all of them, in which the
capture is read once more. What the browser takes is said beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

MODES = ("without a page", "page, nobody there", "page, one browser")
WATCHED = MODES.index("page, one browser")
_WAIT_SECONDS = 60
_WINDOW = "800,600"


@dataclass(frozen=True)
class Taken:
    """Processor seconds.

    Attributes:
        training: Of the training thread, without the page's callback.
        callback: Of the training thread in the page's callback.
        others: Of all other threads.
    """

    training: float
    callback: float
    others: float

    def since(self, before: Taken) -> Taken:
        """Return what was taken after ``before``."""
        return Taken(self.training - before.training, self.callback - before.callback, self.others - before.others)

    @property
    def cells(self) -> str:
        """As cells of a table: seconds, and shares of them in percent."""
        callback, others = (100 * one / self.training for one in (self.callback, self.others))
        return f"{self.training:.1f} | {callback:.2f} | {others:.2f} | {callback + others:.2f}"


def train_once(capture: str, steps: int, mode: int, out: Path) -> None:
    """Train in this process; prints the page's link before, and then what was taken."""
    from splatopt.train.config import TrainConfig
    from splatopt.train.events import Ended, Event, Started, Stepped
    from splatopt.train.loop import train
    from splatopt.viewer.live import LivePage
    from splatopt.viewer.serving import ServingOptions

    marks: list[Taken] = []
    spent = 0.0

    def mark() -> None:
        mine = time.thread_time()
        marks.append(Taken(mine - spent, spent, time.process_time() - mine))

    def note(event: Event) -> None:
        nonlocal spent
        began = time.thread_time()
        for page in pages:
            page(event)
        spent += time.thread_time() - began
        if isinstance(event, Started):
            while mode == WATCHED and not pages[0].is_watched:
                time.sleep(0.05)
        is_half = isinstance(event, Stepped) and event.step == steps // 2
        if is_half or isinstance(event, Started | Ended):
            mark()

    pages = [LivePage(ServingOptions(view_port=0).open())] if mode else []
    print(pages[0].link if pages else "", flush=True)
    train(TrainConfig.of(capture, steps=steps, optimizer="adam", out=out, threads=1), [note])
    for page in pages:
        page.close()
    start, half, end = marks
    print(json.dumps([asdict(end.since(half)), asdict(end.since(start))]), flush=True)


def row(capture: str, steps: int, mode: int, browser: str) -> str:
    """Train in a process of its own, with a browser beside it where the mode has one; returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.live_page", capture, "--steps", str(steps), "--train", str(mode)]
        process = subprocess.Popen([*words, "--out", f"{folder}/run"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        link, client, seconds = process.stdout.readline().strip(), None, 0.0
        if mode == WATCHED:
            client = _browser(browser, link, Path(folder) / "profile")
        answer = process.stdout.readline()
        if client is not None:
            seconds = _ended(client)
        if process.wait(_WAIT_SECONDS):
            raise SystemExit(f"the run {MODES[mode]!r} failed")
        half, whole = (Taken(**values) for values in json.loads(answer))
        return f"| {MODES[mode]} | {half.cells} | {whole.cells} | {seconds:.0f} |"


def _browser(program: str, link: str, profile: Path) -> subprocess.Popen[bytes]:
    words = [program, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-sync"]
    words += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    words += [f"--window-size={_WINDOW}", f"--user-data-dir={profile}", link]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _ended(client: subprocess.Popen[bytes]) -> float:
    """End a browser; returns what it and its children have taken."""
    parent = psutil.Process(client.pid)
    family = [parent, *parent.children(recursive=True)]
    seconds = 0.0
    for one in family:
        times = one.cpu_times()
        seconds += times.user + times.system
    for one in reversed(family):
        one.kill()
    client.wait()
    return seconds


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_page", description=__doc__)
    parser.add_argument("capture", help="folder of a capture")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--browser", default="chromium", help="a program of Chromium's family")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.train is not None:
        train_once(given.capture, given.steps, given.train, given.out)
        return 0
    columns = ("training, s", "callback, %", "other threads, %", "both, %")
    print(f"| | {' | '.join((*columns, *(f'all steps: {name}' for name in columns)))} | browser, s |")
    print("|---" * (2 * len(columns) + 2) + "|")
    for mode in range(len(MODES)):
        print(row(given.capture, given.steps, mode, given.browser), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
