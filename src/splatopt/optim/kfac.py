"""K-FAC: the Gauss-Newton matrix of each linear layer as a Kronecker product, as a ``torch.optim`` optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.curvature.estimators import rademacher
from splatopt.optim.habits import RefusesGradScaler
from splatopt.optim.preconditioned import bias_correction, moving_average
from splatopt.optim.types import Group


@dataclass(frozen=True)
class Factors:
    """The two Kronecker factors of a layer s = W a + b with N rows: Gauss-Newton ≈ G ⊗ A.

    Attributes:
        inputs: A = 1/N Σ āāᵀ with ā = (a, 1), (in+1, in+1).
        outputs: G = Σ ggᵀ with g = ∂⟨u, r⟩/∂s, u random signs, (out, out): in the mean over u the sum over rows
            of (∂r/∂s)ᵀ(∂r/∂s).
    """

    inputs: Tensor
    outputs: Tensor


class KFAC(RefusesGradScaler, torch.optim.Optimizer):
    """K-FAC (Martens and Grosse 2015) for the linear layers of a module, of a loss ½‖r‖².

    Each layer's step on (W, b) is ``(G + √λ/π I)⁻¹ M (A + π√λ I)⁻¹``, M the mean of gradients, π² the ratio of the
    factors' mean diagonals, factors averaged and their inverses refreshed every ``interval`` steps. The whole step
    is shortened to ``rate² · ⟨M, step⟩ ≤ clip``, a bound on its length in the metric of the factors::

        optimizer = KFAC(field)
        loss = optimizer.step(lambda: residual(field))

    The closure returns r with its graph; the residual, not the loss, tells what curvature is Gauss-Newton's.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.1,
        *,
        momentum: float = 0.9,
        decay: float = 0.95,
        damping: float = 1.0,
        interval: int = 10,
        clip: float = 1e-2,
        generator: torch.Generator | None = None,
    ) -> None:
        """Watch the linear layers of ``module``.

        Args:
            module: All its parameters are those of linear layers with a bias.
            lr: Rate.
            momentum: Decay of the mean of gradients.
            decay: Decay of the factors, per refresh.
            damping: λ, in units of the Gauss-Newton matrix.
            interval: Steps between refreshes; the first step has one.
            clip: Largest squared length of a step in the factors' metric.
            generator: Source of the signs; one with seed 0 when None.

        Raises:
            ValueError: A number is out of its range, or a parameter belongs to no such layer.
        """
        for name, value in (("lr", lr), ("damping", damping), ("clip", clip)):
            check_positive(name, value)
        check_fraction("momentum", momentum)
        check_fraction("decay", decay)
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.layers = [part for part in module.modules() if isinstance(part, nn.Linear) and part.bias is not None]
        held = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        strangers = [name for name, parameter in module.named_parameters() if id(parameter) not in held]
        if strangers:
            raise ValueError(f"K-FAC knows linear layers with a bias only, and {strangers[0]} belongs to none")
        self.generator = generator or torch.Generator().manual_seed(0)
        names = {"lr": lr, "momentum": momentum, "decay": decay, "damping": damping, "interval": interval, "clip": clip}
        super().__init__(list(module.parameters()), names | {"steps": 0, "refreshes": 0})

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss ½‖r‖² at the point it started from.

        Args:
            closure: Returns r with its graph.

        Raises:
            InputError: There is no closure, or a ``GradScaler`` calls.
        """
        self.refuse_scaler()
        if closure is None:
            raise InputError("KFAC needs the residuals: call step(closure), where closure() returns r with its graph")
        (group,) = self.param_groups
        refresh = group["steps"] % group["interval"] == 0
        group["steps"] += 1
        with torch.enable_grad(), _Watch(self.layers if refresh else []) as seen:
            residual = closure()
            loss = 0.5 * residual.square().sum()
        gradients = torch.autograd.grad(loss, group["params"], retain_graph=refresh)
        for param, gradient in zip(group["params"], gradients, strict=True):
            param.grad = gradient
        if refresh:
            self._refresh(layer_factors(residual, seen, self.generator), group)
        with torch.no_grad():
            self._descend(group)
        return loss.detach()

    def _refresh(self, found: list[Factors], group: Group) -> None:
        group["refreshes"] += 1
        correction = bias_correction(group["decay"], group["refreshes"])
        for layer, new in zip(self.layers, found, strict=True):
            state = self.state[layer.weight]
            if "inputs" not in state:
                state["inputs"], state["outputs"] = torch.zeros_like(new.inputs), torch.zeros_like(new.outputs)
            moving_average(state["inputs"], new.inputs, group["decay"])
            moving_average(state["outputs"], new.outputs, group["decay"])
            averages = Factors(state["inputs"] / correction, state["outputs"] / correction)
            state["inputs_inverse"], state["outputs_inverse"] = damped_inverses(averages, group["damping"])

    def _descend(self, group: Group) -> None:
        correction = bias_correction(group["momentum"], group["steps"])
        steps, squared_length = [], 0.0
        for layer in self.layers:
            state = self.state[layer.weight]
            assert layer.weight.grad is not None
            assert layer.bias.grad is not None
            gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
            if "mean" not in state:
                state["mean"] = torch.zeros_like(gradient)
            moving_average(state["mean"], gradient, group["momentum"])
            mean = state["mean"] / correction
            steps.append(state["outputs_inverse"] @ mean @ state["inputs_inverse"])
            squared_length += float((steps[-1] * mean).sum())
        length = group["lr"] ** 2 * squared_length
        shrink = min(1.0, math.sqrt(group["clip"] / length)) if length > 0 else 1.0
        for layer, step in zip(self.layers, steps, strict=True):
            layer.weight.sub_(step[:, :-1], alpha=group["lr"] * shrink)
            layer.bias.sub_(step[:, -1], alpha=group["lr"] * shrink)


def layer_factors(residual: Tensor, seen: list[tuple[Tensor, Tensor]], generator: torch.Generator) -> list[Factors]:
    """Return the factors of the layers whose inputs and outputs were ``seen`` on the way to ``residual``.

    Args:
        residual: r with its graph, which is used up.
        seen: Input a and output s of each layer, rows in front.
        generator: Source of the signs u.
    """
    signs = rademacher(residual.detach(), generator)
    slopes = torch.autograd.grad(residual, [output for _, output in seen], signs)
    factors = []
    for (inputs, _), slope in zip(seen, slopes, strict=True):
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        flat = slope.reshape(-1, slope.shape[-1])
        factors.append(Factors(rows.T @ rows / len(rows), flat.T @ flat))
    return factors


def damped_inverses(factors: Factors, damping: float) -> tuple[Tensor, Tensor]:
    """Return (A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹, π² the ratio of the mean diagonals (Martens and Grosse 2015, 6.3).

    Args:
        factors: A and G.
        damping: λ.
    """
    means = [float(factor.diagonal().mean()) for factor in (factors.inputs, factors.outputs)]
    balance = math.sqrt(means[0] / means[1]) if min(means) > 0 else 1.0
    root = math.sqrt(damping)
    return _inverse(factors.inputs, balance * root), _inverse(factors.outputs, root / balance)


def _inverse(matrix: Tensor, shift: float) -> Tensor:
    """(A + shift·I)⁻¹ in double precision, in the type of A."""
    shifted = matrix.double() + shift * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(matrix.dtype).contiguous()


class _Watch:
    """Notes input and output of layers while it is entered."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._layers = layers
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> list[tuple[Tensor, Tensor]]:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._hooks = [layer.register_forward_hook(self._note) for layer in self._layers]
        return self._pairs

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._pairs += [self._seen[layer] for layer in self._layers]

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen[layer] = (inputs[0], output)
