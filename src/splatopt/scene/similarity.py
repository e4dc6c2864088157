"""A scene that is turned, resized and shifted as a whole, its colours with it.

    x' = s Q x + t

takes a cloud to

    means       s Q x + t
    log_scales  + log s
    quats       q_Q ⊗ q
    sh_rest     D(Q) sh,  Y(Q d)ᵀ D(Q) sh = Y(d)ᵀ sh for every direction d

and a camera x_cam = R x + c to one that sees the same picture, R Qᵀ and s c - R Qᵀ t. D(Q) is block-diagonal, one block
for each degree (Wigner's matrices in the real basis); it is solved for from the basis itself, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.scene.gaussians import GaussianCloud

_SAMPLES = 64
"""Directions that D(Q) is solved from; more than there are harmonics."""

_BANDS = ((0, 3), (3, 8), (8, 15))
"""Where the harmonics of the degrees 1, 2 and 3 stand."""

_NO_DIRECTION = 0.2
"""Mean length of unit vectors below which they agree on no direction."""


def harmonics_rotation(rotation: Float64[Tensor, "3 3"]) -> Float64[Tensor, "15 15"]:
    """Return D(Q), which turns the coefficients of the degrees 1 to 3 with the scene."""
    places = torch.arange(_SAMPLES, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * places / _SAMPLES, places * (torch.pi * (5**0.5 - 1))
    ring = (1 - height.square()).sqrt()
    directions = torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=1)
    after, before = (spherical_harmonics_basis(where, 3) for where in (directions, directions @ rotation))
    found = torch.zeros(15, 15, dtype=torch.float64)
    for start, end in _BANDS:
        found[start:end, start:end] = torch.linalg.lstsq(after[:, start:end], before[:, start:end]).solution
    return found


@dataclass(frozen=True)
class Similarity:
    """x' = scale · rotation x + shift.

    Attributes:
        rotation: A proper rotation, (3, 3), float64.
        scale: Positive.
        shift: (3,), float64, in the units of x'.
    """

    rotation: Float64[Tensor, "3 3"]
    scale: float
    shift: Float64[Tensor, 3]

    @classmethod
    def staying(cls) -> Similarity:
        """Return what changes nothing."""
        return cls.rotating(torch.eye(3, dtype=torch.float64))

    @classmethod
    def rotating(cls, rotation: Float64[Tensor, "3 3"]) -> Similarity:
        """Return a turn about the origin."""
        return cls(rotation, 1.0, torch.zeros(3, dtype=torch.float64))

    @classmethod
    def shifting(cls, shift: Float64[Tensor, 3]) -> Similarity:
        """Return a shift."""
        return cls(torch.eye(3, dtype=torch.float64), 1.0, shift)

    @classmethod
    def to_world(cls, frame: Frame) -> Similarity:
        """Return the way from a capture's training frame to its own."""
        origin = torch.tensor(frame.origin, dtype=torch.float64)
        return cls(torch.eye(3, dtype=torch.float64), frame.unit, origin)

    @property
    def turns(self) -> bool:
        """Whether it turns at all."""
        return not torch.equal(self.rotation, torch.eye(3, dtype=torch.float64))

    def then(self, other: Similarity) -> Similarity:
        """Return this followed by ``other``."""
        shift = other.scale * (other.rotation @ self.shift) + other.shift
        return Similarity(other.rotation @ self.rotation, other.scale * self.scale, shift)

    @property
    def inverse(self) -> Similarity:
        """The way back."""
        back = self.rotation.T
        return Similarity(back, 1 / self.scale, -(back @ self.shift) / self.scale)

    def cloud(self, cloud: GaussianCloud) -> GaussianCloud:
        """Return a cloud after it, computed in float64 and in the cloud's own type; without a turn colours are kept."""
        means = cloud.means.double() * self.scale
        moved = {"log_scales": cloud.log_scales + math.log(self.scale)}
        if self.turns:
            means = means @ self.rotation.T.to(means.device)
            moved["quats"] = _turned_quats(self.rotation, cloud.quats)
            bands = cloud.sh_rest.shape[1]
            matrix = harmonics_rotation(self.rotation)[:bands, :bands].to(means.device)
            moved["sh_rest"] = torch.einsum("ij,njc->nic", matrix, cloud.sh_rest.double()).contiguous()
        moved["means"] = means + self.shift.to(means.device)
        tensors = cloud.tensors
        return GaussianCloud(**{**tensors, **{name: value.to(tensors[name].dtype) for name, value in moved.items()}})

    def camera(self, camera: Camera) -> Camera:
        """Return the camera that sees of the scene after it what ``camera`` sees before."""
        pose = camera.world_to_camera.double().clone()
        pose[:3, :3] = pose[:3, :3] @ self.rotation.T
        pose[:3, 3] = self.scale * pose[:3, 3] - pose[:3, :3] @ self.shift
        return replace(camera, world_to_camera=pose)


HALF_TURN_ABOUT_X = Similarity.rotating(torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)))
"""From x right, y down, z forward to x right, y up, z back, and the other way."""


def _turned_quats(rotation: Float64[Tensor, "3 3"], quats: Tensor) -> Tensor:
    """Return q_Q ⊗ q, wxyz, as long as q is."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation.numpy()).as_quat().tolist()
    times = torch.tensor(
        [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], dtype=torch.float64, device=quats.device
    )
    return quats.double() @ times.T


def robust_up(cameras: list[Camera]) -> Float64[Tensor, 3]:
    """Return what is up for most cameras: the geometric median of their images' up directions, unit length.

    Where these agree on no direction, as of cameras that look down while they turn, it is the way back from where the
    cameras look.

    Raises:
        InputError: Neither agrees.
    """
    for row in (1, 2):
        directions = -torch.stack([camera.world_to_camera[row, :3].double() for camera in cameras])
        if directions.mean(dim=0).norm() < _NO_DIRECTION:
            continue
        middle = directions.mean(dim=0)
        for _ in range(50):
            weights = 1 / (directions - middle).norm(dim=1).clamp_min(1e-6)
            middle = (weights[:, None] * directions).sum(dim=0) / weights.sum()
        return middle / middle.norm()
    raise InputError("the cameras agree on no direction as up; leave --up out, or turn the scene in an editor")


def turn_between(source: Float64[Tensor, 3], target: Float64[Tensor, 3]) -> Float64[Tensor, "3 3"]:
    """Return the smallest rotation that takes one unit vector to another."""
    cosine = float(source @ target)
    if cosine < -1 + 1e-9:
        # Half a turn: about the axis that is most at right angles, so that an upright scene keeps its x axis.
        about = torch.zeros(3, dtype=torch.float64)
        about[source.abs().argmin()] = 1
        about = about - (about @ source) * source
        about = about / about.norm()
        return 2 * torch.outer(about, about) - torch.eye(3, dtype=torch.float64)
    x, y, z = torch.linalg.cross(source, target).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + cross + cross @ cross / (1 + cosine)
