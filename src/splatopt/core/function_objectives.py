"""Objectives from a function: any PyTorch model or renderer, with derivatives by autograd.

Ten lines run any optimizer on a model, or on a dictionary of tensors::

    objective = ResidualObjective(model, lambda model, batch: model(x[batch]) - y[batch])
    optimizer = splatopt.make_optimizer("tr2", objective)
    for step in range(200):
        evaluation = optimizer.step(torch.randperm(len(x))[:64], splatopt.Progress(step, 200))

The function is handed what was given (the module, or the dictionary) and the batch, and returns a tensor with its
graph. Forward-mode and batched derivatives call it with other tensors in the parameters' places, so it must read them
from its argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from splatopt.core.checks import InputError
from splatopt.core.graph import GraphObjective
from splatopt.core.objective import Batch, GaussNewtonBlocks, MissingOracleError, Oracle, Residuals, Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import BLOCK_TENSORS, GAUSSIAN_TENSORS

Parameters: TypeAlias = nn.Module | Mapping[str, Tensor]
"""A module, or tensors by name."""

Given = TypeVar("Given", nn.Module, Mapping[str, Tensor])

_PREFIX = "given."


class _FunctionObjective(GraphObjective):
    """What both objectives share: the parameters, and the function with others in their places."""

    def __init__(self, params: Parameters, function: Callable[..., object], length_scale: float) -> None:
        if not 0 < length_scale < math.inf:
            raise InputError(f"the length scale must be a positive number, got {length_scale}")
        self._given, self._function, self._length_scale = params, function, length_scale
        named = params.named_parameters() if isinstance(params, nn.Module) else params.items()
        self._leaves = {name: _leaf(name, value) for name, value in named if _is_trained(params, value)}
        if not self._leaves:
            raise InputError("an objective needs at least one parameter that requires a gradient, got none")
        self.module = params if isinstance(params, nn.Module) else nn.Module()

    @property
    def length_scale(self) -> float:
        """A typical length in the units of positions, as it was given."""
        return self._length_scale

    def residual(self, batch: Batch) -> Tensor:
        """Refuse: a loss alone has no residuals."""
        self._refuse(Oracle.JVP)

    def _answer(self, batch: Batch) -> object:
        return self._function(self._given, batch)

    def _answer_at(self, tensors: Tensors, batch: Batch) -> object:
        """Return the function's value with ``tensors`` in the parameters' places."""
        if isinstance(self._given, nn.Module):
            module = _Called(self._given, self._function)
            return functional_call(module, {f"{_PREFIX}{name}": value for name, value in tensors.items()}, (batch,))
        return self._function({**self._given, **tensors}, batch)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Edit the rows of a dictionary's tensors, which stay the same tensors.

        Raises:
            InputError: The parameters are a module's.
        """
        if isinstance(self._given, nn.Module):
            raise InputError("the parameters of a module have no rows that could be added or removed")
        for name, leaf in self._leaves.items():
            leaf.grad = None
            leaf.data = edit.parameter(name, leaf.detach())


class _Called(nn.Module):
    """A function of a module, as a module."""

    def __init__(self, given: nn.Module, function: Callable[..., object]) -> None:
        super().__init__()
        self.given, self._function = given, function

    def forward(self, batch: Batch) -> object:
        return self._function(self.given, batch)


