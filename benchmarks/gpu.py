"""All that is to be shown on a GPU, in one program: ``python -m benchmarks.gpu --data ../shared/data``.

Compiles and checks the kernels (the tests marked ``gpu``), then times forward, forward and backward, a whole Adam step,
Jacobian products, the exact diagonal and tr2's step on the garden load and on 1 and 4 million Gaussians at 1920x1080,
against gsplat in the same process where that is installed and against the floor counted from bytes and operations;
last, held-out PSNR against seconds on fox_960. Medians of CUDA events. It ends within ten minutes: what there is
no time left for is named. ``--rehearse`` runs the same on a dozen Gaussians, on Triton's interpreter where there is
no GPU (``TRITON_INTERPRET=1``), to show that the program works; none of its numbers means anything.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import splatopt.optim  # noqa: F401 - registers the optimizers
from benchmarks.loads import Load, garden, made_up
from benchmarks.measurement import Measurement
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.raster.types import RenderOptions
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.report import read_metrics

LIMIT = 570.0
"""Seconds after which nothing new is begun."""

FOX_SECONDS = (10, 20, 40)
"""When fox_960's test views are scored; the last one ends the training. Unit: seconds of training."""

REFRESH = 10
"""Steps from one look at the curvature to the next."""

BYTES_OF_PARAMETERS = 4 * 59
BYTES_OF_SPLAT = 52
BYTES_OF_ENTRY = 2 * (2 + 4) + 4 + 40
"""Key and owner written and sorted once, then index and splat read by the tile."""
OPERATIONS_OF_PAIR = 30
"""Of a pixel and an entry of its tile: 12 to the exponent, one exponential as 8, 10 to blend."""


