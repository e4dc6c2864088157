"""Projections: what parameters are brought back to."""

from __future__ import annotations

from abc import ABC
from contextlib import AbstractContextManager, nullcontext

from splatopt.core.objective import Tensors
from splatopt.optim.hellinger import quaternion_lengths_kept


class Projection(ABC):  # noqa: B024 - each overrides one of two
    """Brings parameters back to where they may be, around each move or once a step is taken."""

    def around(self, parameters: Tensors) -> AbstractContextManager[None]:
        """Return what is open while ``parameters`` move."""
        return nullcontext()

    def hold(self, parameters: Tensors) -> None:  # noqa: B027 - as above
        """Bring ``parameters`` back, in place, after a whole step."""


class QuaternionLengths(Projection):
    """A cloud's quaternions keep their lengths in every move, see ``quaternion_lengths_kept``."""

    def around(self, parameters: Tensors) -> AbstractContextManager[None]:
        """Scale them back on leaving."""
        return quaternion_lengths_kept(parameters)
