"""What each idea of a planned run is worth: `python -m benchmarks.ideas CAPTURE --minutes 2 --out DIR`.

Plain Adam, Adam with one idea each, `block-gn` alone, and all together, each for the same time in a run that plans
itself. Prints a Markdown table, and draws held-out PSNR against seconds of training as DIR/ideas.svg. Runs that are in
DIR already are not taken again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from splatopt.report.charts import Mark, Series, chart_file

IDEAS = {
    "Adam": (("--recipe", "all-sizes", "--optimizer", "adam", "--density", "none"), Mark.FAINT),
    "Adam, levels": (("--optimizer", "adam", "--density", "none"), Mark.SECOND),
    "Adam, growth": (("--recipe", "all-sizes", "--optimizer", "adam"), Mark.THIRD),
    "block-gn": (("--recipe", "all-sizes", "--optimizer", "block-gn", "--density", "none"), Mark.FOURTH),
    "all together": ((), Mark.LINE),
}
"""What runs are called: the words that they get besides their time, and how their curve is drawn."""


def curve(run: Path) -> tuple[list[float], list[float]]:
    """Return seconds of training and held-out PSNR at every scoring of a run."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    scored = [(float(one["seconds"]), float(one["test_psnr"])) for one in lines if "test_psnr" in one]
    return [seconds for seconds, _ in scored], [psnr for _, psnr in scored]


def main(words: Sequence[str] | None = None) -> int:
    """Take the runs, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=0, help="0 for all processors")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    series = []
    print("| run | dB | SSIM | Gaussians | steps |", "|---" * 5 + "|", sep="\n")
    for name, (options, mark) in IDEAS.items():
        run = given.out / name.lower().replace(", ", "-").replace(" ", "-")
        if not (run / "eval.json").is_file():
            told = ["--minutes", f"{given.minutes:g}", "--threads", str(given.threads), "--out", str(run)]
            command = [sys.executable, "-m", "splatopt", "train", str(given.capture), *options, *told]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((run / "eval.json").read_text())
        print(
            f"| {name} | {found['psnr']:.2f} | {found['ssim']:.4f} | {found['gaussians']:,} | {found['steps']:,} |",
            flush=True,
        )
        series.append(Series(name, *curve(run), mark))
    title = f"{given.capture.name}: held-out PSNR (dB) against seconds"
    (given.out / "ideas.svg").write_text(chart_file(title, "seconds of training", series), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
