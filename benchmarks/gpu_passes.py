"""What is timed on a GPU: our passes and steps, gsplat's on the same view, and the floor under both."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from benchmarks.loads import Load
from benchmarks.measurement import Measurement
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.meta.inner import InnerRates
from splatopt.meta.learned import LearnedOptions
from splatopt.meta.neighbours import NEIGHBOUR_REFRESH
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.weights import save_weights
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.types import RenderOptions
from splatopt.scene.photometric import PhotometricObjective

LEARNED_MILLISECONDS = 64.0
"""A whole step of 8 views of some 139,000 Gaussians, as Learn2Splat publishes it."""

PARAMETERS = 4 * 59
SPLAT = 52
ENTRY = 2 * (2 + 4) + 4 + 40
"""Key and owner written and sorted once, then index and splat read by the tile."""
ADAM = 28 * 59
"""Four numbers read and three written for each parameter."""
FORWARD_OPERATIONS, BACKWARD_OPERATIONS = 30, 60
"""Of a pixel and an entry of its tile: 12 to the exponent, one exponential as 8, 10 to blend; backward 30 more to
take the gradient to nine sums, and 10 to add them."""


@dataclass(frozen=True)
class Bench:
    """Where and how often things are timed.

    Attributes:
        device: Where.
        repeats: Calls that a median is of.
        warm_up: Calls before them.
        refresh: Steps from one look at the curvature to the next, timed together.
        search: Steps from one search for neighbours to the next, timed together.
        views: Of a learned step.
    """

    device: torch.device
    repeats: int = 20
    warm_up: int = 3
    refresh: int = 10
    search: int = NEIGHBOUR_REFRESH
    views: int = 8

    def median(self, function: Callable[[], object], max_repeats: int = 1000) -> float:
        """Median milliseconds of a call, the device's work included; of at most ``max_repeats`` calls."""
        for _ in range(min(self.warm_up, max_repeats)):
            function()
        return statistics.median(self._once(function) for _ in range(min(self.repeats, max_repeats)))

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

    def peak(self, make: Callable[[], Callable[[], object]]) -> float:
        """Most mebibytes that is held by what ``make`` makes and by a call of it; 0 where there is no GPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step = make()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


@dataclass(frozen=True)
class Limits:
    """What PyTorch reaches on the device, a millisecond.

    Attributes:
        moved: Bytes, by a copy.
        operations: Float32 operations, by a product of matrices.
    """

    moved: float
    operations: float

    def floor(self, moved: float, operations: float) -> float:
        """Milliseconds that so many bytes or operations take, whichever take longer."""
        return max(moved / self.moved, operations / self.operations)


def device_limits(bench: Bench) -> Limits:
    """Measure a copy of 256 MiB and a product of matrices."""
    size = 2**26 if bench.device.type == "cuda" else 2**16
    source, side = torch.ones(size, device=bench.device), 4096 if bench.device.type == "cuda" else 64
    target, square = torch.empty_like(source), torch.ones(side, side, device=bench.device)
    copied = bench.median(lambda: target.copy_(source))
    multiplied = bench.median(lambda: square @ square)
    return Limits(8 * size / copied, 2 * side**3 / multiplied)


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

    def forward(self) -> Any:
        """Project, list and blend."""
        self.drawn = self.renderer.draw(self.load.cloud, self.load.cameras[0], self.options)
        return self.drawn

    def backward(self) -> None:
        """From the image's gradient to the parameters'."""
        self.drawn.vjp(self.image_gradient, WeightedSum(self.gradient, overwrite=True))

    def both(self) -> None:
        """Forward, then backward."""
        self.forward()
        self.backward()

    @cached_property
    def tangent(self) -> dict[str, torch.Tensor]:
        """A direction."""
        return {name: torch.randn_like(value) * 1e-3 for name, value in self.load.cloud.tensors.items()}

    def jvp(self) -> None:
        """The tangent of the image that was drawn."""
        self.drawn.jvp(self.tangent)

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

    def steps(self, name: str, count: int, views: int = 1, options: Any = None) -> Callable[[], None]:
        """Return a call that takes ``count`` steps of an optimizer over so many views."""
        entry = find_optimizer(name)
        batch = [view % len(self.load.cameras) for view in range(views)]
        optimizer = entry.optimizer(self.objective(), options or entry.options(), torch.Generator())
        taken = 0

        def take() -> None:
            nonlocal taken
            for _ in range(count):
                optimizer.step(batch, Progress(taken, 30_000))
                taken += 1

        return take


class Gsplat:
    """gsplat on the same view: rasterization, the same loss, PyTorch's fused Adam."""

    def __init__(self, load: Load) -> None:
        self.load, self.options = load, RenderOptions(sh_degree=load.sh_degree)
        self.problem = ViewProblem(load.cameras[0], load.targets[0], self.options)
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
        gradient = torch.empty(image.shape, device=image.device)
        gpu_loss.view_loss(image.detach().contiguous(), self.problem, gradient)
        image.backward(gradient)
        self.adam.step()
        self.adam.zero_grad()


