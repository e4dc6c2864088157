"""Before a fit begins: how much memory it will need, by trying a few of its steps on few examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from splatopt.core import devices
from splatopt.core.checks import InputError
from splatopt.core.devices import gibibytes
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.fields.image import ImageTask
from splatopt.fields.occupancy import OccupancyTask
from splatopt.fields.radiance import RadianceTask
from splatopt.fields.task import Task
from splatopt.fit.config import FitConfig
from splatopt.optim.bridge import Feed, TorchOptimizer
from splatopt.optim.dry_run import SECONDS, STEPS, CountedMemory, count_memory
from splatopt.optim.field_optimizers import FieldLbfgs, find_field_optimizer, make_field_optimizer
from splatopt.runs.memory import GIBIBYTE, SCORING, MemoryEstimate

_FEW = 2
"""Examples of a step that shows what the optimizer takes."""

_GRID = 8
"""Bytes a point of the grid of an occupancy: its logit, and again with a border around the grid."""

_SURFACE = 1000
"""Bytes of a surface for each point of a side of its grid: some three corners and six triangles, and their copies."""

_SOME = 2048
"""Points of the network, at most, where what examples take is counted; beyond, it grows as they do."""


def check_field_memory(config: FitConfig, task: Task, batch: int) -> MemoryEstimate:
    """Return what the fit will need; the field stays as it is, bit for bit.

    Args:
        config: What is done, resolved.
        task: What is fitted.
        batch: Examples a step.

    Raises:
        InputError: It needs more than ``--max-memory``, or than what is free; says how much.
    """
    free = devices.free_memory(torch.device("cpu"))
    allowed = round(config.processes.max_memory * GIBIBYTE) or free
    kept = {name: value.clone() for name, value in task.parameters.items()}
    try:
        needed = _estimate(config, task, batch, min(allowed, free))
    finally:
        for name, value in task.parameters.items():
            value.copy_(kept[name])
        for leaf in task.leaves.values():
            leaf.grad = None
    if needed.total <= allowed:
        return needed
    have = (
        f"--max-memory allows {config.processes.max_memory:g}"
        if config.processes.max_memory
        else f"{gibibytes(allowed)} are free"
    )
    raise InputError(f"{needed.sentence}, and {have}; {_remedies(task)}")


def _estimate(config: FitConfig, task: Task, batch: int, max_bytes: int) -> MemoryEstimate:
    """Count what the fit takes, trying no more than ``max_bytes`` bytes."""
    generator = torch.Generator().manual_seed(config.schedule.seed)
    made: list[Optimizer] = []

    def step(examples: int, steps: int) -> None:
        begun = make_field_optimizer(
            config.schedule.optimizer, task, config.network.field, config.schedule.optimizer_options, generator
        )
        for done in range(steps):
            begun.step(draw(examples), Progress(done, config.schedule.steps or steps))
        made.append(begun)

    def draw(examples: int) -> Any:
        return task.draw(torch.arange(examples) % task.size, generator)

    def count(work: Callable[[], Any], who: str = config.schedule.optimizer) -> int:
        return count_memory(who, work, CountedMemory(max_bytes, SECONDS), _remedies(task))

    def evaluate(examples: int) -> None:
        with torch.no_grad():
            task.residual(draw(examples))

    few = max(2, _SOME // (task.samples if isinstance(task, RadianceTask) else 1))
    some = max(2, min(batch, few))
    kind = find_field_optimizer(config.schedule.optimizer).entry.optimizer
    if issubclass(kind, TorchOptimizer) and kind.feed is Feed.GRAPH:
        evaluated = _grown(lambda examples: count(lambda: step(examples, 1)), some, batch)
        peak = 0
    else:
        evaluated = _grown(lambda examples: count(lambda: task.gradient(draw(examples))), some, batch)
        peak = count(lambda: step(_FEW, STEPS))
    chunk = min(task.chunk, max(_evaluated(task, config.scoring.resolution), 1))
    scored = _grown(lambda examples: count(lambda: evaluate(examples), "scoring"), min(chunk, few), chunk)
    now = made[0].state_bytes()
    parameters = sum(value.numel() * value.element_size() for value in task.parameters.values())
    held = max(now, _history(made[0], config, -(-task.size // batch)) * parameters)
    return MemoryEstimate(
        {
            f"optimizer {config.schedule.optimizer}": held,
            "steps": max(peak - now, evaluated, 2 * (parameters + held)),
            "scoring": SCORING * _pixels(task) + scored,
            "mesh": _mesh(task, config.scoring.resolution),
        },
        verb="fitting",
    )


def _history(optimizer: Optimizer, config: FitConfig, per_epoch: int) -> int:
    """Copies of the parameters that L-BFGS keeps once its history is full or the fit over; 0 of others."""
    if not isinstance(optimizer, FieldLbfgs):
        return 0
    steps = config.schedule.steps or (config.schedule.epochs or 1) * per_epoch
    return 2 * min(optimizer.options.history, steps) + 4


def _mesh(task: Task, resolution: int) -> int:
    """Bytes of the grid of an occupancy and of the surface in it."""
    return _GRID * (resolution + 2) ** 3 + _SURFACE * resolution**2 if isinstance(task, OccupancyTask) else 0


def _remedies(task: Task) -> str:
    """What takes less memory, as the end of a sentence."""
    also = {OccupancyTask: "--resolution", RadianceTask: "--samples"}.get(type(task))
    smaller = f"--batch, --width or {also}" if also else "--batch or --width"
    return f"take a smaller {smaller}, an optimizer that keeps less, or allow more with --max-memory"


def _grown(count: Callable[[int], int], some: int, batch: int) -> int:
    """Return the bytes that ``batch`` examples take, from what ``some`` do and, where those are fewer, half of them."""
    whole = count(some)
    return whole if batch <= some else whole + (whole - count(some // 2)) * (batch - some) // (some - some // 2)


def _evaluated(task: Task, resolution: int) -> int:
    """Examples of the largest whole that is evaluated outside training."""
    if isinstance(task, OccupancyTask):
        return max(len(task.held_out.points), resolution**2)
    return _pixels(task)


def _pixels(task: Task) -> int:
    """Pixels of the largest picture that is scored."""
    if isinstance(task, ImageTask):
        return task.size
    if isinstance(task, RadianceTask):
        return max(task.cameras[view].width * task.cameras[view].height for view in task.test)
    return 0
