"""What is measured: each function yields measurements of one question."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.curvature import optimizers, oracles
from benchmarks.learned import learned
from benchmarks.loads import Load, fox, garden, made_up
from benchmarks.measurement import Measurement
from benchmarks.timing import StepTimes, ceiling, median_seconds, time_steps
from splatopt.core.native import adam_step, default_threads
from splatopt.raster.cpu import NativeRenderer, native_loss, native_target
from splatopt.raster.problem import ViewProblem
from splatopt.raster.types import RenderOptions

ENOUGH_PIXELS = 640.0  # at which 75,000 Gaussians reach 52 million pixels
LARGE_PIXELS = 100.0  # that one of a million reaches; a garden's reach some 120


def _step(key: str, times: StepTimes, top: float, bar: float | None) -> Iterator[Measurement]:
    blend = times.passes["blend"]
    yield Measurement(f"{key}.step", times.step * 1e3, "ms", "lower", bar)
    yield Measurement(f"{key}.cpu", times.cpu * 1e3, "ms of CPU", "lower")
    for name, seconds in times.passes.items():
        if seconds:  # Adam asks for no JVP and no curvature
            yield Measurement(f"{key}.{name}", seconds * 1e3, "ms", "lower")
    adam = times.step - times.forward - times.passes["loss"] - times.backward
    yield Measurement(f"{key}.adam_and_python", adam * 1e3, "ms", "lower")
    yield Measurement(f"{key}.relevant_pairs", times.relevant_pairs / 1e6, "million", "lower")
    yield Measurement(f"{key}.blended_pairs", times.blended_pairs / 1e6, "million", "lower")
    yield Measurement(f"{key}.blending_in_step", times.blended_pairs / blend / top, "of ceiling", "higher")
    whole = (times.forward + times.backward) / times.forward
    yield Measurement(f"{key}.forward_and_backward", whole, "forwards", "lower", 4.0, gated=True)


def _blending(key: str, load: Load) -> Iterator[Measurement]:
    """Forward blending of one view again and again, the bare loop measured between."""
    renderer = NativeRenderer()
    options = RenderOptions(sh_degree=load.sh_degree)
    shares = []
    for _ in range(5):
        top = ceiling()
        seconds = []
        for _ in range(12):
            renderer.draw(load.cloud, load.cameras[0], options)
            seconds.append(renderer.rasterizer.timings["blend"])
        shares.append(renderer.rasterizer.blended_pairs() / statistics.median(seconds) / top)
    yield Measurement(f"{key}.blending", statistics.median(shares), "of ceiling", "higher", 0.5, gated=True)


def blending(data: Path) -> Iterator[Measurement]:
    """Pixel-Gaussian pairs that matter (α ≥ 1/255, ray not ended) a second, as a share of the bare loop's."""
    if (data / "fox").is_dir():
        yield from _blending("fox", fox(data))
    if (data / "garden_workload.npz").is_file():
        yield from _blending("garden", garden(data))
    yield from _blending("heavy", made_up(75_000, 800, 533, ENOUGH_PIXELS))


def steps(data: Path) -> Iterator[Measurement]:
    """Whole training steps on fox, on the garden load and on 75,000 Gaussians with about 51 million pairs."""
    top = ceiling()
    yield Measurement("ceiling.all_threads", top / 1e9, "billion pairs/s", "higher")
    if (data / "fox").is_dir():
        yield from _step("fox", time_steps(fox(data)), top, 15.0)
    if (data / "garden_workload.npz").is_file():
        yield from _step("garden", time_steps(garden(data)), ceiling(), None)
    yield from _step("heavy", time_steps(made_up(75_000, 800, 533, ENOUGH_PIXELS)), ceiling(), 110.0)


def threads(data: Path) -> Iterator[Measurement]:
    """Two threads against one, on the steps above."""
    loads = [made_up(75_000, 800, 533, ENOUGH_PIXELS)]
    if (data / "fox").is_dir():
        loads.insert(0, fox(data))
    for key, load in zip(("fox", "heavy")[-len(loads) :], loads, strict=True):
        # Short rounds in turn, so that a noisy minute falls on both.
        rounds = [(time_steps(load, 1, 8).step, time_steps(load, 2, 8).step) for _ in range(11)]
        speedup = statistics.median(one / two for one, two in rounds)
        yield Measurement(f"{key}.two_threads", speedup, "times one thread", "higher", 1.8, gated=True)


def scaling(_: Path) -> Iterator[Measurement]:
    """Time per pair from 1e4 to 2e6 Gaussians; linear growth keeps it level."""
    per_pair = []
    for count in (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000):
        times = time_steps(made_up(count, 1280, 720, 200.0, sh_degree=0), repeats=30 if count < 300_000 else 10)
        passes = times.forward + times.backward
        per_pair.append(passes / times.blended_pairs)
        yield Measurement(f"scaling.{count}.pairs", times.blended_pairs / 1e6, "million", "lower")
        yield Measurement(f"scaling.{count}.forward_and_backward", passes * 1e3, "ms", "lower")
        yield Measurement(f"scaling.{count}.per_pair", per_pair[-1] * 1e9, "ns/pair", "lower")
    yield Measurement("scaling.last_of_first", per_pair[-1] / per_pair[0], "times per pair", "lower", 1.25, gated=True)


