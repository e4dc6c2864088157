"""Search Adam's rates and decays on synthetic scenes, group by group: what the learned step begins as.

Coordinate search: every rate is doubled and halved, β₁ and β₂ moved along a ladder, and what raises the held-out PSNR,
averaged over synthetic scenes and over a few numbers of steps, is kept. None of the scenes of the benchmarks is looked
at::

    splatopt data make --scenes 12 --seed 77 --out synthetic/search
    python -m benchmarks.search_rates --data synthetic/search
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splatopt.core.optimizer import Progress
from splatopt.meta.tasks import MetaTaskOptions, draw_task, scene_folders
from splatopt.optim.first_order import Adam, AdamOptions, DecayingRates
from splatopt.raster.render import make_renderer
from splatopt.raster.renderer import Renderer

_GROUPS = ("means", "scales", "quats", "opacities", "sh_dc", "sh_rest")
_BETA1 = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_BETA2 = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class SweptOptions(DecayingRates, AdamOptions):
    """Adam whose rates decay by one factor or not at all."""


def start(factor: float = 1.0) -> SweptOptions:
    """The rates of 3DGS times one factor, held."""
    return SweptOptions(rate_factor=factor, final_factor=1.0, means_final_factor=1.0)


def score(options: SweptOptions, folders: list[str], renderer: Renderer, at: list[int], threads: int) -> list[float]:
    """Mean held-out PSNR over the scenes after each number of steps of ``at``, dB."""
    sums = [0.0] * len(at)
    for number, folder in enumerate(folders):
        generator = torch.Generator().manual_seed(number)
        shares = MetaTaskOptions.plain()
        task = draw_task(folder, renderer, shares, generator)
        optimizer = Adam(task.objective, options)
        optimizer.threads = threads
        for step in range(at[-1]):
            optimizer.step(task.draw_views(generator), Progress(step, at[-1]))
            if step + 1 in at:
                psnr = task.objective.gradient(task.targets).metrics["psnr"]
                sums[at.index(step + 1)] += psnr if math.isfinite(psnr) else 0.0
    return [total / len(folders) for total in sums]


def neighbours(options: SweptOptions) -> list[tuple[str, SweptOptions]]:
    """Options that differ from ``options`` in one number, with the number's name."""
    moved = []
    for group in _GROUPS:
        name = f"{group}_rate"
        moved += [(name, replace(options, **{name: getattr(options, name) * factor})) for factor in (2.0, 0.5)]
    for name, ladder in (("beta1", _BETA1), ("beta2", _BETA2)):
        place = ladder.index(getattr(options, name))
        moved += [
            (name, replace(options, **{name: ladder[near]}))
            for near in (place - 1, place + 1)
            if 0 <= near < len(ladder)
        ]
    return moved


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_rates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of synthetic scenes")
    parser.add_argument("--at", type=int, nargs="+", default=[10, 50, 200], help="steps whose PSNR is averaged")
    parser.add_argument("--factors", type=float, nargs="+", default=[4, 8, 16, 32], help="on all rates, to begin from")
    parser.add_argument("--rounds", type=int, default=3, help="of coordinate search at most")
    parser.add_argument("--scenes", type=int, default=6, help="of those in the folder")
    parser.add_argument("--finals", type=float, nargs="*", default=[], help="then sweep what rates decay to")
    parser.add_argument("--final-at", type=int, default=2000, help="steps of that sweep")
    parser.add_argument("--from", dest="begin", default=None, help="begin from this JSON of options instead")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores; scores do not depend on it")
    return parser.parse_args()


def main() -> int:
    """Print every trial and, at the end, the best options as JSON."""
    arguments = _parsed()
    renderer = make_renderer("auto", arguments.threads)
    folders = list(scene_folders(arguments.data))[: arguments.scenes]

    def trial(name: str, options: SweptOptions, at: list[int]) -> float:
        began = time.perf_counter()
        values = score(options, folders, renderer, at, arguments.threads)
        mean = sum(values) / len(values)
        listed = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:24s} {listed}   mean {mean:.3f}   {time.perf_counter() - began:.0f} s", flush=True)
        return mean

    if arguments.begin:
        best_options = SweptOptions(**json.loads(arguments.begin))
        best = trial("given", best_options, arguments.at)
    else:
        scored = [(trial(f"all x{factor:g}", start(factor), arguments.at), factor) for factor in arguments.factors]
        best, factor = max(scored)
        plain = start()
        best_options = replace(
            plain, **{f"{g}_rate": factor * getattr(plain, f"{g}_rate") for g in _GROUPS}, rate_factor=1.0
        )
    for _ in range(arguments.rounds):
        before = best
        skip: set[str] = set()
        for name, _options in neighbours(best_options):
            if name in skip:
                continue
            for other, options in neighbours(best_options):
                if other != name:
                    continue
                value = trial(f"{name} {getattr(options, name):.3g}", options, arguments.at)
                if value > best:
                    best, best_options = value, options
                    break
            skip.add(name)
        print(f"round: {best:.3f}", json.dumps(best_options.__dict__), flush=True)
        if best - before < 0.02:
            break
    for final in arguments.finals:
        decayed = replace(best_options, final_factor=final, means_final_factor=final)
        trial(f"to {final:g}", decayed, [100, 500, arguments.final_at])
    return 0


if __name__ == "__main__":
    sys.exit(main())
