"""What processes tell each other: the same numbers whoever runs which stream."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from meta.toys import SHAPE
from splatopt.meta.buffer import CheckpointBuffer
from splatopt.meta.episode import EpisodeResult
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.shared import SharedEpisodes
from splatopt.meta.stream import EpisodeStream

LARGE = (1.0, 2.0**-24, 2.0**-24, -1.0, 3.0)
"""Gradients whose sum in float32 depends on the order in which they are added."""


class Stream(EpisodeStream):
    """A stream whose episode has the gradient that it is given, and breaks down where that is None."""

    def __init__(self, number, gradient):
        self.number, self.gradient, self.buffer = number, gradient, CheckpointBuffer()
        self.buffer.classes[number % 3].append(SimpleNamespace(state=SimpleNamespace(steps=10 * number)))

    def run(self, network):
        if self.gradient is None:
            return None
        for parameter in network.parameters():
            parameter.grad += self.gradient
        return EpisodeResult(self.number / 3, (), self.number + 20.0, -0.1, 0.5)


def meta_step(monkeypatch, gradients, processes):
    """Return what ``processes`` processes come to, each with the streams of its rank."""
    streams = [Stream(number, gradient) for number, gradient in enumerate(gradients)]
    made = []
    for rank in range(processes):
        network = LearnedNetwork(SHAPE)
        parameters = list(network.parameters())
        made.append((parameters, SharedEpisodes(parameters, len(streams))))
        for stream in streams[rank::processes]:
            made[-1][1].run(stream, network)
    summed = [sum(rows) for rows in zip(*((one._gradients, one._numbers) for _, one in made), strict=True)]
    found = []
    for parameters, episodes in made:
        left = iter(summed)

        def all_reduce(rows, left=left):
            rows.copy_(next(left))

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        if processes > 1:
            episodes.exchange()
        any_done = episodes.leave_mean_gradient()
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters]).tolist()
        found.append((any_done, flat, episodes.seen(), episodes.depths(), episodes.deepest()))
    return found


@pytest.mark.parametrize("broken", [False, True])
def test_any_number_of_processes_comes_to_the_same(monkeypatch, broken):
    gradients = [*LARGE[:2], None, torch.nan, *LARGE[2:]] if broken else LARGE
    (alone,) = meta_step(monkeypatch, gradients, 1)
    for processes in (2, 3, len(gradients)):
        assert meta_step(monkeypatch, gradients, processes) == [alone] * processes
    any_done, flat, seen, depths, deepest = alone
    expected = torch.zeros(())
    for gradient in LARGE:
        expected = expected + gradient
    assert any_done
    assert flat == [float(expected / 5)] * len(flat)
    assert len(seen) == 5
    assert seen[1] == {"meta_loss": 1 / 3, "psnr": 21.0, "gate": -0.1, "moved": 0.5}
    assert sum(depths) == len(gradients)
    assert deepest == 10 * (len(gradients) - 1)


def test_where_no_episode_counts_there_is_no_gradient(monkeypatch):
    ((any_done, flat, seen, _, _),) = meta_step(monkeypatch, [None, torch.inf], 1)
    assert not any_done
    assert not any(flat)
    assert not seen
