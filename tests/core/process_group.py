"""Processes played by threads of one process, and real ones started by torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import splatopt
from splatopt.core.processes import Launch, Processes


class Room:
    """Where the threads meet: each puts something on the table, and all take what lies there."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=60)
        self.table: list[Any] = [None] * count


class ThreadProcesses(Processes):
    """One thread's place; sums are formed in the order of the ranks."""

    def __init__(self, launch: Launch, room: Room) -> None:
        super().__init__(launch)
        self._room = room
        self.exchanges = 0

    def _exchange(self, mine: Any) -> list[Any]:
        self.exchanges += 1
        self._room.table[self.rank] = mine
        self._room.barrier.wait()
        found = list(self._room.table)
        self._room.barrier.wait()
        return found

    def sum(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        found = self._exchange([tensor.clone() for tensor in tensors])
        for position, tensor in enumerate(tensors):
            tensor.copy_(sum(theirs[position] for theirs in found[1:]) + found[0][position])

    def any(self, masks: Iterable[Tensor]) -> None:
        masks = list(masks)
        found = self._exchange([mask.clone() for mask in masks])
        for position, mask in enumerate(masks):
            mask.copy_(torch.stack([theirs[position] for theirs in found]).any(dim=0))

    def max(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        found = self._exchange([tensor.clone() for tensor in tensors])
        for position, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([theirs[position] for theirs in found]).amax(dim=0))

    def broadcast(self, tensors: Iterable[tuple[Tensor, int]]) -> None:
        tensors = list(tensors)
        found = self._exchange([tensor.clone() for tensor, _ in tensors])
        for position, (tensor, source) in enumerate(tensors):
            tensor.copy_(found[source][position])

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self._exchange(list(numbers)), strict=True)]

    def texts(self, text: str) -> list[str]:
        return self._exchange(text)


def in_threads(count: int, work: Callable[[ThreadProcesses], Any]) -> list[Any]:
    """What ``work`` returns in each of ``count`` places; raises what the first of them raised."""
    room, answers, errors = Room(count), [None] * count, []

    def play(rank: int) -> None:
        try:
            answers[rank] = work(ThreadProcesses(Launch(rank, count, rank, count), room))
        except BaseException as error:
            errors.append(error)
            room.barrier.abort()

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return answers


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(count: int, words: Sequence[str], **environment: str) -> list[subprocess.Popen]:
    """Start ``count`` processes of Python with ``words``, as torchrun would, without one that watches over them."""
    shared = os.environ | {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(splatopt.__file__).parents[1]),
    }
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: Sequence[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    ended = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]