@dataclass(frozen=True)
class Bench:
    """Where and how often things are timed."""

    device: torch.device
    repeats: int = 20
    warm_up: int = 3

    def median(self, function: Callable[[], object]) -> float:
        """Median milliseconds of a call, the device's work included."""
        for _ in range(self.warm_up):
            function()
        return statistics.median(self._once(function) for _ in range(self.repeats))

    def _once(self, function: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            began = time.perf_counter()
            function()
            return (time.perf_counter() - began) * 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak(self, function: Callable[[], object]) -> float:
        """Most mebibytes that a call takes beside what was there before it; 0 where there is no GPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def on_device(load: Load, device: torch.device) -> Load:
    """The load with its tensors on a device."""
    cloud = load.cloud.map(lambda tensor: tensor.to(device).contiguous())
    return Load(load.name, cloud, load.cameras, tuple(target.to(device) for target in load.targets), load.sh_degree)


class Ours:
    """The passes of the Triton renderer on one view of a load."""

    def __init__(self, load: Load) -> None:
        from splatopt.raster.gpu import TritonRenderer

        self.load, self.renderer = load, TritonRenderer()
        self.options = RenderOptions(sh_degree=load.sh_degree)
        self.gradient = {name: torch.zeros_like(tensor) for name, tensor in load.cloud.tensors.items()}
        camera = load.cameras[0]
        generator = torch.Generator().manual_seed(0)
        self.image_gradient = torch.randn(camera.height, camera.width, 3, generator=generator).to(load.cloud.means)
        self.drawn = self.forward()
        self.tangent = {name: torch.randn_like(value) * 1e-3 for name, value in load.cloud.tensors.items()}

    def forward(self) -> Any:
        """Project, list and blend."""
        self.drawn = self.renderer.draw(self.load.cloud, self.load.cameras[0], self.options)
        return self.drawn

    def backward(self) -> None:
        """From the image's gradient to the parameters'."""
        self.drawn.pull(self.image_gradient, self.gradient, 1.0, overwrite=True)

    def both(self) -> None:
        """Forward, then backward."""
        self.forward()
        self.backward()

    def jvp(self) -> None:
        """The tangent of the image that was drawn."""
        self.drawn.push(self.tangent)

    def diagonal(self) -> None:
        """The exact diagonal for the image that was drawn."""
        from splatopt.kernels.curvature import project_diagonal

        sums = self.drawn.moments(self.image_gradient.abs(), cross=self.drawn.cloud.degree > 0)
        diagonal, one = list(self.gradient.values()), self.drawn.factor(1.0)
        view = (self.drawn.numbers, self.drawn.cloud, self.drawn.splats)
        project_diagonal(*view, sums, diagonal, one, antialiased=False, overwrite=True)

    def objective(self) -> PhotometricObjective:
        """The load as optimizers see it."""
        load = self.load
        return PhotometricObjective(load.cloud.clone(), load.cameras, load.targets, self.renderer, self.options)


class Gsplat:
    """gsplat on the same view: rasterization, the same loss, PyTorch's fused Adam."""

    def __init__(self, load: Load) -> None:
        self.load, self.options = load, RenderOptions(sh_degree=load.sh_degree)
        self.rasterization = importlib.import_module("gsplat").rasterization
        self.arguments = importlib.import_module("splatopt.raster.gsplat_peer").rasterization_arguments
        self.leaves = {name: value.clone().requires_grad_() for name, value in load.cloud.tensors.items()}
        self.adam = torch.optim.Adam(self.leaves.values(), lr=1e-5, eps=1e-15, fused=True)

    def image(self) -> torch.Tensor:
        """The image with its graph."""
        return self.rasterization(**self.arguments(self.leaves, self.load.cameras[0], self.options, "RGB"))[0][0]

    def forward(self) -> torch.Tensor:
        """The image alone."""
        with torch.no_grad():
            return self.image()

    def both(self) -> None:
        """Forward and backward, from a gradient of ones."""
        image = self.image()
        image.backward(torch.ones_like(image))
        self.adam.zero_grad()

    def step(self) -> None:
        """A training step."""
        from splatopt.raster import gpu_loss

        image = self.image()
        gradient = torch.empty_like(image)
        gpu_loss.view_loss(image.detach().contiguous(), self.load.targets[0], 0.2, gradient)
        image.backward(gradient)
        self.adam.step()
        self.adam.zero_grad()


def gsplat_of(load: Load) -> Gsplat | None:
    """The peer's side, or None where it or its glue is not installed."""
    if importlib.util.find_spec("gsplat") is None or importlib.util.find_spec("splatopt.raster.gsplat_peer") is None:
        return None
    return Gsplat(load)


def steps_of(objective: PhotometricObjective, name: str, count: int) -> Callable[[], None]:
    """A call that takes ``count`` steps of an optimizer on the first view."""
    entry = find_optimizer(name)
    optimizer = entry.optimizer(objective, entry.options(), torch.Generator())
    taken = 0

    def take() -> None:
        nonlocal taken
        for _ in range(count):
            optimizer.step([0], Progress(taken, 30_000))
            taken += 1

    return take


def device_limits(bench: Bench) -> tuple[float, float]:
    """Bytes and float32 operations a millisecond that PyTorch reaches here: a copy, and a product of matrices."""
    size = 2**26 if bench.device.type == "cuda" else 2**16
    source, side = torch.ones(size, device=bench.device), 4096 if bench.device.type == "cuda" else 64
    target, square = torch.empty_like(source), torch.ones(side, side, device=bench.device)
    copied = bench.median(lambda: target.copy_(source))
    multiplied = bench.median(lambda: square @ square)
    return 8 * size / copied, 2 * side**3 / multiplied


def passes(load: Load, bench: Bench, limits: tuple[float, float]) -> Iterator[Measurement]:
    """Our passes, gsplat's, their ratios and the floor."""
    key = load.name
    ours = Ours(load)
    forward, both = bench.median(ours.forward), bench.median(ours.both)
    backward = bench.median(ours.backward)
    yield Measurement(f"{key}.forward", forward, "ms", "lower")
    yield Measurement(f"{key}.forward_and_backward", both, "ms", "lower")
    lists, blended, camera = ours.drawn.lists, ours.drawn.blended, load.cameras[0]
    entries, pixels = lists.gaussians.numel(), camera.height * camera.width
    moved = len(load.cloud) * (BYTES_OF_PARAMETERS + BYTES_OF_SPLAT) + entries * BYTES_OF_ENTRY + 20 * pixels
    work = float(blended.last.sum()) * OPERATIONS_OF_PAIR
    floor = max(moved / limits[0], work / limits[1])
    yield Measurement(f"{key}.entries", entries / 1e6, "million", "lower")
    yield Measurement(f"{key}.forward_of_floor", forward / floor, "times the floor", "lower")
    yield Measurement(f"{key}.jvp", bench.median(ours.jvp) / forward, "forwards", "lower", 1.5)
    yield Measurement(f"{key}.exact_diagonal", bench.median(ours.diagonal) / backward, "backwards", "lower", 1.5)
    adam_step = steps_of(ours.objective(), "adam", REFRESH)
    adam, peak = bench.median(adam_step) / REFRESH, bench.peak(adam_step)
    yield Measurement(f"{key}.adam_step", adam, "ms", "lower")
    yield Measurement(f"{key}.adam_step_peak", peak, "MiB", "lower")
    tr2 = bench.median(steps_of(ours.objective(), "tr2", REFRESH)) / REFRESH
    yield Measurement(f"{key}.tr2_step", tr2 / adam, "Adam steps", "lower", 1.15)
    theirs = gsplat_of(load)
    if theirs is None:
        return
    difference = float((theirs.forward() - ours.drawn.blended.image).abs().max())
    yield Measurement(f"{key}.image_minus_gsplats", difference, "at most", "lower", 1e-4)
    yield Measurement(f"{key}.forward_of_gsplat", forward / bench.median(theirs.forward), "gsplats", "lower", 1.0)
    yield Measurement(f"{key}.both_of_gsplat", both / bench.median(theirs.both), "gsplats", "lower", 1.0)
    yield Measurement(f"{key}.adam_of_gsplat", adam / bench.median(theirs.step), "gsplats", "lower", 1.0)
    yield Measurement(f"{key}.peak_of_gsplat", peak / bench.peak(theirs.step), "gsplats", "lower", 1.0)


def fox(data: Path, optimizer: str) -> Iterator[Measurement]:
    """Held-out PSNR of fox_960 after so many seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "splatopt", "train", str(data / "fox_960"), "--optimizer", optimizer]
        command += ["--renderer", "triton", "--steps", "7000", "--max-seconds", str(FOX_SECONDS[-1]), "--out", str(out)]
        command += ["--eval-at-seconds", *(str(seconds) for seconds in FOX_SECONDS)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        if result.returncode:
            raise SystemExit(f"fox_960 with {optimizer} failed: {result.stderr.strip()[-500:]}")
        for line in read_metrics(out / "metrics.jsonl"):
            if "test_psnr" in line:
                name = f"fox_960.{optimizer}.{line['seconds']:.0f}_s.step_{line['step']}"
                yield Measurement(name, line["test_psnr"], "dB", "higher")


def checks() -> Measurement:
    """The tests that are marked ``gpu``: every kernel against the float64 reference."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels", "tests/raster/test_gpu.py"]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=LIMIT)
    print(result.stdout[-2000:] if result.returncode else result.stdout.splitlines()[-1])
    return Measurement("checks.failed", float(result.returncode != 0), "0 is none", "lower", 0.5)


