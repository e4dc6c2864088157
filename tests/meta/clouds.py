"""Small random clouds, gradients and networks for the learned step's tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.inner import InnerRates, InnerState
from splatopt.meta.network import LearnedNetwork, NetworkOptions

SMALL = NetworkOptions(width=8, latent=3, attention=4, neighbours=3)


@dataclass
class Sequence:
    """A cloud and the gradients that its evaluations are told to give."""

    parameters: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]
    losses: list[float]
    seen: list[Tensor]


def random_cloud(
    rows: int, generator: torch.Generator, dtype: torch.dtype = torch.float64, rest: int = 3
) -> dict[str, Tensor]:
    shapes = {"means": (rows, 3), "log_scales": (rows, 3), "quats": (rows, 4), "logit_opacities": (rows,)}
    shapes |= {"sh_dc": (rows, 3), "sh_rest": (rows, rest, 3)}
    cloud = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    cloud["log_scales"] = cloud["log_scales"] - 3
    return cloud


def random_sequence(
    rows: int, steps: int, *, dtype: torch.dtype = torch.float64, unseen: float = 0.0, rest: int = 3
) -> Sequence:
    generator = torch.Generator().manual_seed(rows + steps)
    parameters = random_cloud(rows, generator, dtype, rest)
    seen = [torch.rand(rows, generator=generator) >= unseen for _ in range(steps)]
    gradients = []
    for mask in seen:
        gradient = {
            name: 10 ** torch.randn(rows, generator=generator, dtype=dtype).reshape(-1, *[1] * (value.dim() - 1))
            * torch.randn(value.shape, generator=generator, dtype=dtype)
            for name, value in parameters.items()
        }
        gradients.append({name: _kept(value, mask) for name, value in gradient.items()})
    losses = [float(value) for value in 0.1 + 0.1 * torch.rand(steps, generator=generator)]
    return Sequence(parameters, gradients, losses, seen)


def _kept(value: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (value.dim() - 1)), value, 0.0)


def stirred(network: LearnedNetwork, seed: int = 5, size: float = 0.3) -> LearnedNetwork:
    """Give a network weights as a trained one might have, its zero head included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return network


def begin(parameters: dict[str, Tensor], network: LearnedNetwork) -> InnerState:
    return InnerState.begin(parameters, network.options.latent)


RATES = InnerRates()
assert set(GAUSSIAN_TENSORS) == set(random_cloud(1, torch.Generator()))
