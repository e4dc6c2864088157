"""gsplat's own strategies with our ``rasterization``: Adam for each key against ``SceneOptimizer``, at equal steps.

    python -m benchmarks.gsplat_strategies ../shared/data/fox --out runs/gsplat-strategies

The loop is that of gsplat's ``simple_trainer``, with its rates, schedule, start and penalties of both presets, and only
the optimizers differ: ``torch.optim.Adam`` for each key, or one ``SceneOptimizer`` by name. Views come in the same
order. A finished run leaves a file in the folder and is not run again, so the same command goes on where it was ended;
it prints the table of what is there. Needs gsplat, whose kernels are not called.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.metrics.image import psnr
from splatopt.raster.losses import L1Ssim
from splatopt.runs.folder import read_json, write_json
from splatopt.scene.initialization import start_from_points
from splatopt.torch_api import SceneOptimizer, gsplat_on_cpu, photometric_residuals, rasterization
from splatopt.torch_api.scene_parameters import GSPLAT_NAMES

RATES = {"means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 2.5e-3 / 20}
"""Adam's, of gsplat's script; that of the means is in scene extents, and falls to a hundredth over the run."""

PENALTY = 0.01
"""Of opacities and of scales, in the script's preset for MCMC."""

Params = torch.nn.ParameterDict


@dataclass(frozen=True)
class StrategyOptions:
    """What is trained, and how."""

    capture: tyro.conf.Positional[Path]
    """Folder of the capture."""

    out: Path
    """Folder of the finished runs."""

    strategies: tuple[str, ...] = ("default", "mcmc")
    """gsplat's."""

    optimizers: tuple[str, ...] = ("torch-adam", "learned", "tr2")
    """torch-adam, or names of SceneOptimizer."""

    seeds: tuple[int, ...] = (0,)
    """Of the views' order and the strategies' draws."""

    steps: int = 1000
    """Unit: steps."""

    sh_every: int = 1000
    """Steps after which the colours' degree rises by one; gsplat's script has 1000. Unit: steps."""

    refine_from: int = 500
    """From where DefaultStrategy adds and removes; gsplat's own. Unit: steps."""

    refine_until: int = 15_000
    """Where it ends; gsplat's own, half of its 30,000 steps. Unit: steps."""

    max_gaussians: int = 1_000_000
    """Cap of MCMC's, gsplat's own."""

    downscale: int = 1
    """Unit: factor."""

    threads: int = 1
    """Unit: threads."""


class TorchAdam:
    """An Adam for each key, and an exponential schedule of the means' rate, as in gsplat's script."""

    def __init__(self, params: Params, extent: float, steps: int) -> None:
        rates = {**RATES, "means": RATES["means"] * extent}
        self.optimizers = {
            key: torch.optim.Adam([{"params": params[key], "lr": rates[key]}], eps=1e-15) for key in params
        }
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizers["means"], 0.01 ** (1 / steps))

    def step(self) -> None:
        """Take a step by the gradients that there are."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._schedule.step()


def render(params: Params, camera: Camera, degree: int) -> tuple[Tensor, dict[str, Any]]:
    """Return the image (H, W, 3), and what there is beside."""
    intrinsics = torch.tensor([[camera.fx, 0.0, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]])
    image, _, info = rasterization(
        params["means"],
        params["quats"],
        params["scales"].exp(),
        params["opacities"].sigmoid(),
        torch.cat([params["sh0"], params["shN"]], dim=1),
        camera.world_to_camera.float()[None],
        intrinsics[None],
        camera.width,
        camera.height,
        sh_degree=degree,
        packed=False,
    )
    return image[0], info


def start(capture: Capture, *, mcmc: bool) -> Params:
    """Return the scene as gsplat's script begins with it: of MCMC more opaque, and a tenth as large."""
    assert capture.points is not None
    cloud = start_from_points(capture.points.positions, capture.points.colors)
    values = {key: getattr(cloud, name) for key, name in GSPLAT_NAMES.items()}
    values["sh0"] = values["sh0"][:, None]
    if mcmc:
        values["scales"] = values["scales"] + torch.tensor(0.1).log()
        values["opacities"] = torch.full_like(values["opacities"], 0.5).logit()
    return Params({key: torch.nn.Parameter(value) for key, value in values.items()})


def views_in_turn(views: tuple[int, ...], seed: int) -> Iterator[int]:
    """Yield all views in a random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from (views[i] for i in torch.randperm(len(views), generator=generator).tolist())


def score(params: Params, capture: Capture) -> float:
    """Return the mean PSNR of the held-out views, dB."""
    with torch.no_grad():
        images = {view: render(params, capture.cameras[view], 3)[0].clamp(0, 1) for view in capture.split.test}
    return sum(psnr(image, capture.images[view] / 255) for view, image in images.items()) / len(images)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        strategy: default or mcmc.
        optimizer: torch-adam, or of SceneOptimizer.
        seed: Of the views' order and the strategy's draws.
    """

    strategy: str
    optimizer: str
    seed: int

    @property
    def file(self) -> str:
        """Where what it came to is kept."""
        return f"{self.strategy}-{self.optimizer.replace(':', '-')}-{self.seed}.json"


