"""Sweep adam-tuned: one factor k on all rates of 3DGS, and what they have decayed to when the run ends.

The options of ``adam-tuned`` come from this sweep on lego_200, at full size from a random start::

    python -m benchmarks.tune_adam --data ../shared/data
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import splatopt
from splatopt.optim.first_order import AdamOptions, TunedAdamOptions


def scores(scene: Path, options: AdamOptions, steps: int, seeds: list[int], threads: int) -> Iterator[float]:
    """Yield the held-out PSNR of one run per seed, dB."""
    name = "adam-tuned" if isinstance(options, TunedAdamOptions) else "adam"
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            result = splatopt.train(
                scene,
                optimizer=name,
                optimizer_options=options,
                steps=steps,
                seed=seed,
                threads=threads,
                init="random" if scene.name.startswith("lego") else "sfm",
                out=Path(folder) / "run",
                callbacks=[],
            )
        yield result.after.psnr


def cell(values: list[float]) -> str:
    """Mean, and the spread where there is one."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> int:
    """Print one table of held-out PSNR for each number of steps."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune_adam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the scenes")
    parser.add_argument("--scene", default="lego_200", help="its folder there; lego_* starts from random points")
    parser.add_argument("--steps", type=int, nargs="+", default=[2000, 3000], help="lengths of runs")
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 2, 4, 8, 16], help="k, on all rates")
    parser.add_argument("--finals", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2, 0.4], help="decay to this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores; scores do not depend on it")
    arguments = parser.parse_args()
    scene = arguments.data / arguments.scene
    for steps in arguments.steps:
        plain = list(scores(scene, AdamOptions(), steps, arguments.seeds, arguments.threads))
        print(f"\n{scene.name}, {steps} steps, held-out PSNR in dB; adam: {cell(plain)}\n", flush=True)
        print("| k | " + " | ".join(f"to {final:g}" for final in arguments.finals) + " |")
        print("|---" * (len(arguments.finals) + 1) + "|")
        for factor in arguments.factors:
            cells = []
            for final in arguments.finals:
                options = TunedAdamOptions(rate_factor=factor, final_factor=final, means_final_factor=final)
                cells.append(cell(list(scores(scene, options, steps, arguments.seeds, arguments.threads))))
            print(f"| {factor:g} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
