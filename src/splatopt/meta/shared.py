"""The episodes of one meta-step, of all streams, whichever processes run them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from splatopt.meta.buffer import DEPTHS
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.stream import EpisodeStream

MEANS = ("meta_loss", "psnr", "gate", "moved")
"""Numbers of an episode that the log has means of."""

_FIRST_DEPTH = 1 + len(MEANS)
"""Where a stream's numbers of kept states stand, after whether its episode counts and what that saw."""


class SharedEpisodes:
    """Each stream's gradient and numbers, and their sums in the order of the streams.

    Every process fills the rows of its own streams; the others' are zeros there, so that adding all processes' rows up
    changes no bit, and sums over rows do not depend on who ran what.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], streams: int) -> None:
        """Begin with no episode.

        Args:
            parameters: The network's; episodes leave their gradient there.
            streams: How many there are, in all processes.
        """
        self._parameters = parameters
        self._gradients = parameters[0].new_zeros(streams, sum(one.numel() for one in parameters))
        self._numbers = torch.zeros(streams, _FIRST_DEPTH + len(DEPTHS) + 2, dtype=torch.float64)

    def run(self, stream: EpisodeStream, network: LearnedNetwork) -> None:
        """Run one episode of ``stream``; one whose numbers broke down does not count."""
        for parameter in self._parameters:
            # None would keep AdamW from counting the step: episodes of one step never use the latent state.
            parameter.grad = torch.zeros_like(parameter)
        result = stream.run(network)
        gradient = torch.cat([_gradient(parameter).reshape(-1) for parameter in self._parameters])
        if result is not None and bool(torch.isfinite(gradient).all()):
            self._gradients[stream.number] = gradient
            self._numbers[stream.number, :_FIRST_DEPTH] = torch.tensor(
                [1.0, *(getattr(result, name) for name in MEANS)], dtype=torch.float64
            )
        classes = stream.buffer.classes
        deepest = max((one.state.steps for kept in classes for one in kept), default=0)
        self._numbers[stream.number, _FIRST_DEPTH:] = torch.tensor([*map(len, classes), deepest])

    def exchange(self) -> None:
        """Get the other processes' rows, and give them ours."""
        for rows in (self._gradients, self._numbers):
            torch.distributed.all_reduce(rows)

    def leave_mean_gradient(self) -> bool:
        """Leave the mean gradient of the episodes that count in the parameters; False where none does."""
        done = int(self._numbers[:, 0].sum())
        total = torch.zeros_like(self._gradients[0])
        for gradient in self._gradients:
            total += gradient
        parts = total.div_(max(1, done)).split([one.numel() for one in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        return done > 0

    def seen(self) -> list[dict[str, float]]:
        """Return ``MEANS`` of each episode that counts."""
        return [dict(zip(MEANS, row[1:_FIRST_DEPTH], strict=True)) for row in self._numbers.tolist() if row[0]]

    def depths(self) -> list[int]:
        """Return how many states all buffers keep, by their class of depth."""
        return [int(count) for count in self._numbers[:, _FIRST_DEPTH:-1].sum(dim=0)]

    def deepest(self) -> int:
        """Return the most steps that a kept state has taken."""
        return int(self._numbers[:, -1].max())


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of ``parameter``, which every episode begins at zero."""
    if parameter.grad is None:
        raise RuntimeError("a parameter of the network has no gradient")
    return parameter.grad
