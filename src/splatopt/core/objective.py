"""Objectives: losses over named parameters that answer derivative questions.

An optimizer sees nothing but this. What an objective can answer is its set of
:class:`Oracle`; what an optimizer asks for is checked when the optimizer is made.
"""

from __future__ import annotations

import enum
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NoReturn, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.row_statistics import ErrorMap, RowStatistics
from splatopt.core.scene_edit import SceneEdit

Batch: TypeAlias = Any
"""What a loss is evaluated on: views, pixels, rays. Only the objective knows, so its type cannot be said."""

Tensors = Mapping[str, Tensor]
Residuals = tuple[Tensor, ...]
"""The residuals of a batch, or something in their shape: one tensor for each part (view)."""


class Oracle(enum.Enum):
    """A derivative question. J is the Jacobian of the residuals r, loss = ½‖r‖²."""

    GRADIENT = "gradient"
    JVP = "jvp"
    VJP = "vjp"
    GAUSS_NEWTON_DIAGONAL = "gauss_newton_diagonal"
    GAUSS_NEWTON_BLOCKS = "gauss_newton_blocks"
    HVP = "hvp"
    STATISTICS = "statistics"


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
        metrics: Further numbers worth logging, for example ``psnr``.
    """

    loss: float
    gradient: Tensors
    seen: Tensor | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class GaussNewtonBlocks:
    """JᵀJ kept where both parameters belong to one row (Gaussian), and its diagonal for the rest.

    Attributes:
        names: The parameters whose entries, in this order, make up a row's block of size B.
        blocks: Lower triangles by row, (N, B·(B+1)/2), entry (i, j ≤ i) at i·(i+1)/2 + j; may be reused
            by the next call.
        diagonal: diag(JᵀJ) of the parameters that are in no block; may be reused by the next call.
    """

    names: tuple[str, ...]
    blocks: Tensor
    diagonal: Tensors


class Combine(enum.Enum):
    """How the answers for a batch's microbatches make up the answer for the batch.

    Of the batch's V parts microbatch k has V_k; its share is V_k / V.
    """

    MEAN = "mean"
    """Tensors: Σ share · tensor."""
    NUMBER = "number"
    """Numbers: Σ share · number."""
    ANY = "any"
    """Masks: true where one is."""
    MAX = "max"
    """Tensors: the greatest of each entry."""
    STACK = "stack"
    """Residuals, one tensor per part: every part's own, times √share."""
    SAME = "same"
    """They depend on no batch's parts."""


@dataclass(frozen=True)
class Question:
    """What an objective around another must know of a question to pass it on.

    Attributes:
        combine: How answers are combined; field by field where the answer is a dataclass.
        needs: The oracles that it takes.
        record: The dataclass that answers, where ``combine`` tells of fields.
        of_residuals: Whether its argument after the batch holds residuals, a tensor for each part.
        composed: Whether it is answered by further questions to whoever was asked.
    """

    combine: Combine | Mapping[str, Combine]
    needs: frozenset[Oracle] = frozenset()
    record: type | None = None
    of_residuals: bool = False
    composed: bool = False

    def __post_init__(self) -> None:
        """Check that the answer can be combined so."""
        fields = self.combine.values() if isinstance(self.combine, Mapping) else ()
        if (self.record is None) != isinstance(self.combine, Combine):
            raise ValueError("a question that combines field by field names their record, and no other does")
        if Combine.STACK in fields or (self.combine is Combine.STACK and self.of_residuals):
            raise ValueError("STACK is for a whole answer, of a question without residuals")


_GRADIENT, _JVP, _VJP = (frozenset({oracle}) for oracle in (Oracle.GRADIENT, Oracle.JVP, Oracle.VJP))
_DIAGONAL, _BLOCKS = frozenset({Oracle.GAUSS_NEWTON_DIAGONAL}), frozenset({Oracle.GAUSS_NEWTON_BLOCKS})
_EVALUATION = {"loss": Combine.NUMBER, "gradient": Combine.MEAN, "seen": Combine.ANY, "metrics": Combine.NUMBER}
_STATISTICS = {field.name: Combine.MEAN for field in fields(RowStatistics)} | {"max_weight": Combine.MAX}
_ROW_BLOCKS = {"names": Combine.SAME, "blocks": Combine.MEAN, "diagonal": Combine.MEAN}

QUESTIONS: Mapping[str, Question] = {
    **dict.fromkeys(("parameters", "oracles", "length_scale", "backend", "block_names"), Question(Combine.SAME)),
    **dict.fromkeys(("require", "fixed_parameters", "parts", "views", "split", "edit_rows"), Question(Combine.SAME)),
    "empty_residuals": Question(Combine.SAME, _VJP),
    "gradient": Question(_EVALUATION, _GRADIENT, Evaluation),
    "value": Question(Combine.NUMBER, _GRADIENT),
    "residuals": Question(Combine.STACK),
    "jvp": Question(Combine.STACK, _JVP),
    "vjp": Question(Combine.MEAN, _VJP, of_residuals=True),
    "gauss_newton_product": Question(Combine.MEAN, _JVP | _VJP),
    "gauss_newton_form": Question(Combine.NUMBER, _JVP),
    "gauss_newton_diagonal": Question(Combine.MEAN, composed=True),
    "exact_gauss_newton_diagonal": Question(Combine.MEAN, _DIAGONAL),
    "gauss_newton_blocks": Question(_ROW_BLOCKS, _BLOCKS, GaussNewtonBlocks),
    "hvp": Question(Combine.MEAN, composed=True),
    "exact_hvp": Question(Combine.MEAN, frozenset({Oracle.HVP})),
    "statistics": Question(_STATISTICS, frozenset({Oracle.STATISTICS}), RowStatistics),
}
"""Every public name of :class:`Objective`, once. An objective around another answers by its row, or is not made."""

