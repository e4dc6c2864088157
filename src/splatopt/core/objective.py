"""Objectives: losses over named parameters that answer derivative questions.

An optimizer sees nothing but this. What an objective can answer is its set of
:class:`Oracle`; what an optimizer asks for is checked when the optimizer is made.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from splatopt.core.checks import InputError

Tensors = Mapping[str, Tensor]


class Oracle(enum.Enum):
    """A derivative question. J is the Jacobian of the residuals f, loss = ½‖f‖²/m."""

    GRADIENT = "gradient"
    JVP = "jvp"
    VJP = "vjp"
    GAUSS_NEWTON_DIAGONAL = "gauss_newton_diagonal"
    GAUSS_NEWTON_BLOCKS = "gauss_newton_blocks"
    HVP = "hvp"


class MissingOracleError(InputError):
    """An optimizer needs an oracle that the objective, or its backend, cannot give."""


@dataclass(frozen=True)
class Evaluation:
    """Loss and gradient on one batch.

    Attributes:
        loss: The value of the loss, a Python float.
        gradient: ∂loss/∂θ for every named parameter, in the parameter's shape. The buffers
            may be reused by the next evaluation: whoever keeps them clones them.
        seen: Rows (Gaussians) that the batch touches, (N,) bool, or None where rows mean nothing.
        facts: Further numbers worth logging, for example ``psnr``.
    """

    loss: float
    gradient: Tensors
    seen: Tensor | None
    facts: Mapping[str, float]


class Objective(ABC):
    """A loss over named parameters, evaluated on batches whose meaning only it knows.

    ``parameters`` are updated in place by optimizers, outside autograd.
    """

    @property
    @abstractmethod
    def parameters(self) -> Tensors:
        """The named parameters, each a leaf tensor."""

    @property
    @abstractmethod
    def oracles(self) -> frozenset[Oracle]:
        """What this objective can answer with its present backend."""

    @property
    @abstractmethod
    def length_scale(self) -> float:
        """A typical length in the units of positions (3DGS' scene extent); 1 where there is none."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """Name of what computes the derivatives, for messages and for records."""

    @abstractmethod
    def gradient(self, batch: Any) -> Evaluation:
        """Return loss and ∂loss/∂θ on ``batch``."""

    def require(self, needed: frozenset[Oracle], who: str) -> None:
        """Raise MissingOracleError if an oracle in ``needed`` cannot be answered.

        Args:
            needed: What will be asked.
            who: Name of the optimizer that asks.

        Raises:
            MissingOracleError: Names the optimizer, the oracle, the backend and what would work.
        """
        missing = needed - self.oracles
        if missing:
            names = ", ".join(sorted(oracle.value for oracle in missing))
            given = ", ".join(sorted(oracle.value for oracle in self.oracles))
            raise MissingOracleError(
                f"optimizer {who!r} needs {names}, which {type(self).__name__} on the {self.backend} backend "
                f"does not give (it gives {given}); choose another backend or an optimizer that asks less"
            )
