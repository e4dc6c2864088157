"""The network of the learned step.

For each Gaussian i with inputs x and latent state z, and the scene's inputs c::

    h  = W [x, z] + pool(relu(W [x, z]), c)        mean over all Gaussians that the views saw
    h += attention(norm(h)) over the k nearest      repeated `blocks` times
    h += mlp(norm(h))
    z' = z + sigmoid(A h) · (tanh(B h) - z)         bounded for ever
    s  = relu(1 + mlp([x, z]))                      state scale: the size that norms erase
    y  = relu(C (s · norm(h)))
    gates (6), magnitude = 4 tanh(D y / 4),  direction (13) = √13 E y / |E y|

Direction times magnitude is added to Adam's step in units of Adam's rates, and exp(gate) multiplies the sum group by
group. D starts at zero: an untrained network steps as its Adam does.

Sources: Pearl et al. 2026, "Learn2Splat" (latent state, neighbours, state scale, direction times magnitude); the gates,
the pooled scene, the slow mean of gradients and the bounded latent state are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from splatopt.core.checks import InputError
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.constants import MAX_LOG_GATE, ROW_FEATURES, SCENE_FEATURES

CORRECTED: Mapping[str, int] = MappingProxyType(
    {"means": 3, "log_scales": 3, "quats": 3, "logit_opacities": 1, "sh_dc": 3}
)
"""Numbers of a direction by the group that they correct, in their order; a rotation has three."""

DIRECTIONS = sum(CORRECTED.values())
"""Numbers of a direction."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network's shape."""

    width: int = 48
    """Channels of a Gaussian. Unit: numbers. Source: 256 in Learn2Splat; 48 was 0.5 dB better than 16 at toy scale."""

    blocks: int = 1
    """Attention and MLP, so many times. Unit: blocks. Source: 4 in Learn2Splat."""

    latent: int = 16
    """Latent state of a Gaussian. Unit: numbers. Source: as wide as the network in Learn2Splat."""

    neighbours: int = 4
    """Nearest Gaussians that each one attends to; 0 for none. Unit: Gaussians. Source: Learn2Splat."""

    attention: int = 16
    """Width of queries, keys and values. Unit: numbers. Source: 64 in Learn2Splat."""

    state_scale: bool = True
    """Whether the state scale multiplies the state before the head; False is an ablation. Unit: none.
    Source: Learn2Splat."""

    clock: bool = False
    """Whether it is told how much of a fixed horizon is left, as earlier methods are: an ablation. Unit: none.
    Source: G3R, as Learn2Splat describes it."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be, and those too large to be meant.

        Raises:
            InputError: Names the option, what it must be and what came.
        """
        bounds = {
            "width": (1, 1024),
            "blocks": (1, 16),
            "latent": (1, 1024),
            "neighbours": (0, 64),
            "attention": (1, 256),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie between {low} and {high}, got {getattr(self, name)}")


SIZES: Mapping[str, NetworkOptions] = MappingProxyType(
    {
        "tiny": NetworkOptions(),
        "small": NetworkOptions(width=96, blocks=2, latent=32, attention=32),
        "base": NetworkOptions(width=256, blocks=4, latent=64, attention=64),
    }
)
"""Networks by name; base has Learn2Splat's width and depth."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of each Gaussian.

    Attributes:
        gates: Logarithm of what multiplies the step of each group, (N, 6), within ±4.
        correction: Added to the step in units of the rates, along the Gaussian's own axes, (N, 13).
        latent: The new latent state, (N, C), within ±1.
    """

    gates: Float[Tensor, "n groups"]
    correction: Float[Tensor, "n directions"]
    latent: Float[Tensor, "n latent"]


class Attention(nn.Module):
    """One head over the k nearest Gaussians: softmax(qᵀk / √d) of those that the views saw."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.query_key_value = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(
        self, h: Float[Tensor, "n width"], near: Int[Tensor, "n k"], seen: Bool[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        """Return what the neighbours say; a Gaussian none of whose neighbours was seen hears nothing."""
        query, key, value = self.query_key_value(h).split(self.inner, dim=1)
        scores = (key[near] * query[:, None, :]).sum(dim=2) / math.sqrt(self.inner)
        seen_neighbours = seen[near]
        shares = torch.softmax(scores.masked_fill(~seen_neighbours, -1e9), dim=1) * seen_neighbours
        mixed: Tensor = self.out((shares[:, :, None] * value[near]).sum(dim=1))
        return mixed


class Block(nn.Module):
    """Attention over neighbours and an MLP, each after a norm and added to what was there."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        width = options.width
        self.attention = Attention(width, options.attention) if options.neighbours else None
        self.attention_norm = nn.LayerNorm(width) if options.neighbours else None
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, near: Tensor, seen: Tensor) -> Tensor:
        """Return the new state, (N, width)."""
        if self.attention is not None and self.attention_norm is not None:
            h = h + self.attention(self.attention_norm(h), near, seen)
        mixed: Tensor = h + self.mlp(self.norm(h))
        return mixed


