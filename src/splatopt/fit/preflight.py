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
from splatopt.fields.radiance import RadianceTask
from splatopt.fields.task import Task
from splatopt.fit.config import FitConfig
from splatopt.optim.bridge import Feed, TorchOptimizer
from splatopt.optim.dry_run import SECONDS, STEPS, CountedMemory, count_memory
from splatopt.optim.field_optimizers import find_field_optimizer, make_field_optimizer
from splatopt.runs.memory import GIBIBYTE, SCORING, MemoryEstimate

_REMEDIES = "take a smaller --batch or --width, an optimizer that keeps less, or allow more with --max-memory"

_FEW = 2
"""Examples of a step that shows what the optimizer takes."""

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
    raise InputError(f"{needed.sentence}, and {have}; {_REMEDIES}")


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
        return task.draw(torch.arange(min(examples, task.size)), generator)

    def count(work: Callable[[], Any]) -> int:
        return count_memory(config.schedule.optimizer, work, CountedMemory(max_bytes, SECONDS), _REMEDIES)

    some = max(2, min(batch, _SOME // (config.data.samples if isinstance(task, RadianceTask) else 1)))
    kind = find_field_optimizer(config.schedule.optimizer).entry.optimizer
    if issubclass(kind, TorchOptimizer) and kind.feed is Feed.GRAPH:
        evaluated = _grown(lambda examples: count(lambda: step(examples, 1)), some, batch)
        peak = 0
    else:
        evaluated = _grown(lambda examples: count(lambda: task.gradient(draw(examples))), some, batch)
        peak = count(lambda: step(_FEW, STEPS))
    held = made[0].state_bytes()
    parameters = sum(value.numel() * value.element_size() for value in task.parameters.values())
    return MemoryEstimate(
        {
            f"optimizer {config.schedule.optimizer}": held,
            "steps": max(peak - held, evaluated, 2 * (parameters + held)),
            "scoring": SCORING * _pixels(task),
        },
        verb="fitting",
    )


def _grown(count: Callable[[int], int], some: int, batch: int) -> int:
    """Return the bytes that ``batch`` examples take, from what ``some`` do and, where those are fewer, half of them."""
    whole = count(some)
    return whole if batch <= some else whole + (whole - count(some // 2)) * (batch - some) // (some - some // 2)


def _pixels(task: Task) -> int:
    """Pixels of the largest picture that is scored."""
    if isinstance(task, ImageTask):
        return task.size
    if isinstance(task, RadianceTask):
        return max(task.cameras[view].width * task.cameras[view].height for view in task.test)
    return 0
