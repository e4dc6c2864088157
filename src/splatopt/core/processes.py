"""The processes that share one run: what they tell each other, and how the loss of one is noticed.

Whoever launches them, as ``torchrun`` does, says through the environment how many there are and where they meet
(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Numbers on the CPU go by gloo, tensors on CUDA by nccl.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.version import __version__

Answer = TypeVar("Answer")


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


class ReportedElsewhereError(InputError):
    """The run ends for a reason that another process tells; this one has nothing to add."""


@dataclass(frozen=True)
class Launch:
    """What the environment says of the processes that were launched together.

    Attributes:
        rank: Which one this is, from 0.
        world_size: How many there are; 1 where nothing was launched.
        local_rank: Which one this is on its machine.
        local_world_size: How many there are on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def find_launch(environment: dict[str, str] | None = None) -> Launch:
    """Return what the environment says; one process alone where it says nothing.

    Args:
        environment: Variables by name; those of this process when None.

    Raises:
        InputError: It says something that cannot be.
    """
    values = dict(os.environ) if environment is None else environment
    if "RANK" not in values or "WORLD_SIZE" not in values:
        return Launch()
    try:
        rank, world_size = int(values["RANK"]), int(values["WORLD_SIZE"])
        local_rank, local_world_size = (
            int(values.get("LOCAL_RANK", rank)),
            int(values.get("LOCAL_WORLD_SIZE", world_size)),
        )
    except ValueError:
        raise InputError(
            f"RANK and WORLD_SIZE must be whole numbers, got {values['RANK']!r} and {values['WORLD_SIZE']!r}; start "
            "several processes with torchrun"
        ) from None
    if not 0 <= rank < world_size:
        raise InputError(
            f"RANK must be at least 0 and below WORLD_SIZE, got {rank} of {world_size}; start with torchrun"
        )
    return Launch(rank, world_size, local_rank, local_world_size)


