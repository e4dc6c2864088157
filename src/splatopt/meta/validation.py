"""How good a network is on scenes that it never trains on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from splatopt.meta.episode import EpisodeState, roll_out
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.tasks import MetaTaskOptions, draw_task
from splatopt.optim.averaging import RunningAverage
from splatopt.raster.renderer import Renderer

Curve = dict[int, float]
"""Mean held-out PSNR in dB by number of steps."""

STEPS = (10, 100, 1000)


def validate(
    network: LearnedNetwork,
    rates: InnerRates,
    scenes: Sequence[str],
    renderer: Renderer,
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    sparse: float = 0.0,
    device: torch.device | str = "cpu",
    stopping: Callable[[], bool] = lambda: False,
) -> Curve | None:
    """Return the mean held-out PSNR over ``scenes`` after each number of ``steps``; None where it was stopped.

    An untrained network gives the curve of the Adam inside. Scenes, views and starts depend on ``seed`` alone.

    Args:
        network: The network.
        rates: The Adam inside.
        scenes: Keys of captures.
        renderer: What renders.
        seed: Of views and starts.
        steps: When to look, ascending.
        sparse: Share of scenes with few input views.
        device: Where network and clouds lie.
        stopping: Asked before each step whether to stop.
    """
    sums = dict.fromkeys(steps, 0.0)
    shares = MetaTaskOptions.plain(sparse)
    for number, scene in enumerate(scenes):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        task = draw_task(scene, renderer, shares, generator, device)
        episode_state = EpisodeState.begin(task, network, horizon=max(steps))
        parameters = task.objective.parameters
        average = RunningAverage(parameters, rates.average_power) if rates.average_power else None
        for step in steps:
            fine = True
            while fine and episode_state.state.steps < step:
                if stopping():
                    return None
                fine = roll_out(network, rates, episode_state, 1, generator, average)
            with nullcontext() if average is None else average.stepping(parameters):
                psnr = task.objective.gradient(task.targets).metrics["psnr"] if fine else math.nan
            sums[step] += psnr if math.isfinite(psnr) else 0.0
    return {step: total / len(scenes) for step, total in sums.items()}
