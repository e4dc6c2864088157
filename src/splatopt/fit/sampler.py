"""Which pixels, points or rays a step sees."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.checks import InputError


class ExampleSampler:
    """Draws every example once, in random order, before it draws one again; an epoch's last batch may be smaller.

    An epoch's order is remembered by its seed, since a capture has millions of rays.
    """

    def __init__(self, size: int, batch: int, generator: torch.Generator) -> None:
        """Draw from ``size`` examples, ``batch`` at a time, with seeds from the run's generator."""
        self.size, self.batch = size, min(batch, size)
        self._generator = generator
        self._everything = torch.arange(size) if self.batch == size else None
        self._seed, self._position = 0, size
        self._order = torch.empty(0, dtype=torch.long)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.size // self.batch)

    def draw(self) -> Tensor:
        """Return the numbers of the next batch; all in order where the batch holds everything."""
        if self._everything is not None:
            return self._everything
        if self._position >= self.size:
            self._begin(int(torch.randint(2**62, (), generator=self._generator)), 0)
        drawn = self._order[self._position : self._position + self.batch]
        self._position += self.batch
        return drawn

    def shuffle(self) -> None:
        """Forget the order at hand and seed the run's generator anew, so that whatever is drawn next is new."""
        self._position = self.size
        self._generator.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))

    def state(self) -> dict[str, int]:
        """Return the epoch's seed and how far it has come."""
        return {"seed": self._seed, "position": self._position, "size": self.size, "batch": self.batch}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from ``state``; raises InputError if it was saved with other examples."""
        if (state["size"], state["batch"]) != (self.size, self.batch):
            raise InputError(
                f"the checkpoint was written with {state['size']} examples in batches of {state['batch']}, but there "
                f"are {self.size} in batches of {self.batch}; give the target that the run was started with"
            )
        self._begin(state["seed"], state["position"])

    def _begin(self, seed: int, position: int) -> None:
        self._seed, self._position = seed, position
        if position < self.size:
            self._order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
