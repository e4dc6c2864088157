"""Whether runs end when they were told to: `python -m benchmarks.timed_runs CAPTURE... --minutes 0.5 1 --out DIR`.

Each capture is trained with each ``--minutes``, by the command, once alone and once beside a process that keeps one
core at work. What counts is the time from the command's start to its exit, the page and the final scoring included: it
must be within 5 % of what was asked for, or 3 seconds. ``--repeat`` has every plan repeated by steps as well, whose
scene must be the same bytes, and its PSNR within 0.1 dB. Prints a Markdown table; runs that are in DIR already are not
taken again, so that the repetitions can come later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHARE, SECONDS = 0.05, 3.0
"""How far from its time a run may end, whichever is more."""

DECIBELS = 0.1
"""How far from its plan repeated by steps."""

HEAD = "| capture | minutes | other | ended at | off | within | cores | steps | Gaussians | dB | by its plan |"


@contextmanager
def neighbour(*, busy: bool) -> Iterator[None]:
    """Have another process keep one core at work meanwhile, or none."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def timed(words: Sequence[str], log: Path) -> dict[str, float]:
    """Run ``splatopt train`` and return its seconds and its processor's, from the command's start to its exit."""
    with log.open("w") as told:
        began = time.time()
        command = [sys.executable, "-m", "splatopt", "train", *words]
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.time() - began
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}; see {log}")
    return {"seconds": seconds, "processor": used.ru_utime + used.ru_stime}


def run(capture: Path, minutes: float, folder: Path, *, busy: bool) -> dict[str, float]:
    """Train for so long unless that was done, and return what it took."""
    kept = _beside(folder, ".json")
    if not kept.is_file():
        with neighbour(busy=busy):
            took = timed([str(capture), "--minutes", f"{minutes:g}", "--out", str(folder)], _beside(folder, ".log"))
        kept.write_text(json.dumps(took))
    return dict(json.loads(kept.read_text()))


def _beside(folder: Path, ending: str) -> Path:
    """The file of a run beside its folder, whose name may hold a point."""
    return folder.with_name(folder.name + ending)


def by_plan(capture: Path, folder: Path) -> str:
    """Repeat a run's plan and say how its scene compares."""
    again = folder.with_name(f"{folder.name}-again")
    if not (again / "scene.ply").is_file():
        timed([str(capture), "--plan", str(folder / "plan.json"), "--out", str(again)], _beside(again, ".log"))
    same = (again / "scene.ply").read_bytes() == (folder / "scene.ply").read_bytes()
    apart = abs(scores(again)["psnr"] - scores(folder)["psnr"])
    return ("same bytes" if same else "other bytes") + (f", {apart:.2f} dB apart" if apart > DECIBELS else "")


def scores(folder: Path) -> dict[str, float]:
    """What a run came to."""
    return dict(json.loads((folder / "eval.json").read_text()))


def main(words: Sequence[str] | None = None) -> int:
    """Take all runs and print their table; returns 0 where all ended in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captures", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1.0, 2.0, 5.0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", action="store_true", help="repeat every plan by steps as well")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    print(HEAD, "|---" * HEAD.count(" | ") + "|---|", sep="\n")
    ended = total = 0
    for capture in given.captures:
        for minutes in given.minutes:
            for busy in (False, True):
                folder = given.out / f"{capture.name}-{minutes:g}-{'busy' if busy else 'alone'}"
                took = run(capture, minutes, folder, busy=busy)
                off, found = took["seconds"] - 60 * minutes, scores(folder)
                within = abs(off) <= max(SECONDS, SHARE * 60 * minutes)
                ended, total = ended + within, total + 1
                repeated = by_plan(capture, folder) if given.repeat else "–"
                print(
                    f"| {capture.name} | {minutes:g} | {'yes' if busy else 'no'} | {took['seconds']:.1f} s "
                    f"| {off:+.1f} s | {'yes' if within else '**no**'} | {took['processor'] / took['seconds']:.2f} "
                    f"| {found['steps']:,} | {found['gaussians']:,} | {found['psnr']:.2f} | {repeated} |",
                    flush=True,
                )
    print(f"\n{ended} of {total} runs ended in time.")
    return 0 if ended == total else 1


if __name__ == "__main__":
    sys.exit(main())
