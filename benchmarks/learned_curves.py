"""What learned steps are worth on synthetic scenes that none was trained on, and what each part of the method adds.

Weights against the Adam that they began as, held, with a decay made for the horizon, and averaged, from the same starts
and with the same views; held-out PSNR after some numbers of steps, and the worst drop below the best::

    splatopt data make --scenes 4 --views 48 --points 2500 --seed 991 --out synthetic/check
    python -m benchmarks.learned_curves --data synthetic/check --weights tiny runs/no-buffer/weights.safetensors
    python -m benchmarks.learned_curves --data synthetic/check --inputs 3 --finals 0.03 --color-views 0 32
    python -m benchmarks.learned_curves --data synthetic/check --without-adam --without corrections gates:means
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splatopt.core.checks import InputError
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta import Learned, LearnedNetwork, LearnedOptions
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import CORRECTED
from splatopt.meta.tasks import MetaTask, MetaTaskOptions, draw_task, scene_folders
from splatopt.optim.averaging import Averaged
from splatopt.optim.first_order import SearchedAdamOptions
from splatopt.raster.render import make_renderer
from splatopt.raster.renderer import Renderer


@dataclass(frozen=True)
class Contender:
    """One line of the table: a name, and what makes its optimizer for a scene."""

    name: str
    make: Callable[[MetaTask], Optimizer]


def adam(name: str, final: float, color_share: float = 1.0) -> Contender:
    rate = color_share * SearchedAdamOptions.sh_rest_rate
    options = SearchedAdamOptions(final_factor=final, means_final_factor=final, sh_rest_rate=rate)
    return Contender(name, lambda task: find_optimizer("adam-searched").optimizer(task.objective, options))


def averaged(name: str, options: SearchedAdamOptions) -> Contender:
    """Adam whose scene is the running average of its iterates, as the learned step's is."""
    power = InnerRates().average_power
    return Contender(
        name,
        lambda task: Averaged(find_optimizer("adam-searched").optimizer(task.objective, options), power),
    )


def adams(finals: list[float], color_share: float) -> list[Contender]:
    """The Adam that learned steps began as: decaying to each of ``finals``, held and averaged, and as it is inside.

    Where ``color_share`` is below 1, those that decay once more with that share of the higher bands' rate.
    """
    found = [adam("adam-searched, held" if final == 1 else f"adam-searched to {final:g}", final) for final in finals]
    if color_share < 1:
        found += [adam(f"adam-searched to {final:g}, share of colour", final, color_share) for final in finals]
    held, rates = {"final_factor": 1.0, "means_final_factor": 1.0}, InnerRates()
    inside = SearchedAdamOptions(**held, patience=rates.patience, fall=rates.fall)
    found.append(averaged("adam-searched, held, averaged", SearchedAdamOptions(**held)))
    return [*found, averaged("the Adam inside, averaged", inside)]


PARTS = (
    "gates",
    *(f"gates:{group}" for group in GAUSSIAN_TENSORS),
    "corrections",
    *(f"corrections:{group}" for group in CORRECTED),
)
"""Outputs of a network that can be left out: all of a kind, or those for one group of parameters."""


@torch.no_grad()
def leave_out(part: str, network: LearnedNetwork) -> None:
    """Set one of :data:`PARTS` to zero for good; a direction keeps its length, which the other groups then share."""
    kind, _, group = part.partition(":")
    if kind == "corrections" and group:
        ends = dict(zip(CORRECTED, itertools.accumulate(CORRECTED.values()), strict=True))
        layer, rows = network.direction, slice(ends[group] - CORRECTED[group], ends[group])
    elif kind == "corrections":
        layer, rows = network.sizes, slice(len(GAUSSIAN_TENSORS), None)
    else:
        first = GAUSSIAN_TENSORS.index(group) if group else 0
        layer, rows = network.sizes, slice(first, first + 1 if group else len(GAUSSIAN_TENSORS))
    layer.weight[rows] = 0
    layer.bias[rows] = 0


def learned(weights: str, max_growth: float | None, color_views: int | None, without: str | None) -> Contender:
    name = Path(weights).parent.name if weights.endswith(".safetensors") else weights
    options = LearnedOptions(weights)
    if max_growth is not None:
        name, options = f"{name}, growth {max_growth:g}", replace(options, max_growth=max_growth)
    if color_views is not None:
        name, options = f"{name}, colour {color_views}", replace(options, full_color_views=color_views)
    if without is not None:
        name = f"{name}, without {without}"

    def make(task: MetaTask) -> Optimizer:
        optimizer = Learned(task.objective, options)
        if without is not None:
            leave_out(without, optimizer.weights.network)
        return optimizer

    return Contender(name, make)