class ModuleObjective(_FunctionObjective):
    """A loss as a function: gradient and Hessian product by autograd.

    Rows mean nothing to it but those of a dictionary, which may be edited.
    """

    def __init__(self, params: Given, loss_fn: Callable[[Given, Batch], Tensor], *, length_scale: float = 1.0) -> None:
        """Keep parameters and loss.

        Args:
            params: A module, or a mapping from names to leaf tensors, which are shared and not copied; tensors that do
                not require a gradient do from now on, parameters of a module that do not stay as they are.
            loss_fn: From ``params`` and a batch to the loss, a scalar with its graph.
            length_scale: A typical length in the units of positions, 3DGS' scene extent.

        Raises:
            InputError: There is no parameter to train, or one is no leaf.
        """
        super().__init__(params, loss_fn, length_scale)

    @property
    def oracles(self) -> frozenset[Oracle]:
        """Gradient and Hessian product."""
        return frozenset({Oracle.GRADIENT, Oracle.HVP})

    def loss(self, batch: Batch) -> Tensor:
        """Return the function's value, a scalar with its graph."""
        loss = self._answer(batch)
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            raise InputError(f"loss_fn must return a scalar tensor with its graph, got {_told(loss)}")
        return loss.reshape(())

    def residuals(self, batch: Batch) -> NoReturn:
        """Refuse: a loss alone has no residuals."""
        self._refuse(Oracle.JVP)

    def empty_residuals(self, batch: Batch) -> NoReturn:
        """Refuse, as above."""
        self._refuse(Oracle.VJP)

    def vjp(self, batch: Batch, cotangent: Residuals) -> NoReturn:
        """Refuse, as above."""
        self._refuse(Oracle.VJP)

    def jvp(self, batch: Batch, tangent: Tensors) -> NoReturn:
        """Refuse, as above."""
        self._refuse(Oracle.JVP)


