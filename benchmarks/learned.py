"""What the learned step costs beside the render that it goes with."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.curvature import objective_of, timed_loads
from benchmarks.loads import Load
from benchmarks.measurement import Measurement
from benchmarks.timing import median_seconds
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import Progress
from splatopt.core.state import OptimizerState
from splatopt.meta.inner import InnerRates
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.neighbours import NEIGHBOUR_REFRESH, nearest_others
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.weights import save_weights
from splatopt.scene.photometric import PhotometricObjective

_STEPS, _WARM_UP = 24, 4
"""Together fewer than lie between two searches for neighbours, which are timed on their own."""


def learned(data: Path) -> Iterator[Measurement]:
    """Seconds of the step beyond its gradient, its share of a search for neighbours among them, over the gradient's."""
    with tempfile.TemporaryDirectory() as folder:
        for size in ("tiny", "small"):
            # What a step costs does not depend on what its network has learned.
            path = Path(folder) / f"{size}.safetensors"
            save_weights(path, LearnedNetwork(SIZES[size]), InnerRates(), {})
            for key, load in timed_loads(data):
                for views in (1, 8):
                    name, bar = f"{key}.learned_{size}_{views}", 1.0 if size == "tiny" else None
                    yield Measurement(name, _cost(load, views, path), "of the render", "lower", bar, gated=True)
                    if size == "tiny":
                        grown = _cost(load, views, path, age=1e4)
                        yield Measurement(f"{name}_grown", grown, "of the render", "lower", gated=True)


def _cost(load: Load, views: int, weights: Path, age: float = 0.0) -> float:
    """Median of a step's own seconds over its gradient's, and the search's share, for Gaussians of an ``age``."""
    objective = objective_of(load)
    optimizer = Learned(objective, LearnedOptions(str(weights)))
    begun = optimizer.state()
    optimizer.load_state(replace(begun, tensors=begun.tensors | {"age": torch.full_like(begun.tensors["age"], age)}))
    inner, seconds = objective.gradient, []

    def gradient(batch: Any) -> Evaluation:
        began = time.perf_counter()
        evaluation = inner(batch)
        seconds.append(time.perf_counter() - began)
        return evaluation

    objective.gradient = gradient  # type: ignore[method-assign]
    ratios = []
    for step in range(_WARM_UP + _STEPS):
        # What is timed is this load and not what it turns into.
        _put_back(load, objective, optimizer)
        batch = [(step + view) % len(load.cameras) for view in range(views)]
        began = time.perf_counter()
        optimizer.step(batch, Progress(step, 30_000))
        ratios.append((time.perf_counter() - began) / seconds[-1] - 1)
    render = statistics.median(seconds[_WARM_UP:])
    if age:
        return statistics.median(ratios[_WARM_UP:])
    search = median_seconds(lambda: nearest_others(load.cloud.means, 4), repeats=3, warm_up=1)
    return statistics.median(ratios[_WARM_UP:]) + search / NEIGHBOUR_REFRESH / render


def _put_back(load: Load, objective: PhotometricObjective, optimizer: Learned) -> None:
    """Make average and last iterate, where the gradient is taken, those of the load; all else goes on."""
    for name, tensor in load.cloud.tensors.items():
        objective.cloud.tensors[name].copy_(tensor)
    state = optimizer.state()
    iterate = {f"average.{name}": tensor for name, tensor in load.cloud.tensors.items()}
    optimizer.load_state(OptimizerState(dict(state.tensors) | iterate, state.scalars))
