"""Rotations as the features need them: into a Gaussian's own axes and back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def to_own_axes(rotations: Float[Tensor, "n 3 3"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Return Rᵀ v: a vector of the world along each Gaussian's axes."""
    return (rotations * vectors[:, :, None]).sum(dim=1)


def to_world(rotations: Float[Tensor, "n 3 3"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Return R v: a vector along each Gaussian's axes in the world."""
    return (rotations * vectors[:, None, :]).sum(dim=2)


def quaternion_to_rotation_vector(quats: Float[Tensor, "n 4"], changes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3"]:
    """Return the imaginary part of q̄ ∘ c: a quaternion's change as half a rotation vector about its own axes."""
    w, v = quats[:, :1], quats[:, 1:]
    return w * changes[:, 1:] - changes[:, :1] * v - torch.linalg.cross(v, changes[:, 1:])


def rotation_vector_to_quaternion(quats: Float[Tensor, "n 4"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Return q ∘ (0, t): a unit quaternion's change for half a rotation vector t about its own axes."""
    w, v = quats[:, :1], quats[:, 1:]
    return torch.cat([-(v * vectors).sum(dim=1, keepdim=True), w * vectors + torch.linalg.cross(v, vectors)], dim=1)