Question = tuple[str, Callable[[], Iterator[Measurement]]]


class LoadQuestions:
    """All that is asked of one load, each question by itself, so that one that fails leaves the others."""

    def __init__(self, make: Callable[[], Load], key: str, bench: Bench, limits: Callable[[], Limits]) -> None:
        """Make nothing yet.

        Args:
            make: Makes the load, when the first question is asked.
            key: What begins the names.
            bench: Where it is timed.
            limits: Returns the device's.
        """
        self._make, self._key, self._bench, self._limits = make, key, bench, limits
        self._forward = self._both = self._backward = self._adam = 0.0

    @cached_property
    def _ours(self) -> Ours:
        return Ours(on_device(self._make(), self._bench.device))

    def _measured(self, what: str, value: float, unit: str, bar: float | None = None) -> Measurement:
        return Measurement(f"{self._key}.{what}", value, unit, "lower", bar)

    def questions(self, *, gsplat: bool, learned: bool) -> Iterator[Question]:
        """Yield names and what answers them, in the order in which they are to be asked.

        Args:
            gsplat: Whether the peer is here.
            learned: Whether the learned step is asked for.
        """
        yield f"{self._key}.passes", self._passes
        yield f"{self._key}.adam_step", self._adam_step
        yield f"{self._key}.jvp", self._jvp
        yield f"{self._key}.exact_diagonal", self._diagonal
        yield f"{self._key}.tr2_step", self._tr2
        if gsplat:
            yield f"{self._key}.gsplat", self._against_gsplat
        if learned:
            for size in SIZES:
                yield f"{self._key}.learned_{size}", partial(self._learned, size)

    def release(self) -> None:
        """Let go of the load."""
        self.__dict__.pop("_ours", None)
        if self._bench.device.type == "cuda":
            torch.cuda.empty_cache()

    def _passes(self) -> Iterator[Measurement]:
        ours, median = self._ours, self._bench.median
        self._forward, self._both = median(ours.forward), median(ours.both)
        self._backward = median(ours.backward)
        yield self._measured("forward", self._forward, "ms")
        yield self._measured("forward_and_backward", self._both, "ms")
        yield self._measured("entries", ours.drawn.lists.gaussians.numel() / 1e6, "million")
        forward, both, _ = self._floors()
        yield self._measured("forward_of_floor", self._forward / forward, "times the floor")
        yield self._measured("both_of_floor", self._both / both, "times the floor")

    def _floors(self) -> tuple[float, float, float]:
        """Milliseconds below which forward, forward and backward, and an Adam step cannot fall."""
        ours, limits = self._ours, self._limits()
        lists, blended, camera = ours.drawn.lists, ours.drawn.blended, ours.load.cameras[0]
        rows, entries = len(ours.load.cloud), lists.gaussians.numel()
        pixels, pairs = camera.height * camera.width, float(blended.last.sum())
        moved = rows * (PARAMETERS + SPLAT) + entries * ENTRY + 20 * pixels
        forward = limits.floor(moved, pairs * FORWARD_OPERATIONS)
        # Parameters and splats again, the image's gradient, and the parameters'.
        back = rows * 2 * PARAMETERS + entries * 44 + 20 * pixels
        both = forward + limits.floor(back, pairs * BACKWARD_OPERATIONS)
        return forward, both, both + limits.floor(rows * ADAM + 27 * pixels, 0.0)

    def _adam_step(self) -> Iterator[Measurement]:
        self._adam = self._bench.median(self._ours.steps("adam", self._bench.refresh)) / self._bench.refresh
        yield self._measured("adam_step", self._adam, "ms")
        yield self._measured("adam_step_of_floor", self._adam / self._floors()[2], "times the floor")
        yield self._measured("adam_step_peak", self._peak(), "MiB")

    def _peak(self) -> float:
        """Parameters, gradient and Adam's state count, as they do for the peer."""
        self._ours.drawn = None
        found = self._bench.peak(lambda: self._ours.steps("adam", self._bench.refresh))
        self._ours.forward()
        return found

    def _jvp(self) -> Iterator[Measurement]:
        yield self._measured("jvp", self._bench.median(self._ours.jvp) / self._forward, "forwards", 1.5)

    def _diagonal(self) -> Iterator[Measurement]:
        share = self._bench.median(self._ours.diagonal) / self._backward
        yield self._measured("exact_diagonal", share, "backwards", 1.5)

    def _tr2(self) -> Iterator[Measurement]:
        step = self._bench.median(self._ours.steps("tr2", self._bench.refresh)) / self._bench.refresh
        yield self._measured("tr2_step", step / self._adam, "Adam steps", 1.15)

    def _against_gsplat(self) -> Iterator[Measurement]:
        ours, bench = self._ours, self._bench
        theirs = Gsplat(ours.load)
        difference = float((theirs.forward() - ours.forward().blended.image).abs().max())
        yield Measurement(f"{self._key}.image_minus_gsplats", difference, "at most", "lower", 1e-4)
        yield self._measured("forward_of_gsplat", self._forward / bench.median(theirs.forward), "gsplats", 1.0)
        yield self._measured("both_of_gsplat", self._both / bench.median(theirs.both), "gsplats", 1.0)
        yield self._measured("adam_of_gsplat", self._adam / bench.median(theirs.step), "gsplats", 1.0)
        del theirs
        mine, peak = self._peak(), bench.peak(lambda: Gsplat(ours.load).step)
        yield self._measured("peak_of_gsplat", mine / peak, "gsplats", 1.0)

    def _learned(self, size: str) -> Iterator[Measurement]:
        """A whole step, its share of a search for neighbours among it, and what of it is the views' gradient."""
        ours, bench = self._ours, self._bench
        with tempfile.TemporaryDirectory() as folder:
            # What a step costs does not depend on what its network has learned.
            path = Path(folder) / f"{size}.safetensors"
            save_weights(path, LearnedNetwork(SIZES[size]), InnerRates(), {})
            steps = ours.steps("learned", bench.search, bench.views, LearnedOptions(str(path)))
        step = bench.median(steps, max_repeats=3) / bench.search
        bar = LEARNED_MILLISECONDS if len(ours.load.cloud) > 100_000 else None
        yield self._measured(f"learned_{size}", step, f"ms, {bench.views} views", bar)
        objective = ours.objective()
        views = [view % len(ours.load.cameras) for view in range(bench.views)]
        gradient = bench.median(lambda: objective.gradient(views))
        yield self._measured(f"learned_{size}_of_gradient", step / gradient, f"gradients of {bench.views} views")
