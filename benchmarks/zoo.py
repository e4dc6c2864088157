"""All of the zoo, ranked, on a scene and on an image: ``python -m benchmarks.zoo CAPTURE --out DIR``.

Each name that pytorch-optimizer has and we hand out trains the capture at 240 pixels, without growth, and fits an
image of 64² pixels, for the same number of steps, each in a process of its own with a limit on its time. Our own
optimizers run beside them. Rates are those that a name is handed out with, on scenes also times ``--factors``; the best
of them counts. DIR/results.json holds every run, DIR/table.md the ranking. What is in DIR already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.fields import test_image
from splatopt.optim.zoo import zoo_names
from splatopt.runs.folder import RunFolder, read_json
from splatopt.runs.records import read_metrics

OURS = {
    "a scene": ("adam", "adam-tuned", "sign-tr", "adam-tr", "tr2", "block-gn", "learned"),
    "an image": ("sgd", "adam", "esgd", "adahessian-e", "shampoo", "kfac"),
}
"""What stands beside the zoo."""

Result = dict[str, Any]


def cells(factors: Sequence[float]) -> Iterator[tuple[str, str, float]]:
    """Yield subject, optimizer and factor on its rates of every run."""
    zoo = [f"zoo:{name}" for name in zoo_names()]
    for factor in factors:
        yield from (("a scene", name, factor) for name in (*zoo, *(OURS["a scene"] if factor == 1 else ())))
    yield from (("an image", name, 1.0) for name in (*zoo, *OURS["an image"]))


def command(subject: str, name: str, factor: float, target: Path) -> list[str]:
    """Return the words after ``splatopt`` of one run, but its steps and its folder."""
    if subject == "an image":
        return ["fit", str(target), "--optimizer", name]
    factors = ["--zoo.rate-factor", f"{factor:g}"] if name.startswith("zoo:") else []
    usual = ["--max-side", "240", "--view-batch", "1", "--density", "none", "--eval-every", "0", "--threads", "1"]
    return ["train", str(target), "--optimizer", name, *factors, *usual]


def run(subject: str, name: str, factor: float, words: Sequence[str], folder: Path, limit: float) -> Result:
    """Take one run; its last line of complaint is its result where it has none."""
    found: Result = {"subject": subject, "optimizer": name, "factor": factor}
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "splatopt", *words, "--out", str(folder)],
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return found | {"failed": f"not done after {limit:g} s"}
    found["whole_seconds"] = round(time.perf_counter() - begun, 1)
    if done.returncode:
        return found | {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it broke off"}
    lines = list(read_metrics(RunFolder(folder).metrics))
    steps = [line for line in lines if "loss" in line]
    scores = read_json(RunFolder(folder).evaluation)
    return found | {"psnr": scores["psnr"], "seconds": steps[-1]["seconds"], "steps": steps[-1]["step"]}


def table(results: Sequence[Result], subject: str) -> str:
    """Return the ranking of a subject, the best factor of each name; what failed stands at the end."""
    best: dict[str, Result] = {}
    for result in results:
        if result["subject"] == subject:
            known = best.get(result["optimizer"])
            if known is None or result.get("psnr", -1.0) > known.get("psnr", -1.0):
                best[result["optimizer"]] = result
    ranked = sorted(best.values(), key=lambda one: -one.get("psnr", -1.0))
    lines = ["| | optimizer | factor | dB | seconds |", "|---|---|---|---|---|"]
    for place, one in enumerate(ranked, 1):
        head = f"| {place} | `{one['optimizer']}` | {one['factor']:g} |"
        lines.append(f"{head} {one['psnr']:.2f} | {one['seconds']:.1f} |" if "psnr" in one else f"{head} | |")
    failed = [f"- `{one['optimizer']}`: {one['failed']}" for one in ranked if "failed" in one]
    return "\n".join([f"## {subject.capitalize()}", "", *lines, "", *failed, ""])


def main(words: Sequence[str] | None = None) -> int:
    """Take the runs that are missing, and write the ranking."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0])
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a run may take")
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "results.json"
    results: list[Result] = json.loads(kept.read_text()) if kept.is_file() else []
    known = {(one["subject"], one["optimizer"], one["factor"]) for one in results}
    targets = {"a scene": given.capture, "an image": test_image("astronaut", 64, given.out)}

    def take(cell: tuple[str, str, float]) -> Result:
        subject, name, factor = cell
        folder = given.out / "runs" / f"{subject.split()[1]}-{name.replace(':', '-')}-{factor:g}"
        all_words = [*command(subject, name, factor, targets[subject]), "--steps", str(given.steps)]
        return run(subject, name, factor, all_words, folder, given.limit)

    with ThreadPoolExecutor(given.side_by_side) as pool:
        for result in pool.map(take, [cell for cell in cells(given.factors) if cell not in known]):
            results.append(result)
            kept.write_text(json.dumps(results, indent=1) + "\n")
            print(result, flush=True)
    text = "\n".join(table(results, subject) for subject in OURS)
    (given.out / "table.md").write_text(f"# The zoo after {given.steps} steps\n\n{text}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
