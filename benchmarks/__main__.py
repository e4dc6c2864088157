"""Run the benchmarks, print a table, keep the numbers, compare ratios with the committed baseline."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import Measurement
from benchmarks.speed import QUESTIONS
from splatopt.core import native

HERE = Path(__file__).parent
TOLERANCE = 0.3
"""How far a ratio may fall behind the baseline: two runs on two shared cores differ by a fifth."""


def machine() -> dict[str, str | int]:
    """What the numbers belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    workers = native.workers()
    return {
        "processor": model,
        "threads": workers.threads,
        "isa": workers.isa,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def regressions(measured: list[Measurement], baseline: Path) -> list[str]:
    """Ratios that are worse than the baseline's by more than the tolerance."""
    if not baseline.is_file():
        return []
    before = {entry["name"]: entry["value"] for entry in json.loads(baseline.read_text())["measurements"]}
    worse = []
    for entry in measured:
        if not entry.gated or entry.name not in before:
            continue
        ratio = entry.value / before[entry.name]
        change = ratio - 1 if entry.better == "lower" else 1 / ratio - 1
        if change > TOLERANCE:
            worse.append(f"{entry.name}: {entry.value:.3g} {entry.unit}, was {before[entry.name]:.3g}")
    return worse


def main() -> int:
    """Parse, measure, print, write; 1 where a ratio fell behind the baseline."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", help=f"any of {', '.join(QUESTIONS)}; all when none is given")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with fox and garden")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--baseline", type=Path, default=HERE / "baseline.json", help="ratios to compare with")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"no benchmark is named {unknown[0]!r}; there are {', '.join(QUESTIONS)}")
    # PyTorch's own threads would spin beside the native ones; a training run quiets them too.
    torch.set_num_threads(1)
    measured: list[Measurement] = []
    console = Console()
    for name in arguments.questions or QUESTIONS:
        table = Table("measure", "value", "unit", "bar", title=name)
        for entry in QUESTIONS[name](arguments.data):
            measured.append(entry)
            mark = {None: "", True: " reached", False: " missed"}[entry.reached]
            table.add_row(entry.name, f"{entry.value:.4g}", entry.unit, f"{entry.bar or ''}{mark}")
        console.print(table)
    record = {"machine": machine(), "tolerance": TOLERANCE, "measurements": [asdict(entry) for entry in measured]}
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    worse = regressions(measured, arguments.baseline)
    for line in worse:
        console.print(f"behind the baseline: {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
