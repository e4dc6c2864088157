"""Timing a function, and timing a load's whole training step with its passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import splatopt.optim  # noqa: F401 - registers the optimizers
from benchmarks.loads import Load
from splatopt.core import native
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.raster.cpu import NativeRenderer, native_constants
from splatopt.raster.types import RenderOptions
from splatopt.scene.photometric import PhotometricObjective

FORWARD = ("project", "sort", "bin", "blend")


def median_seconds(function: Callable[[], object], repeats: int = 30, warm_up: int = 5) -> float:
    """Median wall-clock seconds of ``function`` over ``repeats`` calls after ``warm_up`` of them."""
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@dataclass(frozen=True)
class StepTimes:
    """Medians over the steps of one load.

    Attributes:
        step: Seconds of a whole training step: render, loss, backward, Adam.
        passes: Seconds of each native pass.
        relevant_pairs: Pixel-Gaussian pairs a view with α ≥ 1/255, mean over the views.
        blended_pairs: Those of them whose ray had not ended.
        threads: Threads that worked.
        cpu: CPU seconds of a whole step, all threads together: comparable on a machine that does other things too.
    """

    step: float
    passes: dict[str, float]
    relevant_pairs: float
    blended_pairs: float
    threads: int
    cpu: float

    @property
    def forward(self) -> float:
        """Seconds of rendering: projection, sort, lists and blending."""
        return sum(self.passes[name] for name in FORWARD)

    @property
    def backward(self) -> float:
        """Seconds of the gradient, the loss not counted."""
        return self.passes["blend_backward"] + self.passes["project_backward"]


def time_steps(load: Load, threads: int = 0, repeats: int = 40, isa: str = "auto") -> StepTimes:
    """Train ``load`` with Adam for ``repeats`` steps after a warm-up of 8, one view a step in turn."""
    renderer = NativeRenderer(threads, isa)
    cloud = load.cloud.clone()
    objective = PhotometricObjective(
        cloud, load.cameras, load.targets, renderer, RenderOptions(sh_degree=load.sh_degree)
    )
    entry = find_optimizer("adam")
    optimizer = entry.optimizer(objective, entry.options())
    relevant, blended = [], []
    for camera in load.cameras:
        renderer.render(cloud, camera, objective.options)
        relevant.append(renderer.rasterizer.relevant_pairs())
        blended.append(renderer.rasterizer.blended_pairs())
    samples: list[tuple[float, float, dict[str, float]]] = []
    for step in range(8 + repeats):
        # The scene is put back each time: what is timed is this load and not what it turns into.
        for name, tensor in load.cloud.tensors.items():
            cloud.tensors[name].copy_(tensor)
        began, cpu_began = time.perf_counter(), time.process_time()
        optimizer.step([step % len(load.cameras)], Progress(step, 30_000))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        if step >= 8:
            samples.append((seconds, cpu, renderer.rasterizer.timings))
    names = samples[0][2]
    return StepTimes(
        step=statistics.median(seconds for seconds, _, _ in samples),
        passes={name: statistics.median(passes[name] for _, _, passes in samples) for name in names},
        relevant_pairs=statistics.mean(relevant),
        blended_pairs=statistics.mean(blended),
        threads=renderer.threads,
        cpu=statistics.median(cpu for _, cpu, _ in samples),
    )


def ceiling(threads: int = 0) -> float:
    """Pixel-Gaussian pairs a second that all threads together blend in a bare loop, median of nine."""
    workers = native.workers(threads)
    return statistics.median(workers.blend_ceiling(native_constants(), 2000) for _ in range(9))