_ANSWERED_BY_AUTOGRAD = frozenset({name for name, row in QUESTIONS.items() if row.needs} | {"residuals"})
"""The questions about derivatives, which who writes an objective may answer by autograd."""


@runtime_checkable
class DiagonalEstimator(Protocol):
    """A way to get diag(JᵀJ) as the mean over a batch's parts; ``splatopt.curvature.estimators`` has three."""

    @property
    def needs(self) -> frozenset[Oracle]:
        """What it asks of the objective."""
        ...

    def estimate(self, objective: Objective, batch: Batch, generator: torch.Generator | None) -> Tensors:
        """Return diag(JᵀJ) on ``batch``, or an unbiased estimate of it."""
        ...


@runtime_checkable
class HessianProduct(Protocol):
    """A way to get ∇²L v; ``splatopt.curvature.hessian`` has two."""

    @property
    def needs(self) -> frozenset[Oracle]:
        """What it asks of the objective."""
        ...

    def product(self, objective: Objective, batch: Batch, tangent: Tensors) -> Tensors:
        """Return ∇²L v on ``batch``."""
        ...


class Objective(ABC):
    """A loss over named parameters, evaluated on batches whose meaning only it knows.

    ``parameters`` are updated in place by optimizers, outside autograd. Beyond the gradient, an
    objective overrides the methods of the oracles that it names; the others raise MissingOracleError.
    All that is returned may live in buffers that the next call of the same method reuses: whoever
    keeps it clones it.
    """

    questions: Mapping[str, Question] = QUESTIONS
    """What may be asked; a subclass with a further question adds its row."""

    def __init_subclass__(cls) -> None:
        """Answer with autograd switched on, whatever the optimizer that asks has switched off."""
        super().__init_subclass__()
        for name in _ANSWERED_BY_AUTOGRAD & vars(cls).keys():
            if inspect.isfunction(method := vars(cls)[name]):
                setattr(cls, name, torch.enable_grad()(method))

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

    @property
    def block_names(self) -> tuple[str, ...]:
        """The parameters whose entries make up a row's block in :meth:`gauss_newton_blocks`."""
        return tuple(self.parameters)

    def fixed_parameters(self) -> AbstractContextManager[None]:
        """Say that, while it is open, the parameters are the same whenever a question is asked.

        What was computed to answer one, such as a drawn view, may then serve the next. In between they may be moved
        and put back; who asks at another point meanwhile holds that one, within this.
        """
        return nullcontext()

    @abstractmethod
    def gradient(self, batch: Batch) -> Evaluation:
        """Return loss and ∂loss/∂θ on ``batch``."""

    def parts(self, batch: Batch) -> Sequence[Batch]:
        """Return batches, one per view, of which ``batch`` is the mean; estimators draw probes for each."""
        return (batch,)

    def views(self, batch: Batch) -> Sequence[int]:
        """Return the numbers of the views that ``batch`` shows, a view's always the same; none without views."""
        return ()

    def split(self, batch: Batch, count: int) -> Sequence[Batch]:
        """Return at most ``count`` batches that share out ``batch``: number k has its parts k, k + count and so on."""
        return (batch,)

    def value(self, batch: Batch) -> float:
        """Return the loss on ``batch``, the same number as :meth:`gradient` gives there; may reuse its buffers."""
        return self.gradient(batch).loss

    def residuals(self, batch: Batch) -> Residuals:
        """Return the residuals r on ``batch``, one tensor per part, each divided by √(number of parts).

        The loss is ½‖r‖² over all of them, so JᵀJ is the mean of the parts' own.

        Raises:
            MissingOracleError: This objective has none.
        """
        self._refuse(Oracle.JVP)

    def empty_residuals(self, batch: Batch) -> Residuals:
        """Return tensors in the shapes of :meth:`residuals`, with any values and without computing them.

        Raises:
            MissingOracleError: This objective has no residuals.
        """
        self._refuse(Oracle.VJP)

    def jvp(self, batch: Batch, tangent: Tensors) -> Residuals:
        """Return J v in the shapes of :meth:`residuals`, J = ∂r/∂θ.

        Args:
            batch: Where.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.

        Raises:
            MissingOracleError: This objective does not give it.
        """
        self._refuse(Oracle.JVP)

    def vjp(self, batch: Batch, cotangent: Residuals) -> Tensors:
        """Return Jᵀ u, one tensor per parameter; u = r gives the gradient of the loss.

        Args:
            batch: Where.
            cotangent: u, in the shapes of :meth:`residuals`.

        Raises:
            MissingOracleError: This objective does not give it.
        """
        self._refuse(Oracle.VJP)

    def gauss_newton_product(self, batch: Batch, tangent: Tensors) -> Tensors:
        """Return JᵀJ v, one tensor per parameter, holding the residuals of one part (view) at a time.

        Args:
            batch: Where.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.

        Raises:
            MissingOracleError: This objective lacks ``jvp`` or ``vjp``.
        """
        parts = self.parts(batch)
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        for part in parts:
            for name, product in self.vjp(part, self.jvp(part, tangent)).items():
                total[name].add_(product, alpha=1 / len(parts))
        return total

    def gauss_newton_form(self, batch: Batch, tangent: Tensors) -> float:
        """Return vᵀJᵀJ v = ‖J v‖², summed in float64, holding the residuals of one part (view) at a time.

        Args:
            batch: Where.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.

        Raises:
            MissingOracleError: This objective lacks ``jvp``.
        """
        parts = self.parts(batch)
        jvp_value = (self.jvp(part, tangent) for part in parts)
        return sum(float((part * part).sum(dtype=torch.float64)) for view in jvp_value for part in view) / len(parts)

    def gauss_newton_diagonal(
        self, batch: Batch, estimator: DiagonalEstimator, generator: torch.Generator | None = None
    ) -> Tensors:
        """Return diag(JᵀJ), as ``estimator`` gets it, one tensor per parameter.

        Args:
            batch: Where.
            estimator: Exact, or by parameter or residual probes.
            generator: Source of the probes; not needed by those that draw none.

        Raises:
            MissingOracleError: The estimator needs an oracle that this objective does not give.
            ValueError: The estimator draws probes and was handed no generator.
        """
        self.require(estimator.needs, type(estimator).__name__)
        return estimator.estimate(self, batch, generator)

    def exact_gauss_newton_diagonal(self, batch: Batch) -> Tensors:
        """Return diag(JᵀJ) from one pass that sums squared derivatives; the objective says what is exact.

        Raises:
            MissingOracleError: This objective does not give it; probes need ``jvp`` and ``vjp`` alone.
        """
        self._refuse(Oracle.GAUSS_NEWTON_DIAGONAL)

    def gauss_newton_blocks(self, batch: Batch) -> GaussNewtonBlocks:
        """Return each row's own block of JᵀJ.

        Raises:
            MissingOracleError: This objective does not give it.
        """
        self._refuse(Oracle.GAUSS_NEWTON_BLOCKS)

    def hvp(self, batch: Batch, tangent: Tensors, method: HessianProduct) -> Tensors:
        """Return ∇²L v, as ``method`` gets it, one tensor per parameter.

        Args:
            batch: Where.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.
            method: Exact, or by a central difference of gradients.

        Raises:
            MissingOracleError: The method needs an oracle that this objective does not give.
        """
        self.require(method.needs, type(method).__name__)
        return method.product(self, batch, tangent)

    def exact_hvp(self, batch: Batch, tangent: Tensors) -> Tensors:
        """Return ∇²L v of the loss whose gradient :meth:`gradient` gives; v as in :meth:`hvp`.

        Raises:
            MissingOracleError: This objective does not give it; a central difference needs the gradient alone.
        """
        self._refuse(Oracle.HVP)

    def statistics(self, batch: Batch, error: ErrorMap, cross: bool = True) -> RowStatistics:
        """Return what each row does in the views of ``batch``, and how much error lies where it does it.

        Args:
            batch: Where.
            error: Makes the image e of a rendered view and its photograph.
            cross: Whether the cross term is wanted, which costs about half as much again.

        Raises:
            MissingOracleError: This objective does not give it.
        """
        self._refuse(Oracle.STATISTICS)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Gather the parameters' rows and write the edit's values; other data of rows are gathered with them.

        Raises:
            InputError: The rows of this objective's parameters mean nothing together.
        """
        raise InputError(f"{type(self).__name__} has no rows that could be added or removed")

    def require(self, needed: frozenset[Oracle], who: str) -> None:
        """Raise MissingOracleError if an oracle in ``needed`` cannot be answered.

        Args:
            needed: What will be asked.
            who: Name of the optimizer, estimator or method that asks.

        Raises:
            MissingOracleError: Names who asks, the oracle, the backend and what would work.
        """
        missing = needed - self.oracles
        if missing:
            raise MissingOracleError(f"{who!r} needs {_names(missing)}, which {self._gives()}")

    def _refuse(self, oracle: Oracle) -> NoReturn:
        raise MissingOracleError(f"{oracle.value} was asked for, which {self._gives()}")

    def _gives(self) -> str:
        """Return the end of a refusal: who refuses, what it gives and what would work."""
        return (
            f"{type(self).__name__} on the {self.backend} backend does not give (it gives {_names(self.oracles)}); "
            "choose another backend, or an optimizer, an estimator or a method that asks less"
        )


def _names(oracles: frozenset[Oracle]) -> str:
    return ", ".join(sorted(oracle.value for oracle in oracles))
