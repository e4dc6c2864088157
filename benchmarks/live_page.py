"""What the live page costs a run: `python -m benchmarks.live_page CAPTURE`.

The same steps are trained without a page, with one that nobody has open, and with one that a headless browser has
open, in turns and each in a process of its own. Prints the processor time of the training process, all its threads
together: of the second half of the steps, when the page is open and drawn, and of all of them; shares are of the run
without a page in the same round. What the browser takes is said beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
        half: Of the training process, over the second half of the steps.
        whole: Of the training process, over all steps.
        browser: Of the browser and its children.
    """

    half: float
    whole: float
    browser: float = 0.0


def train_once(capture: str, steps: int, mode: int, out: Path) -> None:
    """Train in this process; prints the page's link before, and then the seconds."""
    from splatopt.train.config import TrainConfig
    from splatopt.train.events import Callback, Ended, Event, Started, Stepped
    from splatopt.train.loop import train
    from splatopt.viewer.live import LivePage
    from splatopt.viewer.serving import ServingOptions

    marks: dict[str, float] = {}

    def note(event: Event) -> None:
        if isinstance(event, Started):
            while mode == WATCHED and not pages[0].is_watched:
                time.sleep(0.05)
            marks["start"] = time.process_time()
        elif isinstance(event, Stepped) and event.step == steps // 2:
            marks["half"] = time.process_time()
        elif isinstance(event, Ended):
            marks["end"] = time.process_time()

    pages = [LivePage(ServingOptions(view_port=0).open())] if mode else []
    print(pages[0].link if pages else "", flush=True)
    callbacks: list[Callback] = [*pages, note]
    train(TrainConfig.of(capture, steps=steps, optimizer="adam", out=out, threads=1), callbacks)
    for page in pages:
        page.close()
    print(json.dumps({"half": marks["end"] - marks["half"], "whole": marks["end"] - marks["start"]}), flush=True)


def measured(capture: str, steps: int, mode: int, browser: str) -> Taken:
    """Train in a process of its own, with a browser beside it where the mode has one."""
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
        taken = json.loads(answer)
        return Taken(taken["half"], taken["whole"], seconds)


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", default="chromium", help="a program of Chromium's family")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.train is not None:
        train_once(given.capture, given.steps, given.train, given.out)
        return 0
    rounds = []
    for number in range(given.rounds):
        rounds.append([measured(given.capture, given.steps, mode, given.browser) for mode in range(len(MODES))])
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    print("| | second half, s | more, % | all steps, s | more, % | browser, s |\n|---|---|---|---|---|---|")
    for mode, name in enumerate(MODES):
        runs, bare = [one[mode] for one in rounds], [one[0] for one in rounds]
        half, whole, browser = (
            statistics.median(getattr(run, what) for run in runs) for what in ("half", "whole", "browser")
        )
        more = [_more(runs, bare, what) for what in ("half", "whole")]
        print(f"| {name} | {half:.2f} | {more[0]} | {whole:.2f} | {more[1]} | {browser:.1f} |")
    return 0


def _more(runs: list[Taken], bare: list[Taken], what: str) -> str:
    """Median over the rounds of what a run took more than the bare one, with the least and the most."""
    shares = [100 * (getattr(run, what) / getattr(one, what) - 1) for run, one in zip(runs, bare, strict=True)]
    return f"{statistics.median(shares):+.1f} ({min(shares):+.1f} to {max(shares):+.1f})" if any(shares) else ""


if __name__ == "__main__":
    raise SystemExit(main())
