"""Objectives whose loss is a PyTorch graph: every derivative question is answered by autograd, exactly."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from splatopt.core.objective import Batch, Evaluation, Objective, Oracle, Residuals, Tensors


class GraphObjective(Objective):
    """A loss ½‖r‖² over the parameters of a module, r a differentiable function of them.

    Gradient, J v, Jᵀ u and ∇²L v are those of the graph, the last by differentiating twice (Pearlmutter 1994).
    Only :meth:`residual` must be given; :meth:`loss` may be overridden where ½‖r‖² can be had more directly.
    """

    def __init__(self, module: nn.Module) -> None:
        """Keep ``module``; its parameters are what is optimised.

        Args:
            module: Twice differentiable in its parameters, which all require gradients.
        """
        self.module = module
        self._leaves: dict[str, Tensor] = dict(module.named_parameters())

    @abstractmethod
    def residual(self, batch: Batch) -> Tensor:
        """Return r on ``batch`` with its graph, in any shape."""

    def loss(self, batch: Batch) -> Tensor:
        """Return ½‖r‖² on ``batch`` with its graph, a scalar."""
        return 0.5 * self.residual(batch).square().sum()

    def metrics(self, loss: float) -> Mapping[str, float]:
        """Return what is worth logging beside the loss."""
        return {}

    @property
    def leaves(self) -> Mapping[str, Tensor]:
        """The module's parameters, which the graph leads to."""
        return self._leaves

    @property
    def parameters(self) -> Tensors:
        """The same numbers outside the graph, so that an optimizer may write them."""
        return {name: leaf.detach() for name, leaf in self._leaves.items()}

    @property
    def oracles(self) -> frozenset[Oracle]:
        """Gradient, Jacobian products and the true Hessian product."""
        return frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.HVP})

    @property
    def length_scale(self) -> float:
        """1: the parameters of a network are no positions."""
        return 1.0

    @property
    def backend(self) -> str:
        """What computes the derivatives."""
        return "autograd"

    def gradient(self, batch: Batch) -> Evaluation:
        """Return loss and ∂loss/∂θ on ``batch``."""
        with torch.enable_grad():
            loss = self.loss(batch)
            found = torch.autograd.grad(loss, list(self._leaves.values()), materialize_grads=True)
        return self.evaluation(float(loss.detach()), found)

    def evaluation(self, loss: float, gradients: Sequence[Tensor]) -> Evaluation:
        """Return the record of a loss and its gradients, one per leaf in order."""
        return Evaluation(loss, dict(zip(self._leaves, gradients, strict=True)), None, self.metrics(loss))

    def residuals(self, batch: Batch) -> Residuals:
        """Return (r,) without its graph."""
        with torch.no_grad():
            return (self.residual(batch),)

    def empty_residuals(self, batch: Batch) -> Residuals:
        """Return (r,): the shape of a graph's residuals is known by computing them."""
        return self.residuals(batch)

    def vjp(self, batch: Batch, cotangent: Residuals) -> Tensors:
        """Return Jᵀ u."""
        with torch.enable_grad():
            residual = self.residual(batch)
            leaves = list(self._leaves.values())
            found = torch.autograd.grad(residual, leaves, cotangent[0], materialize_grads=True)
        return dict(zip(self._leaves, found, strict=True))

    def jvp(self, batch: Batch, tangent: Tensors) -> Residuals:
        """Return J v as ∂⟨Jᵀu, v⟩/∂u: Jᵀu is linear in u, so any u will do."""
        with torch.enable_grad():
            residual = self.residual(batch)
            cotangent = torch.zeros_like(residual, requires_grad=True)
            vjp_value = torch.autograd.grad(residual, list(self._leaves.values()), cotangent, create_graph=True)
            inner = _inner(self._leaves, vjp_value, tangent)
            return (torch.autograd.grad(inner, cotangent)[0],)

    def exact_hvp(self, batch: Batch, tangent: Tensors) -> Tensors:
        """Return ∇²L v as ∂⟨∂L/∂θ, v⟩/∂θ."""
        leaves = list(self._leaves.values())
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.loss(batch), leaves, create_graph=True)
            inner = _inner(self._leaves, gradients, tangent)
            if not inner.requires_grad:
                return {name: torch.zeros_like(leaf) for name, leaf in self._leaves.items()}
            # A loss that is linear in a parameter leaves no graph to it: its rows of the Hessian are zero.
            found = torch.autograd.grad(inner, leaves, materialize_grads=True)
        return dict(zip(self._leaves, found, strict=True))


def mean_squared_residual(prediction: Tensor, target: Tensor) -> Tensor:
    """Return r = √(2/n)·(prediction - target), so that ½‖r‖² is the mean of the n squared errors."""
    return (prediction - target) * math.sqrt(2 / max(1, target.numel()))


def _inner(leaves: Tensors, parts: Sequence[Tensor], tangent: Tensors) -> Tensor:
    """Return ⟨parts, v⟩ over the leaves that v names."""
    products = [(part * tangent[name]).sum() for name, part in zip(leaves, parts, strict=True) if name in tangent]
    return torch.stack(products).sum()