def curve(
    contender: Contender,
    scene: str,
    renderer: Renderer,
    at: list[int],
    shares: MetaTaskOptions,
    seed: int,
    threads: int,
) -> list[float]:
    """Held-out PSNR after each number of steps, dB; NaN where the numbers broke down."""
    generator = torch.Generator().manual_seed(seed)
    task = draw_task(scene, renderer, shares, generator)
    optimizer = contender.make(task)
    optimizer.threads = threads
    values = []
    for step in range(at[-1]):
        optimizer.step(task.draw_views(generator), Progress(step, at[-1]))
        if step + 1 in at:
            values.append(task.objective.gradient(task.targets).metrics["psnr"])
    return values


def shares_of(sparse: bool, inputs: int, scattered: bool) -> MetaTaskOptions:
    """How scenes are drawn: dense, with 3 to 8 input views, or with as many as ``inputs`` from all of their points."""
    plain = MetaTaskOptions.plain(float(sparse or bool(inputs)), targets=12 if inputs else 8)
    plain = replace(plain, random_init=float(scattered))
    return replace(plain, few=(inputs, inputs), min_point_share=1.0) if inputs else plain


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders of synthetic scenes, none of them trained on"
    )
    parser.add_argument("--weights", nargs="*", default=["tiny"], help="shipped names, or paths of .safetensors files")
    parser.add_argument(
        "--at", type=positive, nargs="+", default=[10, 50, 100, 500, 1000], help="steps; the last is the horizon"
    )
    parser.add_argument("--without-adam", action="store_true", help="the weights alone, whose ablations are compared")
    parser.add_argument("--finals", type=float, nargs="+", default=[1.0, 0.1, 0.03], help="what Adam's rates decay to")
    parser.add_argument("--growths", type=float, nargs="*", help="bounds on growth to compare, 0 for none")
    parser.add_argument("--color-views", type=int, nargs="*", help="numbers of views with the whole rate of colour")
    parser.add_argument(
        "--without",
        nargs="*",
        choices=PARTS,
        metavar="PART",
        help="outputs of the network to leave out, one at a time: gates, corrections, or one group's, as gates:means",
    )
    parser.add_argument("--scenes", type=positive, default=4, help="of those in each folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of views and starts")
    parser.add_argument("--sparse", action="store_true", help="3 to 8 input views instead of three quarters of all")
    parser.add_argument("--inputs", type=positive, default=0, help="exactly so many input views")
    parser.add_argument("--scattered", action="store_true", help="starts from as many points scattered at random")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores; scores do not depend on it")
    return parser.parse_args()


def main() -> int:
    """Print a table in Markdown."""
    arguments = _parsed()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    renderer = make_renderer("auto", arguments.threads)
    scenes = [scene for data in arguments.data for scene in scene_folders(data)[: arguments.scenes]]
    at = sorted(arguments.at)
    shares = shares_of(arguments.sparse, arguments.inputs, arguments.scattered)
    max_color_views = max(arguments.color_views or [0])
    share = min(1.0, arguments.inputs / max_color_views) if arguments.inputs and max_color_views else 1.0
    contenders = [] if arguments.without_adam else adams(arguments.finals, share)
    settings = itertools.product(
        arguments.weights,
        arguments.growths or [None],
        arguments.color_views or [None],
        [None, *(arguments.without or [])],
    )
    contenders += [learned(*setting) for setting in settings]
    print("| held-out PSNR, dB, after | " + " | ".join(f"{step:,}" for step in at) + " | worst drop |")
    print("|---" * (len(at) + 2) + "|", flush=True)
    for contender in contenders:
        curves = [
            curve(contender, scene, renderer, at, shares, 1000 * seed + number, arguments.threads)
            for number, scene in enumerate(scenes)
            for seed in arguments.seeds
        ]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        drop = max(max(values) - values[-1] if math.isfinite(values[-1]) else math.inf for values in curves)
        print(f"| {contender.name} | " + " | ".join(f"{mean:.2f}" for mean in means) + f" | {drop:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
