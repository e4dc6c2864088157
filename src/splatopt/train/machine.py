"""What a run computes with: all that a configuration names by words, found once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.devices import cuda_problem
from splatopt.core.native import default_threads
from splatopt.core.processes import Launch
from splatopt.raster.render import Backend, find_backend, open_backend
from splatopt.raster.renderer import Renderer
from splatopt.train.config import TrainConfig


@dataclass(frozen=True)
class Machine:
    """What one process of a run computes with.

    Attributes:
        renderer: What renders.
        device: Where Gaussians, images and the optimizer's state lie.
        threads: Threads of renderer and optimizer; 0 for one per processor.
        instructions: The instruction set of renderer and optimizer on the CPU; auto where it does not matter.
    """

    renderer: Renderer
    device: torch.device
    threads: int = 0
    instructions: str = "auto"


def open_machine(config: TrainConfig, backend: Backend | None = None, launch: Launch | None = None) -> Machine:
    """Return what a process of the run computes with.

    Args:
        config: Names renderer, device, threads and instruction set.
        backend: What the first two stand for here; found when None.
        launch: Which process of the run it is; the only one when None.

    Raises:
        InputError: Something of it cannot be used here.
    """
    launch, asked = launch or Launch(), config.processes
    backend = backend or find_backend(asked.renderer, asked.device)
    threads = own_threads(asked.threads, launch)
    renderer = open_backend(backend, threads, asked.instructions)
    return Machine(renderer, process_device(backend.device, launch), threads, asked.instructions)


def machine_around(renderer: Renderer, config: TrainConfig, launch: Launch) -> Machine:
    """Return what a process of the run computes with where its renderer is given.

    Args:
        renderer: What renders.
        config: With device and instruction set spelt out.
        launch: Which process of the run it is.
    """
    asked = config.processes
    device = process_device(torch.device(asked.device), launch)
    return Machine(renderer, device, own_threads(asked.threads, launch), asked.instructions)


def on_this_machine(
    config: TrainConfig, asked: TrainConfig | None = None
) -> tuple[TrainConfig, Backend, tuple[str, ...]]:
    """Return the configuration with the device spelt out, what renders there, and warnings.

    Args:
        config: What a run is to be done with.
        asked: What was asked for, where ``config`` is of a run from before: if that was on a GPU that is not here,
            and nothing else was asked for, it goes on wherever it can.

    Raises:
        InputError: Renderer or device cannot be used here.
    """
    before = config.processes.device
    warnings: tuple[str, ...] = ()
    elsewhere = cuda_problem(before) if before.startswith("cuda") else None
    free = asked is not None and (asked.processes.device, asked.processes.renderer) == ("auto", "auto")
    if elsewhere and free:
        config = config.changed(device="auto", renderer="auto")
    backend = find_backend(config.processes.renderer, config.processes.device)
    if elsewhere and free:
        warnings = (f"the run was on {before}, which is not here ({elsewhere}); it goes on on {backend.device}",)
    return config.changed(device=str(backend.device)), backend, warnings


def with_own_instructions(config: TrainConfig, asked: TrainConfig | None = None) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the configuration with the instruction set spelt out, and warnings.

    Args:
        config: What a run is to be done with, its device spelt out.
        asked: What was asked for, where ``config`` is of a run from before: if that took a set that is not here,
            and none was asked for, it goes on with the fastest that is.

    Raises:
        InputError: This machine lacks the set.
    """
    wanted, device = config.processes.instructions, config.processes.device
    if device.startswith("cuda"):
        ignored = f"--instructions {wanted} is not read by a run on {device}, which takes no native passes"
        return config.changed(instructions="auto"), () if wanted == "auto" else (ignored,)
    free = asked is not None and asked.processes.instructions == "auto"
    elsewhere = free and wanted not in ("auto", *native.instruction_sets())
    found = native.find_instructions("auto" if elsewhere else wanted)
    warning = f"the run was with {wanted} instructions, which are not here; it goes on with {found}, up to rounding"
    return config.changed(instructions=found), (warning,) if elsewhere else ()


def process_device(device: torch.device, launch: Launch) -> torch.device:
    """Return the device of one process.

    Args:
        device: The run's.
        launch: Which process it is.

    Raises:
        InputError: There are more processes than GPUs on this machine, or all are given the same one.
    """
    if device.type != "cuda":
        return device
    if launch.world_size == 1:
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.index is not None:
        raise InputError(
            f"--device {device} is one GPU, and {launch.world_size} processes need one each; use --device cuda"
        )
    if launch.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"{launch.local_world_size} processes need a GPU each, and there are {torch.cuda.device_count()} here; "
            "start as many with torchrun --nproc-per-node"
        )
    return torch.device("cuda", launch.local_rank)


def own_threads(threads: int, launch: Launch) -> int:
    """Return this process's share of the processors where it takes all of them, else ``threads``."""
    if threads or launch.local_world_size == 1:
        return threads
    return max(1, default_threads() // launch.local_world_size)