class Processes:
    """One process's place among those of a run; alone, it answers everything by itself.

    All of them must ask the same things in the same order. Every method raises LostProcessError where another
    one has ended or does not answer in time.
    """

    def __init__(self, launch: Launch | None = None, store: dist.Store | None = None) -> None:
        """Take a place; :func:`join` is how several meet.

        Args:
            launch: Which place; alone when None.
            store: Where the processes met.
        """
        self.launch = launch or Launch()
        self._store = store

    @property
    def rank(self) -> int:
        """Which one this is, from 0; the first one writes, prints and evaluates."""
        return self.launch.rank

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.launch.world_size

    @property
    def is_first(self) -> bool:
        """Whether this one writes, prints and evaluates."""
        return self.rank == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Write into each tensor its sum over the processes, the same bits in all of them."""
        if self.world_size > 1:
            self._meet()
            _wait(lambda: [dist.all_reduce(tensor, async_op=True) for tensor in tensors])

    def any(self, masks: Iterable[Tensor]) -> None:
        """Write into each mask where it is true in any process."""
        if self.world_size > 1:
            self._meet()
            largest = dist.ReduceOp.MAX
            _wait(lambda: [dist.all_reduce(mask.view(torch.uint8), largest, async_op=True) for mask in masks])

    def max(self, tensors: Iterable[Tensor]) -> None:
        """Write into each tensor the greatest of each entry over the processes."""
        if self.world_size > 1:
            self._meet()
            _wait(lambda: [dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True) for tensor in tensors])

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        """Write into each tensor what it is in the process that is named with it."""
        if self.world_size > 1:
            self._meet()
            _wait(lambda: [dist.broadcast(tensor, source, async_op=True) for tensor, source in tensors])

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over the processes, added in float64."""
        if self.world_size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        _wait(lambda: [dist.all_reduce(total, async_op=True)])
        return total.tolist()

    def texts(self, text: str) -> list[str]:
        """Return every process's text, by rank."""
        if self.world_size == 1:
            return [text]
        data = text.encode("utf-8", "surrogatepass")
        own = [float(len(data) * (rank == self.rank)) for rank in range(self.world_size)]
        sizes = [int(size) for size in self.sum_numbers(own)]
        found = torch.zeros(self.world_size, max(1, *sizes), dtype=torch.uint8)
        found[self.rank, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        _wait(lambda: [dist.all_reduce(found, async_op=True)])
        return [
            bytes(row[:size].tolist()).decode("utf-8", "surrogatepass") for row, size in zip(found, sizes, strict=True)
        ]

    def broadcast_text(self, make: Callable[[], str]) -> str:
        """Return the text that the first process makes; the others wait for it."""
        return self.texts(make() if self.is_first else "")[0]

    def together(self, action: Callable[[], Answer]) -> Answer:
        """Return what ``action`` does in every process; where it fails in one, it fails in all.

        Raises:
            InputError: In the first process, with the sentence of the lowest that failed.
            ReportedElsewhereError: In the others.
        """
        if self.world_size == 1:
            return action()
        answer: Answer | None = None
        problem = ""
        failure: Exception | None = None
        try:
            answer = action()
        except (InputError, OSError) as error:
            failure, problem = error, str(error) or type(error).__name__
        problems = self.texts(problem)
        failed = next((rank for rank, text in enumerate(problems) if text), None)
        if failed is None:
            return answer  # type: ignore[return-value] # there is one where nothing was raised
        if not self.is_first:
            raise ReportedElsewhereError(problems[failed])
        if failure is not None:
            raise failure
        raise InputError(f"process {failed}: {problems[failed]}")

    def check_versions(self) -> None:
        """Make sure that all run the same version of splatopt; raises InputError that names them, in all."""
        versions = self.texts(__version__)
        if len(set(versions)) > 1:
            listed = ", ".join(f"{version} (process {rank})" for rank, version in enumerate(versions))
            problem = (
                f"the processes of one run must have the same version of splatopt, got {listed}; install one for all"
            )
            raise InputError(problem) if self.is_first else ReportedElsewhereError(problem)

    def claim_report(self, what: str) -> bool:
        """Whether no process has asked this of ``what`` before; true once among those that still live."""
        if self.world_size == 1 or self._store is None:
            return True
        try:
            return self._store.add(f"spoken/{what}", 1) == 1
        except RuntimeError:  # the store went with the process that held it
            return True

    def follow(self) -> None:
        """Wait until the first process has ended, so that it can say why before it is ended for our sake."""
        if self.is_first or self.world_size == 1:
            return
        try:
            dist.broadcast(torch.zeros(1), 0)
        except RuntimeError:
            time.sleep(0.1)

    def leave(self) -> None:
        """Part from the others when all have come to their end."""
        if self.world_size > 1 and dist.is_initialized():
            self._meet()
            dist.destroy_process_group()

    def _meet(self) -> None:
        # With nccl a lost process would leave the others waiting on their device, where nobody notices; here it is
        # an error at once. Sums on the CPU notice by themselves.
        if dist.get_backend() != "gloo":
            self.sum_numbers([0.0])


def join(launch: Launch, seconds: float) -> Processes:
    """Meet the other processes of ``launch``.

    Args:
        launch: From :func:`find_launch`.
        seconds: How long one waits for the others before it counts them as lost.

    Raises:
        LostProcessError: They did not come in time.
    """
    if launch.world_size == 1:
        return Processes(launch)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    timeout = timedelta(seconds=seconds)
    try:
        store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=timeout)))
        store = dist.PrefixStore("splatopt", store)
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"the {launch.world_size} processes did not meet within {seconds:g} s ({error})"
        ) from error
    # A run that ends in the middle leaves threads of gloo behind, which must not outlive what they use.
    atexit.register(_part)
    return Processes(launch, store)


def _part() -> None:
    with contextlib.suppress(RuntimeError):
        if dist.is_initialized():
            dist.destroy_process_group()


def _wait(begin: Callable[[], Sequence[dist.Work]]) -> None:
    """Begin what takes all processes and wait for its end."""
    try:
        for work in begin():
            work.wait()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(str(error).partition("\n")[0]) from error