def loads(data: Path, *, rehearse: bool) -> Iterator[Callable[[], Load]]:
    """What is timed, made when its turn comes."""
    if rehearse:
        yield lambda: made_up(12, 24, 20, 60.0)
        return
    if (data / "garden_workload.npz").is_file():
        yield lambda: garden(data)
    yield lambda: made_up(1_000_000, 1920, 1080, 200.0)
    yield lambda: made_up(4_000_000, 1920, 1080, 60.0)


def measure(data: Path, bench: Bench, *, rehearse: bool) -> Iterator[Measurement]:
    """Everything, as long as there is time."""
    began = time.perf_counter()
    if not rehearse:
        yield checks()
    limits = device_limits(bench)
    for make in loads(data, rehearse=rehearse):
        if time.perf_counter() - began > LIMIT:
            print("no time left for a larger load")
            break
        yield from passes(on_device(make(), bench.device), bench, limits)
    for optimizer in ("adam", "tr2", "block-gn") if (data / "fox_960").is_dir() and not rehearse else ():
        if time.perf_counter() - began + 2 * FOX_SECONDS[-1] > LIMIT:
            print(f"no time left for fox_960 with {optimizer}")
            break
        yield from fox(data, optimizer)


def show(measured: list[Measurement], title: str) -> None:
    """Print the table."""
    table = Table("what", "value", "unit", "bar", title=title)
    for entry in measured:
        bar = "" if entry.bar is None else f"{entry.bar:g} {'reached' if entry.reached else 'missed'}"
        table.add_row(entry.name, f"{entry.value:.4g}", entry.unit, bar)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real scenes")
    parser.add_argument("--rehearse", action="store_true", help="a dozen Gaussians, no checks, no scene")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.rehearse):
        print(
            f"benchmarks.gpu: this PyTorch ({torch.__version__}) finds no GPU, and all of it is timed on one",
            file=sys.stderr,
        )
        sys.exit(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, 1, 0) if arguments.rehearse else Bench(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: a rehearsal, no number counts"
    show(list(measure(arguments.data, bench, rehearse=arguments.rehearse)), f"{name}, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