class ResidualObjective(_FunctionObjective):
    """½‖r‖² of residuals as a function: every derivative question by autograd, exactly.

    J v is taken in forward mode, Jᵀu and ∇²L v in reverse. Diagonal and blocks of JᵀJ are sums over all rows of J, one
    for each residual and ``chunk`` of them at a time: exact, and as dear as so many backward passes. Where that is too
    much, estimators with probes ask for products alone.
    """

    def __init__(
        self,
        params: Given,
        residuals_fn: Callable[[Given, Batch], Tensor | tuple[Tensor, ...]],
        chunk: int = 64,
        *,
        length_scale: float = 1.0,
    ) -> None:
        """Keep parameters and residuals.

        Args:
            params: As of :class:`ModuleObjective`.
            residuals_fn: From ``params`` and a batch to r, one tensor or several, with their graph.
            chunk: Rows of J that are computed and held at a time.
            length_scale: A typical length in the units of positions, 3DGS' scene extent.

        Raises:
            InputError: There is no parameter to train, one is no leaf, or ``chunk`` is below 1.
        """
        if chunk < 1:
            raise InputError(f"chunk must be at least 1, got {chunk}")
        super().__init__(params, residuals_fn, length_scale)
        self._chunk = chunk

    @property
    def oracles(self) -> frozenset[Oracle]:
        """All about derivatives; blocks where all parameters have the same rows."""
        given = {Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.HVP}
        if len({leaf.shape[:1] for leaf in self._leaves.values()}) == 1 and next(iter(self._leaves.values())).dim():
            given.add(Oracle.GAUSS_NEWTON_BLOCKS)
        return frozenset(given)

    @property
    def block_names(self) -> tuple[str, ...]:
        """All parameters, but of Gaussians all but the colour's higher bands."""
        return BLOCK_TENSORS if set(self._leaves) == set(GAUSSIAN_TENSORS) else tuple(self._leaves)

    def residual(self, batch: Batch) -> Tensor:
        """Return r on ``batch`` in a row, with its graph."""
        return _in_a_row(self._answer(batch))

    def jvp(self, batch: Batch, tangent: Tensors) -> Residuals:
        """Return J v, in forward mode.

        Raises:
            MissingOracleError: The function cannot be differentiated forwards.
        """
        with _forward_mode(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(leaf.detach(), tangent[name].detach())
                for name, leaf in self._leaves.items()
                if name in tangent
            }
            others = {name: leaf.detach() for name, leaf in self._leaves.items() if name not in tangent}
            with torch.no_grad():
                primal, found = forward_ad.unpack_dual(_in_a_row(self._answer_at({**duals, **others}, batch)))
            return (torch.zeros_like(primal) if found is None else found,)

    def exact_gauss_newton_diagonal(self, batch: Batch) -> Tensors:
        """Return diag(JᵀJ), the sum of the squares in each column of J."""
        total = {name: torch.zeros_like(leaf) for name, leaf in self.parameters.items()}
        for rows in self._rows_of_jacobian(batch):
            for name, part in rows.items():
                total[name] += part.square().sum(dim=0)
        return total

    def gauss_newton_blocks(self, batch: Batch) -> GaussNewtonBlocks:
        """Return each row's own block of JᵀJ, and the diagonal of what is in no block."""
        if Oracle.GAUSS_NEWTON_BLOCKS not in self.oracles:
            self._refuse(Oracle.GAUSS_NEWTON_BLOCKS)
        names, parameters = self.block_names, self.parameters
        first = parameters[names[0]]
        size = sum(parameters[name][0].numel() for name in names)
        lower, column = torch.tril_indices(size, size, device=first.device)
        blocks = first.new_zeros(len(first), size * (size + 1) // 2)
        diagonal = {name: torch.zeros_like(value) for name, value in parameters.items() if name not in names}
        for rows in self._rows_of_jacobian(batch):
            side = torch.cat([rows[name][:, :, None].flatten(2) for name in names], dim=2)
            blocks += torch.einsum("cni,cnj->nij", side, side)[:, lower, column]
            for name, total in diagonal.items():
                total.add_(rows[name].square().sum(dim=0))
        return GaussNewtonBlocks(names, blocks, diagonal)

    def _rows_of_jacobian(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """Yield J's rows, so many at a time, by parameter with the rows in front."""
        leaves = list(self._leaves.values())
        residual = self.residual(batch)
        for first in range(0, residual.numel(), self._chunk):
            last = min(residual.numel(), first + self._chunk)
            basis = residual.new_zeros(last - first, residual.numel())
            basis[:, first:last] = torch.eye(last - first, dtype=basis.dtype, device=basis.device)
            try:
                found = torch.autograd.grad(
                    residual, leaves, basis, retain_graph=True, materialize_grads=True, is_grads_batched=True
                )
            except RuntimeError:  # a function of others that cannot be batched
                single = [
                    torch.autograd.grad(residual, leaves, one, retain_graph=True, materialize_grads=True)
                    for one in basis
                ]
                found = tuple(torch.stack(parts) for parts in zip(*single, strict=True))
            yield dict(zip(self._leaves, found, strict=True))


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Turn PyTorch's refusal to differentiate a function forwards into a sentence."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not _is_of_forward_mode(error):
            raise
        raise MissingOracleError(
            "residuals_fn holds a function that PyTorch cannot differentiate forwards, as jvp wants it (an "
            "autograd.Function needs a jvp of its own); take an optimizer or an estimator that asks for vjp alone, as "
            "residual probes do"
        ) from error


def _is_of_forward_mode(error: BaseException) -> bool:
    said = str(error).lower()
    return any(word in said for word in ("forward ad", "forward mode", "forward-mode", "jvp"))


def _in_a_row(residuals: object) -> Tensor:
    parts = (residuals,) if isinstance(residuals, Tensor) else residuals
    if not (isinstance(parts, tuple | list) and parts and all(isinstance(part, Tensor) for part in parts)):
        raise InputError(f"residuals_fn must return a tensor or several, got {_told(residuals)}")
    return torch.cat([part.reshape(-1) for part in parts])


def _is_trained(params: Parameters, value: Tensor) -> bool:
    return value.requires_grad if isinstance(params, nn.Module) else value.is_floating_point()


def _leaf(name: str, value: Tensor) -> Tensor:
    if not value.is_leaf:
        raise InputError(
            f"the parameter {name!r} must be a leaf, which no operation has computed; give .detach() of it"
        )
    return value.requires_grad_()


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {'with' if value.requires_grad else 'without'} a graph"
    return f"a {type(value).__name__}"
