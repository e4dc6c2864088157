"""One learned step: Adam's, gated group by group and corrected."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.features import AdamInputs, Inputs
from splatopt.meta.frames import rotation_vector_to_quaternion, to_world
from splatopt.meta.inner import InnerRates, InnerState, adam_step, by_row
from splatopt.meta.network import CORRECTED, LearnedNetwork


@dataclass(frozen=True)
class Step:
    """What a learned step would do.

    Attributes:
        changes: Δθ by group, zero in rows that were not seen; carries the graph of the network.
        latent: The new latent state.
        relative: Δθ in units of Adam's rates at the row's age, for penalties.
        gates: Logarithm of what multiplied each group's step, (N, 6).
        adam: What Adam's Δθ would have been.
    """

    changes: dict[str, Tensor]
    latent: Tensor
    relative: dict[str, Tensor]
    gates: Tensor
    adam: dict[str, Tensor]

    def mended(self) -> Step:
        """Return the step with Adam's, and an empty latent state, in rows where a number is not finite."""
        broken = ~torch.isfinite(self.latent).all(dim=1)
        for change in self.changes.values():
            broken |= ~torch.isfinite(change.reshape(len(change), -1)).all(dim=1)
        if not bool(broken.any()):
            return self
        changes = {
            name: torch.where(rows(broken, self.adam[name]), self.adam[name], change)
            for name, change in self.changes.items()
        }
        return replace(self, changes=changes, latent=torch.where(broken[:, None], 0.0, self.latent))


def adam_changes(inputs: AdamInputs, state: InnerState, rates: InnerRates, length_scale: float) -> dict[str, Tensor]:
    """Return Adam's Δθ by group, zero in rows that were not seen."""
    changes = {}
    for name in GAUSSIAN_TENSORS:
        rate = rates.of(name, length_scale) * inputs.fallen
        change = adam_step(state.exp_avg[name], inputs.roots[name], rate, inputs.first_correction)
        changes[name] = torch.where(rows(inputs.seen, change), change, 0.0)
    return changes


def learned_step(
    network: LearnedNetwork,
    inputs: Inputs,
    state: InnerState,
    rates: InnerRates,
    length_scale: float,
    near: Int[Tensor, "n k"],
    clock: Tensor | None = None,
) -> Step:
    """Return the step of ``network`` on ``inputs``.

    Δθ_g = exp(gate_g) · (Adam's step of g + rate_g · correction_g), the correction rotated from the Gaussian's own axes
    into the world's, gates and correction shrinking with age. Rows that were not seen keep θ and latent state; those
    that the network has no share in any more take Adam's step and keep their latent state.

    Args:
        network: Predicts gates, corrections and latent state.
        inputs: What it is told; nothing is differentiated through the gradient among it.
        state: The run's memory, after the evaluation that ``inputs`` is of.
        rates: Adam's.
        length_scale: The scene's extent, world units.
        near: Each Gaussian's nearest others.
        clock: Two numbers that tell a network with a clock what is left of its horizon.
    """
    seen = inputs.seen
    scene = inputs.scene if clock is None else torch.cat([inputs.scene, clock.to(inputs.scene)])
    prediction = network(inputs.rows, scene, state.latent, near, inputs.asked)
    share = inputs.share[:, None]
    gates = share * prediction.gates
    mean, scales, rotation, opacity, color = (share * prediction.correction).split(list(CORRECTED.values()), dim=1)
    corrections = {
        "means": to_world(inputs.rotations, mean),
        "log_scales": scales,
        "quats": rotation_vector_to_quaternion(inputs.unit_quats, rotation),
        "logit_opacities": opacity.squeeze(1),
        "sh_dc": color,
    }
    factors = gates.exp()
    adam = adam_changes(inputs, state, rates, length_scale)
    changes, relative = {}, {}
    for place, name in enumerate(GAUSSIAN_TENSORS):
        rate = by_row(rates.of(name, length_scale) * inputs.fallen, adam[name])
        change = adam[name] + rate * corrections[name] if name in corrections else adam[name]
        changes[name] = torch.where(rows(seen, change), change * rows(factors[:, place], change), 0.0)
        relative[name] = changes[name] / rate
    latent = torch.where(inputs.asked[:, None], prediction.latent, state.latent)
    return Step(changes, latent, relative, gates, adam)


def clock_of(network: LearnedNetwork, done: int, horizon: int) -> Tensor | None:
    """Return what a network with a clock is told: the share of its horizon that is done, and the root of the rest."""
    if not network.options.clock:
        return None
    fraction = min(1.0, done / max(1, horizon))
    return torch.tensor([fraction, (1 - fraction) ** 0.5])


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` (N,) in a shape that goes with ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
