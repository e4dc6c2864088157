"""The Jacobian of a network's residuals by its linear layers: products and the Gram matrix J Jᵀ, without J.

For row i of a batch, residual a and a layer s = W x + b, the derivative of r_ia to (W, b) is the outer product of
g_ia = ∂r_ia/∂s_i and x̄_i = (x_i, 1). So with the layers' inputs and slopes

    (J Jᵀ)_(ia)(jb) = Σ_layers (x̄_i·x̄_j) (g_ia·g_jb)
    (J v)_ia = Σ_layers g_ia · (V x̄_i)
    Jᵀu = Σ_ia u_ia g_ia x̄_iᵀ in each layer

which costs one backward pass for each residual of a row, and no tensor is larger than J Jᵀ or the slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splatopt.core.checks import InputError


class WatchedLayers:
    """Notes input and output of layers while it is entered; what was noted can be read once it is left."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Keep which layers are watched."""
        self._layers = layers
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> list[tuple[Tensor, Tensor]]:
        """Begin, and return the list that is filled on leaving, a pair for each layer in order."""
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._hooks = [layer.register_forward_hook(self._note) for layer in self._layers]
        return self._pairs

    def __exit__(self, *_: object) -> None:
        """End."""
        for hook in self._hooks:
            hook.remove()
        self._pairs += [self._seen[layer] for layer in self._layers]

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen[layer] = (inputs[0], output)


@dataclass(frozen=True)
class LayerSlopes:
    """What J is made of in one layer s = W x + b.

    Attributes:
        weight: Name of W among the parameters.
        bias: Name of b.
        inputs: x̄ = (x, 1) by row, (rows, in + 1).
        slopes: g = ∂r/∂s by residual and row, (outputs, rows, out).
    """

    weight: str
    bias: str
    inputs: Tensor
    slopes: Tensor


class LayerJacobian:
    """J = ∂r/∂θ of residuals r, (rows, outputs), each of which depends on the same row of every layer.

    Vectors of residuals are (outputs, rows): residual by residual, as J Jᵀ has its rows.

    Attributes:
        residual: r, (outputs, rows), without its graph.
        layers: What J is made of.
    """

    def __init__(self, residual: Tensor, layers: list[LayerSlopes]) -> None:
        """Keep both."""
        self.residual, self.layers = residual, layers

    def mean_squares(self) -> list[float]:
        """Return the mean of diag(JᵀJ) over the numbers of each layer."""
        return [
            float(layer.slopes.square().sum(dim=(0, 2)) @ layer.inputs.square().sum(dim=1))
            / (layer.slopes.shape[-1] * layer.inputs.shape[-1])
            for layer in self.layers
        ]

    def gram(self, weights: Sequence[float] | None = None) -> Tensor:
        """Return J P Jᵀ, (outputs·rows, outputs·rows).

        Args:
            weights: P, one number for each layer; 1 when None.
        """
        outputs, rows = self.residual.shape
        total = None
        for layer, weight in zip(self.layers, weights or [1.0] * len(self.layers), strict=True):
            slopes = layer.slopes.reshape(outputs * rows, -1)
            product = slopes @ slopes.T
            inner = (layer.inputs @ layer.inputs.T).mul_(weight)
            product.view(outputs, rows, outputs, rows).mul_(inner[None, :, None])
            total = product if total is None else total.add_(product)
        assert total is not None  # there is a layer
        return total

    def jvp(self, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v, (outputs, rows); v is one tensor for each parameter."""
        total = torch.zeros_like(self.residual)
        for layer in self.layers:
            moved = layer.inputs[:, :-1] @ tangent[layer.weight].T + tangent[layer.bias]
            total += (layer.slopes * moved).sum(dim=-1)
        return total

    def vjp(self, cotangent: Tensor, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Return P Jᵀu, one tensor for each parameter; u is (outputs, rows), P as in :meth:`gram`."""
        found = {}
        for layer, weight in zip(self.layers, weights or [1.0] * len(self.layers), strict=True):
            mixed = ((cotangent * weight)[:, :, None] * layer.slopes).sum(dim=0).T @ layer.inputs
            found[layer.weight], found[layer.bias] = mixed[:, :-1], mixed[:, -1]
        return found


def layer_names(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of ``module`` by name, which are to hold all its parameters.

    Raises:
        InputError: A parameter belongs to none, or to one without a bias.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    held = {id(value) for layer in layers.values() if layer.bias is not None for value in layer.parameters()}
    strangers = [name for name, value in module.named_parameters() if id(value) not in held]
    if strangers or not layers:
        what = f"{strangers[0]} belongs to none" if strangers else "there is none"
        raise InputError(f"the Gram matrix is made of linear layers with a bias, and {what}; take another optimizer")
    return layers


def layer_jacobian(module: nn.Module, evaluate: Callable[[], Tensor]) -> LayerJacobian:
    """Return the Jacobian of the residuals that ``evaluate`` returns with their graph, (rows, outputs) or (rows,).

    Args:
        module: Whose linear layers hold all parameters, see :func:`layer_names`; ``evaluate`` calls each once.
        evaluate: Returns r; each of its rows depends on the same row of every layer's output.

    Raises:
        InputError: The rows of residuals and layers differ, as in a radiance field, whose ray has many samples.
    """
    named = layer_names(module)
    with torch.enable_grad(), WatchedLayers(list(named.values())) as seen:
        residual = evaluate()
        columns = residual.reshape(len(residual), -1)
    rows, outputs = columns.shape
    for name, (_, output) in zip(named, seen, strict=True):
        if output.shape[:-1] != (rows,):
            raise InputError(
                f"each of the {rows} rows of residuals must have one row in each layer, and those of {name} are "
                f"{tuple(output.shape[:-1])}, as where a ray has many samples; take another optimizer"
            )
    after = [output for _, output in seen]
    chosen = torch.eye(outputs, dtype=columns.dtype, device=columns.device)
    slopes = [
        torch.autograd.grad(columns, after, one.expand(rows, outputs), retain_graph=index + 1 < outputs)
        for index, one in enumerate(chosen)
    ]
    layers = [
        LayerSlopes(
            f"{name}.weight",
            f"{name}.bias",
            torch.cat([inputs.detach(), inputs.new_ones(rows, 1)], dim=1),
            torch.stack([slope[place] for slope in slopes]),
        )
        for place, (name, (inputs, _)) in enumerate(zip(named, seen, strict=True))
    ]
    return LayerJacobian(columns.detach().T.contiguous(), layers)