def trainer_of(cell: Cell, params: Params, extent: float, steps: int) -> TorchAdam | SceneOptimizer:
    """Return the optimizers of a run."""
    if cell.optimizer == "torch-adam":
        return TorchAdam(params, extent, steps)
    return SceneOptimizer(cell.optimizer, params, scene_scale=extent, steps=steps, seed=cell.seed)


def strategy_of(options: StrategyOptions, cell: Cell) -> DefaultStrategy | MCMCStrategy:
    """Return gsplat's strategy, with its own settings unless they were given."""
    if cell.strategy == "mcmc":
        return MCMCStrategy(cap_max=options.max_gaussians)
    return DefaultStrategy(refine_start_iter=options.refine_from, refine_stop_iter=options.refine_until)


def train(capture: Capture, options: StrategyOptions, cell: Cell) -> dict[str, Any]:
    """Take a run; returns PSNR at four moments, numbers of Gaussians, and whether all is finite at the end."""
    mcmc = cell.strategy == "mcmc"
    params = start(capture, mcmc=mcmc)
    trainer = trainer_of(cell, params, capture.extent, options.steps)
    strategy = strategy_of(options, cell)
    strategy.check_sanity(params, trainer.optimizers)
    state = strategy.initialize_state() if mcmc else strategy.initialize_state(capture.extent)
    torch.manual_seed(cell.seed)
    looked, loss_of, began = {0: score(params, capture)}, L1Ssim(), time.perf_counter()
    counts = [len(params["means"])]
    for step, view in zip(range(options.steps), views_in_turn(capture.split.train, cell.seed), strict=False):
        photograph, degree = capture.images[view] / 255, min(3, step // options.sh_every)
        image, info = render(params, capture.cameras[view], degree)
        strategy.step_pre_backward(params, trainer.optimizers, state, step, info)
        loss = loss_of.value(image, photograph, torch.ones_like(image[..., :1]))
        penalty = PENALTY * (params["opacities"].sigmoid().mean() + params["scales"].exp().mean()) if mcmc else 0.0
        (loss + penalty).backward()
        if isinstance(trainer, TorchAdam):
            trainer.step()
        else:
            residuals = partial(residuals_of, params, capture.cameras[view], photograph, degree)
            trainer.step(residuals, loss=loss, views=[view])
            trainer.zero_grad()
        rate = {"lr": trainer.optimizers["means"].param_groups[0]["lr"]} if mcmc else {}
        strategy.step_post_backward(params, trainer.optimizers, state, step, info, **rate)
        counts.append(len(params["means"]))
        if (4 * (step + 1)) % options.steps < 4:
            with nullcontext() if isinstance(trainer, TorchAdam) else trainer.averaged():
                looked[step + 1] = score(params, capture)
    finite = all(bool(value.isfinite().all()) for value in params.values())
    took = {"seconds": time.perf_counter() - began, "finite": finite}
    return {"psnr": {str(at): value for at, value in looked.items()}, "gaussians": [counts[0], counts[-1]], **took}


def residuals_of(params: Params, camera: Camera, photograph: Tensor, degree: int) -> Tensor:
    """Return r of one view, for curvature."""
    return photometric_residuals(render(params, camera, degree)[0], photograph)


def table(rows: list[tuple[Cell, dict[str, Any]]]) -> str:
    """Return all runs, one in a line."""
    moments = list(rows[0][1]["psnr"])
    lines = [f"| strategy | optimizer | seed | {' | '.join(f'at {at}' for at in moments)} | Gaussians | finite | s |"]
    lines.append("|---" * (6 + len(moments)) + "|")
    for cell, found in rows:
        scores, finite = (f"{value:.2f}" for value in found["psnr"].values()), "yes" if found["finite"] else "NO"
        counts = " → ".join(f"{count:,}" for count in found["gaussians"])
        lines.append(
            f"| {cell.strategy} | {cell.optimizer} | {cell.seed} | {' | '.join(scores)} | {counts} | {finite} | "
            f"{found['seconds']:.0f} |"
        )
    return "\n".join(lines)


def settings_of(options: StrategyOptions) -> dict[str, Any]:
    """Return what runs of one table have in common."""
    names = ("steps", "sh_every", "refine_from", "refine_until", "max_gaussians", "downscale", "threads")
    return {"capture": options.capture.name} | {name: getattr(options, name) for name in names}


def main() -> int:
    """Take the runs that there are not yet, and print all."""
    options = tyro.cli(StrategyOptions, description=__doc__)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    capture = load_capture(options.capture, CaptureOptions(downscale=options.downscale))
    rows = []
    for strategy, seed, optimizer in itertools.product(options.strategies, options.seeds, options.optimizers):
        cell, settings = Cell(strategy, optimizer, seed), settings_of(options)
        file = options.out / cell.file
        found = read_json(file)
        if not found:
            with gsplat_on_cpu():
                found = {**settings, **train(capture, options, cell)}
            write_json(file, found)
        if {name: found.get(name) for name in settings} != settings:
            raise InputError(f"{file} is of other settings; give another folder to --out")
        rows.append((cell, found))
        print(table(rows).splitlines()[-1], flush=True)
    print(f"\nPSNR of the held-out views, dB, after so many steps\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
