"""Which views a step sees."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.checks import InputError


class ViewSampler:
    """Draws every view once, in random order, before it draws one again."""

    def __init__(self, views: tuple[int, ...], generator: torch.Generator) -> None:
        """Draw from ``views`` with the run's generator.

        Args:
            views: View indices.
            generator: The run's source of randomness.
        """
        if not views:
            raise InputError("the capture's split leaves no view to train on; choose another --test-every")
        self._views = views
        self._generator = generator
        self._pending: list[int] = []

    def draw(self, count: int) -> tuple[int, ...]:
        """Return the next ``count`` view indices; a batch may reach across two orders."""
        while len(self._pending) < count:
            order = torch.randperm(len(self._views), generator=self._generator)
            self._pending.extend(order.tolist())
        drawn = tuple(self._views[position] for position in self._pending[:count])
        del self._pending[:count]
        return drawn

    def draw_distinct(self, count: int) -> tuple[int, ...]:
        """Return ``count`` different view indices, all of them in their own order where that is 0 or beyond.

        A view that is passed over because it was drawn already keeps its place for the next draw.
        """
        if not 0 < count < len(self._views):
            return self._views
        drawn: list[int] = []
        while len(drawn) < count:
            if not set(self._pending) - set(drawn):
                self._pending.extend(torch.randperm(len(self._views), generator=self._generator).tolist())
            position = next(position for position in self._pending if position not in drawn)
            self._pending.remove(position)
            drawn.append(position)
        return tuple(self._views[position] for position in drawn)

    def shuffle(self) -> None:
        """Forget the order at hand, so that the next draw makes a new one."""
        self._pending.clear()

    def state(self) -> Tensor:
        """Return the positions still to be drawn, (n,), int64."""
        return torch.tensor(self._pending, dtype=torch.int64)

    def load_state(self, state: Tensor) -> None:
        """Go on from ``state``; raises InputError if it was saved with more views than there are."""
        pending = state.tolist()
        if any(not 0 <= position < len(self._views) for position in pending):
            raise InputError(
                f"the checkpoint was written with more training views than the {len(self._views)} of this capture; "
                f"give the capture that the run was started with"
            )
        self._pending = pending