def large(_: Path) -> Iterator[Measurement]:
    """One and two million Gaussians of degree 3 at 1600x1067: a step's time, and peak memory above ``import torch``."""
    empty = _peak_mebibytes("")
    for count in (1_000_000, 2_000_000):
        times = time_steps(made_up(count, 1600, 1067, LARGE_PIXELS), repeats=8)
        passes = times.forward + times.backward
        yield Measurement(f"large.{count}.step", times.step * 1e3, "ms", "lower")
        yield Measurement(f"large.{count}.pairs", times.blended_pairs / 1e6, "million", "lower")
        yield Measurement(f"large.{count}.per_pair", passes / times.blended_pairs * 1e9, "ns/pair", "lower")
        for name, bar in (("adam", 2098.0), ("block-gn", 2766.0)):
            body = _STEPS.format(count=count, pixels=LARGE_PIXELS, name=name)
            above = _peak_mebibytes(body) - empty
            bar_here = bar if count == 1_000_000 else None
            yield Measurement(f"large.{count}.{name}_memory", above, "MiB above torch", "lower", bar_here)


def peers(_: Path) -> Iterator[Measurement]:
    """Adam against torch's fused and for-each ones, the loss against torch's convolutions."""
    count = 75_000 * 59
    parameter, gradient, exp_avg, exp_avg_sq = torch.full((4, count), 0.01)
    ours = median_seconds(
        lambda: adam_step(
            parameter, gradient, exp_avg, exp_avg_sq, rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-15, step=3
        )
    )
    leaf = torch.nn.Parameter(parameter.clone())
    leaf.grad = gradient
    for kind in ("fused", "foreach"):
        optimizer = torch.optim.Adam([leaf], lr=1e-3, eps=1e-15, **{kind: True})
        theirs = _with_all_threads(optimizer.step)
        yield Measurement(f"adam.of_torch_{kind}", ours / theirs, "times torch", "lower", 1.1, gated=True)
    load = made_up(1000, 480, 270, 50.0, sh_degree=0)
    renderer = NativeRenderer()
    renderer.render(load.cloud, load.cameras[0], RenderOptions())
    problem = ViewProblem(load.cameras[0], load.targets[0])
    target, rule = native_target(problem), native_loss(problem)
    ours = median_seconds(lambda: renderer.rasterizer.loss(target, rule))
    image = torch.rand(270, 480, 3)

    def with_torch() -> None:
        problem.loss_gradient(image)

    yield Measurement("loss.of_torch", ours / _with_all_threads(with_torch), "times torch", "lower", 1.0, gated=True)


def _with_all_threads(function: Callable[[], object]) -> float:
    """Median seconds of something that PyTorch computes, with the threads that it would have by itself."""
    torch.set_num_threads(default_threads())
    try:
        return median_seconds(function)
    finally:
        torch.set_num_threads(1)


# The peak as the kernel keeps it for this program; ru_maxrss would carry over the parent's.
_PEAK = """
import torch
{body}
import pathlib, re
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024)
"""

_TRAIN = """
import splatopt, tempfile, pathlib
with tempfile.TemporaryDirectory() as folder:
    splatopt.train({capture!r}, steps=200, out=pathlib.Path(folder) / "run", callbacks=())
"""

_RENDER = """
import pathlib
from benchmarks.loads import garden
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.types import RenderOptions
load = garden(pathlib.Path({data!r}))
renderer = NativeRenderer()
for camera in load.cameras:
    renderer.render(load.cloud, camera, RenderOptions())
"""


_STEPS = """
import torch
from benchmarks.loads import made_up
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.photometric import PhotometricObjective
load = made_up({count}, 1600, 1067, {pixels})
options = RenderOptions(sh_degree=load.sh_degree)
objective = PhotometricObjective(load.cloud, load.cameras, load.targets, NativeRenderer(), options)
entry = find_optimizer({name!r})
optimizer = entry.optimizer(objective, entry.options())
for step in range(3):
    optimizer.step([0], Progress(step, 30_000))
"""


def _peak_mebibytes(body: str) -> float:
    result = subprocess.run([sys.executable, "-c", _PEAK.format(body=body)], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def memory(data: Path) -> Iterator[Measurement]:
    """Peak memory above ``import torch`` of training fox and of rendering the garden load."""
    empty = _peak_mebibytes("")
    if (data / "fox").is_dir():
        train = _peak_mebibytes(_TRAIN.format(capture=str(data / "fox")))
        yield Measurement("fox.train_memory", train - empty, "MiB above torch", "lower", 500.0)
    if (data / "garden_workload.npz").is_file():
        render = _peak_mebibytes(_RENDER.format(data=str(data)))
        yield Measurement("garden.render_memory", render - empty, "MiB above torch", "lower", 400.0)


QUESTIONS = {
    "oracles": oracles,
    "optimizers": optimizers,
    "learned": learned,
    "blending": blending,
    "steps": steps,
    "threads": threads,
    "scaling": scaling,
    "large": large,
    "peers": peers,
    "memory": memory,
}
