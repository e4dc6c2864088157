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
        """Watch the linear layers of ``module``; those that are frozen by now are left out.

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
            ValueError: A number is out of its range, a parameter belongs to no such layer, or half a layer is frozen.
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
        self.layers = [layer for layer in self.layers if layer.weight.requires_grad or layer.bias.requires_grad]
        self._refuse_frozen()
        self.generator = generator or torch.Generator().manual_seed(0)
        names = {"lr": lr, "momentum": momentum, "decay": decay, "damping": damping, "interval": interval, "clip": clip}
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        super().__init__(trained, names | {"steps": 0, "refreshes": 0})

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss ½‖r‖² at the point it started from.

        Args:
            closure: Returns r with its graph.

        Raises:
            InputError: There is no closure, a ``GradScaler`` calls, or a parameter was frozen since the beginning.
        """
        self.refuse_scaler()
        self._refuse_frozen()
        if closure is None:
            raise InputError("KFAC needs the residuals: call step(closure), where closure() returns r with its graph")
        (group,) = self.param_groups
        refresh = group["steps"] % group["interval"] == 0
        with torch.enable_grad(), _Watch(self.layers if refresh else []) as seen:
            residual = closure()
            loss = 0.5 * residual.square().sum()
        gradients = torch.autograd.grad(loss, group["params"], retain_graph=refresh)
        for param, gradient in zip(group["params"], gradients, strict=True):
            param.grad = gradient
        found = layer_factors(residual, seen, self.generator) if refresh else []
        group["steps"] += 1
        if refresh:
            self._refresh(found, group)
        with torch.no_grad():
            self._descend(group)
        return loss.detach()

    def _refuse_frozen(self) -> None:
        """Raise InputError where a parameter of the layers is frozen."""
        for place, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if not parameter.requires_grad:
                    raise InputError(
                        f"K-FAC moves weight and bias of a layer together, and the {name} of its layer {place} of "
                        f"{tuple(layer.weight.shape)} is frozen; freeze all of a layer before the optimizer is made"
                    )

    def _refresh(self, found: list[Factors], group: Group) -> None:
        """Average the factors and invert them; what is not finite is passed over, and what cannot be inverted stays."""
        if not all(torch.isfinite(part).all() for new in found for part in (new.inputs, new.outputs)):
            return
        group["refreshes"] += 1
        correction = bias_correction(group["decay"], group["refreshes"])
        for layer, new in zip(self.layers, found, strict=True):
            state = self._state_of(layer, group)
            moving_average(state["inputs"], new.inputs, group["decay"])
            moving_average(state["outputs"], new.outputs, group["decay"])
            averages = Factors(state["inputs"] / correction, state["outputs"] / correction)
            inverses = damped_inverses(averages, group["damping"])
            if inverses is not None:
                state["inputs_inverse"], state["outputs_inverse"] = inverses

    def _state_of(self, layer: nn.Linear, group: Group) -> Group:
        """What is kept of a layer; it begins with a mean and factors of zero, and their inverses."""
        state = self.state[layer.weight]
        if not state:
            weight, root = layer.weight.detach(), math.sqrt(group["damping"])
            rows, columns = weight.shape[0], weight.shape[1] + 1
            state["mean"] = weight.new_zeros(rows, columns)
            for name, size in (("inputs", columns), ("outputs", rows)):
                state[name] = weight.new_zeros(size, size)
                state[f"{name}_inverse"] = torch.eye(size, dtype=weight.dtype, device=weight.device) / root
        return state

    def _descend(self, group: Group) -> None:
        correction = bias_correction(group["momentum"], group["steps"])
        steps, squared_length = [], 0.0
        for layer in self.layers:
            state = self._state_of(layer, group)
            assert layer.weight.grad is not None
            assert layer.bias.grad is not None
            gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
            moving_average(state["mean"], gradient, group["momentum"])
            mean = state["mean"] / correction
            steps.append(state["outputs_inverse"] @ mean @ state["inputs_inverse"])
            squared_length += float((steps[-1] * mean).sum())
        length = group["lr"] * group["lr"] * squared_length
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


def damped_inverses(factors: Factors, damping: float) -> tuple[Tensor, Tensor] | None:
    """Return (A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹, π² the ratio of the mean diagonals (Martens and Grosse 2015, 6.3).

    None where rounding leaves one of them none, or infinite.

    Args:
        factors: A and G, finite.
        damping: λ.
    """
    means = [float(factor.diagonal().double().mean()) for factor in (factors.inputs, factors.outputs)]
    # The roots first: a ratio of doubles may be too large or too small for one.
    balance = math.sqrt(means[0]) / math.sqrt(means[1]) if 0 < min(means) <= max(means) < math.inf else 1.0
    root = math.sqrt(damping)
    inputs, outputs = _inverse(factors.inputs, balance * root), _inverse(factors.outputs, root / balance)
    return (inputs, outputs) if inputs is not None and outputs is not None else None


def _inverse(matrix: Tensor, shift: float) -> Tensor | None:
    """(A + shift·I)⁻¹ in double precision, in the type of A; None where it has no finite one."""
    shifted = matrix.double() + shift * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed:
        return None
    inverse = torch.cholesky_inverse(factor).to(matrix.dtype).contiguous()
    return inverse if torch.isfinite(inverse).all() else None


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
