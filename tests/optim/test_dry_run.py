"""Memory is counted byte by byte, and what is too large is never asked of the machine."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.optim.dry_run import CountedMemory, TooCostlyError, count_memory


def test_what_lives_is_counted_and_what_died_is_not():
    memory = CountedMemory(2**30)
    with memory:
        kept = torch.zeros(1000)
        for _ in range(5):
            passing = kept + 1
            del passing
        view = kept.view(10, 100)
        view.add_(1)
    assert (memory.live, memory.peak) == (4000, 8000)
    del kept, view
    assert memory.live == 0


def test_what_a_graph_keeps_is_counted():
    points, weights = torch.ones(1000, 256), torch.ones(256, 256, requires_grad=True)
    memory = CountedMemory(2**30)
    with memory:
        end = torch.sin(torch.sin(points @ weights) @ weights)
    assert memory.live == 4 * 1024 * 1000  # two products, which their sines' derivatives want, and two sines
    del end


def test_a_result_that_is_too_large_is_not_made(monkeypatch):
    vector = torch.ones(200_000)  # its square would be 149 GiB

    def outer() -> None:
        torch.outer(vector, vector)

    said = r"kron needs 149 GiB of memory at once in its first steps, and may take 4\.00; take another"
    with pytest.raises(InputError, match=said):
        count_memory("kron", outer, CountedMemory(2**32), "take another")
    memory = CountedMemory(2**32)
    with pytest.raises(TooCostlyError), memory:
        torch.zeros(2**20, 2**20)
    assert memory.peak == 0


def test_views_of_any_size_are_free():
    with CountedMemory(2**20) as memory:
        torch.ones(1).expand(2**40)
    assert memory.peak == 4


def test_no_single_tensor_reaches_the_largest():
    with CountedMemory(2**30, largest=(400, "works with a matrix")):
        torch.ones(99)
    with (
        pytest.raises(TooCostlyError, match="works with a matrix"),
        CountedMemory(2**30, largest=(400, "works with a matrix")),
    ):
        torch.ones(10, 1) @ torch.ones(1, 10)


def test_it_ends_when_its_time_is_up():
    memory = CountedMemory(2**30, seconds=0.0)
    with pytest.raises(InputError, match="slow takes longer than 0 s for its first steps; take another"):
        count_memory("slow", lambda: torch.ones(1), memory, "take another")