class LearnedNetwork(nn.Module):
    """The network; see the module's formula."""

    def __init__(self, options: NetworkOptions, seed: int = 0) -> None:
        """Draw the weights.

        Args:
            options: Its shape.
            seed: Of the weights alone; PyTorch's own generator is left as it was.
        """
        super().__init__()
        self.options = options
        width, inputs = options.width, ROW_FEATURES + options.latent
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter = nn.Linear(inputs, width)
            scene = SCENE_FEATURES + 2 * options.clock
            self.pool = nn.Sequential(nn.Linear(width + scene, width), nn.ReLU(), nn.Linear(width, width))
            self.blocks = nn.ModuleList(Block(options) for _ in range(options.blocks))
            half = max(1, width // 2)
            self.scale = (
                nn.Sequential(nn.Linear(inputs, half), nn.ReLU(), nn.Linear(half, 1)) if options.state_scale else None
            )
            self.latent = nn.Linear(width, 2 * options.latent)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, width)
            self.sizes = nn.Linear(width, len(GAUSSIAN_TENSORS) + 1)
            self.direction = nn.Linear(width, DIRECTIONS)
            nn.init.zeros_(self.sizes.weight)
            nn.init.zeros_(self.sizes.bias)

    def forward(
        self,
        rows: Float[Tensor, "n features"],
        scene: Float[Tensor, " scene_features"],
        latent: Float[Tensor, "n latent"],
        near: Int[Tensor, "n k"],
        seen: Bool[Tensor, " n"],
    ) -> Prediction:
        """Return the prediction for each Gaussian; those of unseen rows mean nothing.

        Args:
            rows: Inputs of each Gaussian.
            scene: Inputs of the scene.
            latent: Latent state.
            near: Row indices of each Gaussian's nearest others; (N, 0) where the network has no attention.
            seen: Rows that the views saw.
        """
        # Zeros for unseen rows: a share of 0 in a mean, or in what a neighbour says, would let a NaN through.
        x = torch.where(seen[:, None], torch.cat([rows, latent], dim=1), 0.0)
        h = self.enter(x)
        weight = seen.to(h.dtype) / seen.sum().clamp(min=1)
        h = h + self.pool(torch.cat([weight @ torch.relu(h), scene]))
        for block in self.blocks:
            h = block(h, near, seen)
        gate, new = self.latent(h).split(self.options.latent, dim=1)
        latent = latent + torch.sigmoid(gate) * (torch.tanh(new) - latent)
        state = self.norm(h)
        if self.scale is not None:
            state = state * torch.relu(1 + self.scale(x))
        y = torch.relu(self.head(state))
        sizes = MAX_LOG_GATE * torch.tanh(self.sizes(y) / MAX_LOG_GATE)
        direction = self.direction(y)
        length = direction.square().sum(dim=1, keepdim=True).add(1e-12).sqrt()
        unit = direction * (math.sqrt(DIRECTIONS) / length)
        return Prediction(sizes[:, :-1], sizes[:, -1:] * unit, latent)
