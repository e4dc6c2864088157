"""A camera's motion as a motion of the scene: how a cloud changes when a camera turns and shifts.

A twist ξ = (ω, v), radians and world units in the camera's axes, moves the camera x_cam = R x + t to

    x_cam' = exp(ω) x_cam + v,    to first order x_cam + ω × x_cam + v

which is what the camera would see where it stands if the whole cloud were moved about its centre c, with ω' = Rᵀω and
v' = Rᵀv, Gaussians turning with their colours:

    means    ω' × (x - c) + v'
    quats    ½ (0, ω') ⊗ q
    sh_rest  Σ_a ω'_a G_a sh,  Y(d)ᵀ G_a sh = -(e_a × d)·∇ Y(d)ᵀ sh

So ∂image/∂ξ_k = (∂image/∂cloud) · t_k with these tangents t_k, and ∂loss/∂ξ_k = ⟨t_k, ∂loss/∂cloud⟩: what a renderer
gives of the cloud is all that is needed of its cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import Tensors
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.raster.types import Gaussians

_SAMPLES = 64
"""Directions that the generators are found from; more than there are harmonics."""


def cross_matrix(vector: Float[Tensor, 3]) -> Float[Tensor, "3 3"]:
    """Return [v]× with [v]× x = v × x."""
    x, y, z = vector.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def rotation_of(angles: Float[Tensor, 3]) -> Float[Tensor, "3 3"]:
    """Return exp([ω]×), the turn by ‖ω‖ radians about ω."""
    angle = angles.norm()
    cross = cross_matrix(angles)
    first, second = torch.sinc(angle / torch.pi), 0.5 * torch.sinc(angle / (2 * torch.pi)) ** 2
    return torch.eye(3, dtype=angles.dtype) + first * cross + second * cross @ cross


def angles_of(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, 3]:
    """Return ω with exp([ω]×) = ``rotation``, for turns below a half; radians."""
    twice_sine = torch.stack(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    angle = torch.atan2(twice_sine.norm(), rotation.trace() - 1)
    return twice_sine / (2 * torch.sinc(angle / torch.pi))


def moved_pose(world_to_camera: Float[Tensor, "4 4"], twist: Float[Tensor, 6]) -> Float[Tensor, "4 4"]:
    """Return the pose of a camera after a twist (ω, v) in its own axes, float64."""
    pose, twist = world_to_camera.double().clone(), twist.double()
    pose[:3] = rotation_of(twist[:3]) @ pose[:3]
    pose[:3, 3] += twist[3:]
    return pose


def twist_between(given: Float[Tensor, "4 4"], pose: Float[Tensor, "4 4"]) -> Float[Tensor, 6]:
    """Return the twist that moves ``given`` to ``pose``, the inverse of :func:`moved_pose`."""
    turn = pose[:3, :3] @ given[:3, :3].T
    return torch.cat([angles_of(turn), pose[:3, 3] - turn @ given[:3, 3]])


def twist_to_world(camera: Camera, twist: Float[Tensor, 6]) -> Float[Tensor, 6]:
    """Return the motion of the scene x → ω × x + v, as (ω, v) in the world's axes, that looks as a camera's twist."""
    rotation, center = camera.world_to_camera[:3, :3].double(), camera.center.double()
    turn = rotation.T @ twist[:3]
    return torch.cat([turn, rotation.T @ twist[3:] - torch.linalg.cross(turn, center)])


def twist_from_world(camera: Camera, motion: Float[Tensor, 6]) -> Float[Tensor, 6]:
    """Return the twist of a camera that looks as a motion of the scene; undoes :func:`twist_to_world`."""
    rotation, center = camera.world_to_camera[:3, :3].double(), camera.center.double()
    return torch.cat([rotation @ motion[:3], rotation @ (motion[3:] + torch.linalg.cross(motion[:3], center))])


@cache
def _generators() -> Float[Tensor, "3 15 15"]:
    """Return G_a, how harmonics of the degrees 1 to 3 change when what they colour turns about each axis; float64.

    The basis is orthonormal, so twice each entry's square is a whole number, and no rounding is left.
    """
    places = torch.arange(_SAMPLES, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * places / _SAMPLES, places * (torch.pi * (5**0.5 - 1))
    ring = (1 - height.square()).sqrt()
    directions = torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=1)
    basis = spherical_harmonics_basis(directions, 3)
    found = []
    for axis in torch.eye(3, dtype=torch.float64):
        along = -torch.linalg.cross(axis.expand_as(directions), directions)
        change = torch.func.jvp(lambda d: spherical_harmonics_basis(d, 3), (directions,), (along,))[1]
        rough = torch.linalg.lstsq(basis, change).solution
        found.append(rough.sign() * ((2 * rough.square()).round() / 2).sqrt())
    return torch.stack(found)


def _times_quats(quats: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 4"]:
    """Return ½ (0, e_a) ⊗ q for each axis a."""
    w, x, y, z = (0.5 * part for part in quats.unbind(dim=1))
    rows = [torch.stack(row, dim=1) for row in ((-x, w, -z, y), (-y, z, w, -x), (-z, -y, x, w))]
    return torch.stack(rows, dim=1)


def twist_tangents(gaussians: Gaussians, camera: Camera) -> tuple[Tensors, ...]:
    """Return the cloud's tangents t_k of the camera's six motions, first turns about x, y, z, then shifts.

    Args:
        gaussians: The cloud.
        camera: The camera that moves.

    Returns:
        Six mappings with ``means``, and for turns ``quats`` and ``sh_rest``, in the cloud's type.
    """
    means, sh_rest = gaussians.means.detach(), gaussians.sh_rest.detach()
    rotation = camera.world_to_camera[:3, :3].double()
    axes, arms = rotation.to(means), means - camera.center.to(means)
    quats = torch.einsum("ka,naq->knq", axes, _times_quats(gaussians.quats.detach()))
    bands = sh_rest.shape[1]
    turns = torch.einsum("ka,aij->kij", rotation, _generators()[:, :bands, :bands]).to(sh_rest)
    found: list[Tensors] = []
    for axis, turned, turn in zip(axes, quats, turns, strict=True):
        change = (sh_rest.transpose(1, 2) @ turn.T).transpose(1, 2).contiguous()
        found.append({"means": torch.linalg.cross(axis.expand_as(arms), arms), "quats": turned, "sh_rest": change})
    return (*found, *({"means": axis.expand_as(means).contiguous()} for axis in axes))


@dataclass(frozen=True)
class WorldTwist:
    """Sums over a cloud that a gradient's part along any twist is made of; linear in the gradient.

    Attributes:
        force: Σ g_x, (3,), float64.
        torque: Σ x × g_x and what turning shapes and colours adds, about the world's origin, (3,), float64.
    """

    force: Float[Tensor, 3]
    torque: Float[Tensor, 3]

    @classmethod
    def of(cls, gaussians: Gaussians, gradient: Tensors) -> WorldTwist:
        """Return the sums of ``gradient``, one tensor for each of the cloud's."""
        means, along = gaussians.means.detach(), gradient["means"]
        torque = torch.linalg.cross(means, along).double().sum(dim=0)
        torque += (_times_quats(gaussians.quats.detach()) * gradient["quats"][:, None]).double().sum(dim=(0, 2))
        sh_rest = gaussians.sh_rest.detach()
        if bands := sh_rest.shape[1]:
            # Σ_{n,c} g_sh[n,i,c] sh[n,j,c], from a product over the rows as they lie in memory.
            products = gradient["sh_rest"].reshape(-1, 3 * bands).T @ sh_rest.reshape(-1, 3 * bands)
            pairs = products.double().view(bands, 3, bands, 3).diagonal(dim1=1, dim2=3).sum(dim=2)
            torque += (_generators()[:, :bands, :bands].to(pairs) * pairs).sum(dim=(1, 2))
        return cls(along.double().sum(dim=0).cpu(), torque.cpu())

    def less(self, before: WorldTwist | None, weight: float) -> WorldTwist:
        """Return those of what was added to a gradient with ``weight`` since its sums were ``before``."""
        if before is None:
            return WorldTwist(self.force / weight, self.torque / weight)
        return WorldTwist((self.force - before.force) / weight, (self.torque - before.torque) / weight)

    def seen_from(self, camera: Camera) -> Float[Tensor, 6]:
        """Return ⟨t_k, gradient⟩ for the camera's six motions."""
        rotation, center = camera.world_to_camera[:3, :3].double(), camera.center.double()
        torque = self.torque - torch.linalg.cross(center, self.force)
        return torch.cat([rotation @ torque, rotation @ self.force])
