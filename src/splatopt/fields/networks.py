"""Coordinate networks: an input layer, hidden layers of one width, and a linear head.

Each field says what a layer does with its input, and how it starts. The fields with Gaussian, sine, wavelet and
sinc activations have dense Hessian-vector products; those with ReLU, piecewise linear, sparse ones (Chng,
Saratchandran and Lucey 2025, arXiv 2402.08784).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from splatopt.core.checks import InputError, check_positive
from splatopt.fields.sinc import sinc

MAX_WIDTH = 8192
"""More features a layer than this are refused: one weight matrix would take 256 MiB."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a field.

    Attributes:
        inputs: Coordinates.
        outputs: Numbers per point.
        width: Features of every layer but the head.
        depth: Hidden layers between the input layer and the head.
    """

    inputs: int
    outputs: int
    width: int = 256
    depth: int = 3

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        if min(self.inputs, self.outputs) < 1:
            raise ValueError(f"a field needs an input and an output, got {self.inputs} and {self.outputs}")
        if not 1 <= self.width <= MAX_WIDTH:
            raise InputError(f"the width of a field must lie between 1 and {MAX_WIDTH}, got {self.width}")
        if not 0 <= self.depth <= 100:
            raise InputError(f"the depth of a field must lie between 0 and 100 hidden layers, got {self.depth}")


class Field(nn.Module, ABC):
    """f: ℝ^inputs → ℝ^outputs, layers h ← φ(W h + b) and a linear head."""

    def __init__(self, architecture: Architecture, generator: torch.Generator) -> None:
        """Make the layers and draw their start.

        Args:
            architecture: Sizes.
            generator: Draws the start.
        """
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        sizes = [(self._encoded(architecture.inputs), width), *[(width, width)] * architecture.depth]
        self.layers = nn.ModuleList(self._layer(before, after) for before, after in sizes)
        self.head = undrawn_linear(width, architecture.outputs)
        self._start(generator)

    def forward(self, points: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return f at ``points``, coordinates within [-1, 1]."""
        features = self.encode(points)
        for layer in self.layers:
            features = self.activate(layer, features)
        return self.head(features)

    def encode(self, points: Tensor) -> Tensor:
        """Return what the input layer sees."""
        return points

    @abstractmethod
    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return the next features."""

    def _encoded(self, inputs: int) -> int:
        """Numbers that :meth:`encode` makes of so many coordinates."""
        return inputs

    def _layer(self, before: int, after: int) -> nn.Module:
        return undrawn_linear(before, after)

    def _start(self, generator: torch.Generator) -> None:
        """Draw weights and biases from U(±1/√in), as PyTorch's linear layers do."""
        for linear in linear_layers(self):
            draw_linear(linear, generator)


class GaussianField(Field):
    """φ(z) = exp(-z²/2σ²) (Ramasinghe and Lucey 2022)."""

    def __init__(self, architecture: Architecture, generator: torch.Generator, sigma: float = 0.05) -> None:
        """Make it with width ``sigma`` of the activation: 0.05 for images, 0.09 for occupancy."""
        check_positive("sigma", sigma)
        self.sigma = sigma
        super().__init__(architecture, generator)

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return exp(-z²/2σ²), z = W h + b."""
        return torch.exp(layer(features).square() * (-0.5 / self.sigma**2))


class SineField(Field):
    """φ(z) = sin(ωz) (SIREN; Sitzmann et al. 2020)."""

    def __init__(self, architecture: Architecture, generator: torch.Generator, omega: float = 30.0) -> None:
        """Make it with frequency ``omega``."""
        check_positive("omega", omega)
        self.omega = omega
        super().__init__(architecture, generator)

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return sin(ωz), z = W h + b."""
        return torch.sin(self.omega * layer(features))

    def _start(self, generator: torch.Generator) -> None:
        """First W from U(±1/in), the others from U(±√(6/in)/ω), so that every layer's z has one distribution."""
        super()._start(generator)
        for index, linear in enumerate(linear_layers(self)):
            fan_in = linear.in_features
            bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / self.omega
            with torch.no_grad():
                linear.weight.uniform_(-bound, bound, generator=generator)


class WaveletField(Field):
    """φ(z₁, z₂) = cos(ωz₁)·exp(-(sz₂)²), the real Gabor wavelet, two linears a layer (WIRE; Saragadam et al. 2023)."""

    def __init__(
        self, architecture: Architecture, generator: torch.Generator, omega: float = 10.0, scale: float = 10.0
    ) -> None:
        """Make it with frequency ``omega`` and inverse width ``scale`` of the envelope."""
        check_positive("omega", omega)
        check_positive("scale", scale)
        self.omega = omega
        self.scale = scale
        super().__init__(architecture, generator)

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return cos(ωz₁)·exp(-(sz₂)²)."""
        wave, envelope = layer(features)
        return torch.cos(self.omega * wave) * torch.exp(-(self.scale * envelope).square())

    def _layer(self, before: int, after: int) -> nn.Module:
        return LinearPair(before, after)


class SincField(Field):
    """φ(z) = sin(ωz)/(ωz) (Saratchandran et al. 2024)."""

    def __init__(self, architecture: Architecture, generator: torch.Generator, omega: float = 20.0) -> None:
        """Make it with frequency ``omega``."""
        check_positive("omega", omega)
        self.omega = omega
        super().__init__(architecture, generator)

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return sin(ωz)/(ωz), 1 at 0."""
        return sinc(self.omega * layer(features))


class ReluField(Field):
    """φ(z) = max(z, 0)."""

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return max(W h + b, 0)."""
        return torch.relu(layer(features))


class EncodedReluField(Field):
    """ReLU on [x, sin 2ᵏπx, cos 2ᵏπx], k = 0 … frequencies-1 (Mildenhall et al. 2020)."""

    def __init__(self, architecture: Architecture, generator: torch.Generator, frequencies: int = 8) -> None:
        """Make it with so many octaves of the encoding."""
        if not 1 <= frequencies <= 32:
            raise InputError(f"the number of frequencies must lie between 1 and 32, got {frequencies}")
        self.frequencies = frequencies
        super().__init__(architecture, generator)

    def encode(self, points: Tensor) -> Tensor:
        """Return [x, sin 2ᵏπx, cos 2ᵏπx]."""
        octaves = math.pi * 2.0 ** torch.arange(self.frequencies, dtype=points.dtype, device=points.device)
        angles = (points[..., None] * octaves).flatten(-2)
        return torch.cat([points, angles.sin(), angles.cos()], dim=-1)

    def activate(self, layer: nn.Module, features: Tensor) -> Tensor:
        """Return max(W h + b, 0)."""
        return torch.relu(layer(features))

    def _encoded(self, inputs: int) -> int:
        return inputs * (1 + 2 * self.frequencies)


class LinearPair(nn.Module):
    """Two linear maps of one input."""

    def __init__(self, before: int, after: int) -> None:
        """Make both."""
        super().__init__()
        self.wave = undrawn_linear(before, after)
        self.envelope = undrawn_linear(before, after)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return both images of ``features``."""
        return self.wave(features), self.envelope(features)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """Return the linear maps within ``module``, in the order of evaluation."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def undrawn_linear(before: int, after: int) -> nn.Linear:
    """Return a linear map whose numbers are yet to be drawn; PyTorch's own start would use its global generator."""
    return nn.utils.skip_init(nn.Linear, before, after)


def draw_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """Draw weights and biases from U(±1/√in), as PyTorch does."""
    bound = 1 / math.sqrt(linear.in_features)
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)
