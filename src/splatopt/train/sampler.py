"""Which views a step sees."""

from __future__ import annotations

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.data.selection import farthest_points


class ViewChoice(Enum):
    """How the views of one step are chosen."""

    SHUFFLED = "shuffled"
    FARTHEST = "farthest"


class ViewSampler:
    """Draws every view once, in random order, before it draws one again.

    Given positions, only the first view of a draw comes from that order; the others are those farthest from it
    and from each other, by farthest-point sampling.
    """

    def __init__(
        self,
        views: tuple[int, ...],
        generator: torch.Generator,
        positions: Float[Tensor, "views 3"] | None = None,
    ) -> None:
        """Draw from ``views`` with the run's generator.

        Args:
            views: View indices.
            generator: The run's source of randomness.
            positions: Where each view's camera stands, for draws of views far from each other.
        """
        if not views:
            raise InputError("the capture's split leaves no view to train on; choose another --test-every")
        self._views = views
        self._positions = positions
        self._generator = generator
        self._pending: list[int] = []

    def draw(self, count: int) -> tuple[int, ...]:
        """Return the next ``count`` view indices; a batch may reach across two orders.

        With positions, one of more views than there are holds each once.
        """
        if self._positions is not None and count > 1:
            (first,) = self._next(1)
            chosen = farthest_points(self._positions, min(count, len(self._views)), first)
        else:
            chosen = self._next(count)
        return tuple(self._views[position] for position in chosen)

    def _next(self, count: int) -> list[int]:
        """Take the next ``count`` positions in the random order."""
        while len(self._pending) < count:
            order = torch.randperm(len(self._views), generator=self._generator)
            self._pending.extend(order.tolist())
        drawn = self._pending[:count]
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

    def upcoming(self, count: int) -> tuple[int, ...]:
        """Return at most ``count`` views that come next in the order at hand; draws nothing.

        Where none are left, those of the next order, as long as nothing else draws from the generator before.
        """
        pending = self._pending
        if not pending:
            aside = torch.Generator().set_state(self._generator.get_state())
            pending = torch.randperm(len(self._views), generator=aside).tolist()
        return tuple(self._views[position] for position in pending[:count])

    def shuffle(self) -> None:
        """Forget the order at hand and seed the run's generator anew, so that whatever is drawn next is new."""
        self._pending.clear()
        self._generator.manual_seed(int(torch.randint(2**62, (), generator=self._generator)))

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
