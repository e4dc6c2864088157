"""What curvature costs: the oracles against the renderer's own passes, second-order steps against Adam's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import splatopt.optim  # noqa: F401 - registers the optimizers
from benchmarks.loads import Load, fox, made_up
from benchmarks.measurement import Measurement
from benchmarks.timing import FORWARD
from splatopt.core.optimizer import Optimizer, Progress, find_optimizer
from splatopt.core.row_statistics import GradientStatistics, absolute_error
from splatopt.curvature.estimators import Exact, ResidualProbes
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.photometric import PhotometricObjective

REFRESH = 10
"""Steps from one look at the curvature to the next, of every optimizer that looks."""


def timed_loads(data: Path) -> Iterator[tuple[str, Load]]:
    """The loads that steps are timed on, by the names that measurements begin with."""
    if (data / "fox").is_dir():
        yield "fox", fox(data)
    yield "heavy", made_up(75_000, 800, 533, 640.0)


def objective_of(load: Load) -> PhotometricObjective:
    """A load as an objective, over a copy of its cloud."""
    options = RenderOptions(sh_degree=load.sh_degree)
    return PhotometricObjective(load.cloud.clone(), load.cameras, load.targets, NativeRenderer(), options)


def oracles(data: Path) -> Iterator[Measurement]:
    """JVP over forward and loss, probes over backward, curvature over loss and backward; by the passes' stopwatches.

    Statistics of rows over forward; over backward, a backward pass that is observed.
    """
    bars = {"jvp": 1.5, "residual_probe": 1.0, "exact_diagonal": 1.6, "blocks": 3.0}
    bars |= {"statistics": 1.3, "statistics_with_cross": 2.0, "observed": 1.1, "observed_absolute": 1.35}
    units = {"jvp": "of forward and loss", "residual_probe": "of backward"}
    units |= {"statistics": "of forward", "statistics_with_cross": "of forward"}
    units |= {"observed": "of backward", "observed_absolute": "of backward"}
    for key, load in timed_loads(data):
        for name, ratio in _oracle_costs(objective_of(load)).items():
            unit = units.get(name, "of loss and backward")
            yield Measurement(f"{key}.oracle.{name}", ratio, unit, "lower", bars[name], gated=True)


def _oracle_costs(objective: PhotometricObjective) -> dict[str, float]:
    """Medians of each oracle's own passes over those of the gradient just before it."""
    renderer = objective.renderer
    assert isinstance(renderer, NativeRenderer)
    generator = torch.Generator().manual_seed(0)
    tangent = {
        name: 1e-3 * torch.randn(value.shape, generator=generator) for name, value in objective.parameters.items()
    }

    def spent(*passes: str) -> float:
        return sum(renderer.rasterizer.timings[name] for name in passes)

    ratios: dict[str, list[float]] = {}
    for _ in range(25):
        objective.gradient([0])
        forward, loss, backward = spent(*FORWARD), spent("loss"), spent("blend_backward", "project_backward")
        objective.jvp([0], tangent)
        ratios.setdefault("jvp", []).append(spent("jvp") / (forward + loss))
        ResidualProbes(1).estimate(objective, [0], generator)
        ratios.setdefault("residual_probe", []).append(spent("blend_backward", "project_backward") / backward)
        Exact().estimate(objective, [0], None)
        ratios.setdefault("exact_diagonal", []).append(spent("pixel_curvature", "curvature") / (loss + backward))
        objective.gauss_newton_blocks([0])
        ratios.setdefault("blocks", []).append(spent("pixel_curvature", "curvature") / (loss + backward))
        for name, cross in (("statistics", False), ("statistics_with_cross", True)):
            objective.statistics([0], absolute_error, cross)
            ratios.setdefault(name, []).append(spent("statistics") / spent(*FORWARD))
        for name, absolute in (("observed", False), ("observed_absolute", True)):
            objective.observed = GradientStatistics(objective.parameters, absolute=absolute, splitting=True)
            objective.gradient([0])
            ratios.setdefault(name, []).append(spent("blend_backward", "project_backward") / backward)
        objective.observed = None
    return {name: statistics.median(values) for name, values in ratios.items()}


def optimizers(data: Path) -> Iterator[Measurement]:
    """Seconds of ten steps, one look at the curvature among them, over those of ten of Adam's; states over Adam's."""
    bars = {"sign-tr": 1.25, "adam-tr": 1.25, "tr2": 1.25, "block-gn": 1.5}
    for key, load in timed_loads(data):
        runs: dict[str, tuple[PhotometricObjective, Optimizer]] = {}
        for name in ("adam", *bars):
            objective, entry = objective_of(load), find_optimizer(name)
            runs[name] = objective, entry.optimizer(objective, entry.options(), torch.Generator())
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        # Short rounds in turn, so that a noisy minute falls on all.
        for turn in range(12):
            for name, (objective, optimizer) in runs.items():
                spent = _ten_steps(load, objective, optimizer, turn)
                if turn >= 2:
                    seconds[name].append(spent)
        for name, bar in bars.items():
            ratios = [ours / adams for ours, adams in zip(seconds[name], seconds["adam"], strict=True)]
            yield Measurement(f"{key}.{name}_step", statistics.median(ratios), "Adam steps", "lower", bar, gated=True)
        floats = {name: _state_floats(optimizer) / len(load.cloud) for name, (_, optimizer) in runs.items()}
        yield Measurement(f"{key}.tr2_state", floats["tr2"] / floats["adam"], "Adam states", "lower", 2.0)
        more = floats["block-gn"] - floats["adam"]
        yield Measurement(f"{key}.block-gn_state", more, "floats a Gaussian more than Adam", "lower", 120.0)


def _ten_steps(load: Load, objective: PhotometricObjective, optimizer: Optimizer, turn: int) -> float:
    spent = 0.0
    for step in range(REFRESH):
        # The scene is put back each time: what is timed is this load and not what it turns into.
        for name, tensor in load.cloud.tensors.items():
            objective.cloud.tensors[name].copy_(tensor)
        began = time.perf_counter()
        optimizer.step([step % len(load.cameras)], Progress(REFRESH * turn + step, 30_000))
        spent += time.perf_counter() - began
    return spent


def _state_floats(optimizer: Optimizer) -> int:
    return sum(value.numel() for value in optimizer.state().tensors.values())
