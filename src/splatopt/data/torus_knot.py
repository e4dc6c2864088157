"""A mesh that is made up: a tube along a torus knot."""

from __future__ import annotations

import math

import torch

from splatopt.data.mesh import Mesh, make_mesh


def make_torus_knot(
    windings: tuple[int, int] = (2, 3), tube: float = 0.35, around: int = 24, along: int = 240, bumps: float = 0.25
) -> Mesh:
    """Return the tube of radius ``tube``·(1 + bumps·cos …) along a (p, q) torus knot: closed, with thin parts.

    Args:
        windings: p and q, without a common divisor.
        tube: Radius; the knot's torus has radii 2 and 1.
        around: Vertices around the tube.
        along: Vertices along it.
        bumps: Share by which the radius swells and shrinks, along and around.
    """
    p, q = windings
    t = torch.arange(along, dtype=torch.float64) * (2 * math.pi / along)

    def knot(t: torch.Tensor) -> torch.Tensor:
        ring = 2 + torch.cos(q * t)
        return torch.stack([ring * torch.cos(p * t), ring * torch.sin(p * t), torch.sin(q * t)], dim=-1)

    center = knot(t)
    tangent = knot(t + 1e-4) - knot(t - 1e-4)
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    # The direction from the torus's core is never along the knot, and comes back to itself.
    core = 2 * torch.stack([torch.cos(p * t), torch.sin(p * t), torch.zeros_like(t)], dim=-1)
    normal = center - core
    normal = normal - (normal * tangent).sum(dim=1, keepdim=True) * tangent
    normal = normal / normal.norm(dim=1, keepdim=True)
    side = torch.linalg.cross(tangent, normal)
    angle = torch.arange(around, dtype=torch.float64) * (2 * math.pi / around)
    radius = tube * (1 + bumps * torch.cos(12 * t)[:, None] * torch.cos(3 * angle)[None])
    ring = torch.cos(angle)[None, :, None] * normal[:, None] + torch.sin(angle)[None, :, None] * side[:, None]
    vertices = (center[:, None] + radius[..., None] * ring).reshape(-1, 3)
    i, j = torch.meshgrid(torch.arange(along), torch.arange(around), indexing="ij")

    def number(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i % along) * around + j % around

    a, b, c, d = number(i, j), number(i, j + 1), number(i + 1, j + 1), number(i + 1, j)
    faces = torch.cat([torch.stack([a, b, c], -1).reshape(-1, 3), torch.stack([a, c, d], -1).reshape(-1, 3)])
    return make_mesh(vertices, faces, watertight=True)
