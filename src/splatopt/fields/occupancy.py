"""The inside of a mesh as a field: coordinates in, the logit of being inside out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from splatopt.data.mesh import Mesh, inside, sample_surface
from splatopt.fields.task import Task, in_chunks

SPREADS = (0.1, 0.01)
"""Standard deviations of the points near the surface, in units of the box [-1, 1]³ (Chng et al. 2025)."""


@dataclass(frozen=True)
class LabelledPoints:
    """Points of the box and whether each lies inside.

    Attributes:
        points: (N, 3), float32.
        labels: (N,), 1 inside and 0 outside, float32.
    """

    points: Float[Tensor, "count 3"]
    labels: Float[Tensor, " count"]


def sample_points(mesh: Mesh, count: int, generator: torch.Generator) -> LabelledPoints:
    """Draw a third of the points from the box, a third from within 0.1 of the surface and a third from within 0.01.

    Args:
        mesh: In the box.
        count: Number of points.
        generator: Source of randomness.
    """
    near = count // 3
    parts = [torch.rand(count - 2 * near, 3, generator=generator, dtype=torch.float64) * 2 - 1]
    for spread in SPREADS:
        noise = torch.randn(near, 3, generator=generator, dtype=torch.float64)
        parts.append(sample_surface(mesh, near, generator) + spread * noise)
    points = torch.cat(parts)
    return LabelledPoints(points.float(), inside(mesh, points).float())


class OccupancyTask(Task):
    """L = mean over the batch's points of the binary cross-entropy of σ(f(x)) with the label.

    As a sum of squares its residuals are the roots √(2ℓ/n) of the points' losses ℓ. A batch is a tensor of numbers
    of training points.
    """

    def __init__(self, field: nn.Module, training: LabelledPoints, held_out: LabelledPoints) -> None:
        """Bind ``field`` to labelled points.

        Args:
            field: From (B, 3) coordinates to (B, 1) logits.
            training: Points to learn from.
            held_out: Points to score on.
        """
        super().__init__(field)
        self.training = training
        self.held_out = held_out

    @property
    def size(self) -> int:
        """Number of training points."""
        return len(self.training.points)

    def losses(self, batch: Tensor) -> Tensor:
        """Return the cross-entropy of each point of the batch, (B,)."""
        logits = self.module(self.training.points[batch]).squeeze(-1)
        return nn.functional.binary_cross_entropy_with_logits(logits, self.training.labels[batch], reduction="none")

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return self.losses(batch).mean()

    def residual(self, batch: Tensor) -> Tensor:
        """Return √(2ℓ/n); the root is taken above the smallest normal number, where its slope is finite."""
        losses = self.losses(batch)
        return (2 / len(losses) * losses).clamp(min=torch.finfo(losses.dtype).tiny).sqrt()

    def score(self) -> Mapping[str, float]:
        """Return the intersection over union of the held-out points."""
        predicted = in_chunks(self.module, self.held_out.points, self.chunk).squeeze(-1) > 0
        return {"iou": intersection_over_union(predicted, self.held_out.labels > 0.5)}

    def grid(self, resolution: int) -> Float[Tensor, "x y z"]:
        """Return the logits on a grid of so many points along each edge of the box, ends included."""
        grid = torch.empty(resolution, resolution, resolution)
        for plane, points in zip(grid, grid_planes(resolution), strict=True):
            plane.copy_(in_chunks(self.module, points, self.chunk).reshape(plane.shape))
        return grid


def grid_planes(resolution: int) -> Iterator[Float[Tensor, "yz 3"]]:
    """Yield the points of a grid of the box plane by plane, x rising, and in each y before z."""
    axis = torch.linspace(-1, 1, resolution)
    for x in axis:
        yield torch.cartesian_prod(x[None], axis, axis)


def intersection_over_union(predicted: Bool[Tensor, " count"], truth: Bool[Tensor, " count"]) -> float:
    """Return |A ∩ B| / |A ∪ B|, 1 where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


@dataclass(frozen=True)
class Surface:
    """Triangles in the box.

    Attributes:
        vertices: (V, 3).
        faces: (F, 3), vertex numbers.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]


def zero_surface(grid: Float[Tensor, "x y z"]) -> Surface | None:
    """Return the surface where ``grid`` passes through zero, by marching cubes; None where it does not.

    The grid is closed at the faces of the box, so the surface is too, with normals towards negative values.

    Args:
        grid: Values at the points of :meth:`OccupancyTask.grid`, positive inside.
    """
    from skimage.measure import marching_cubes

    low, high = map(float, grid.aminmax())
    if not high > 0:
        return None
    padded = np.pad(grid.numpy(), 1, constant_values=-max(-low, high) - 1)
    step = 2 / (grid.shape[0] - 1)
    vertices, faces, _, _ = marching_cubes(padded, 0.0, spacing=(step,) * 3, gradient_direction="ascent")
    return Surface(torch.from_numpy(vertices.copy()) - 1 - step, torch.from_numpy(faces.copy()).long())


def shaded(occupied: Iterable[Bool[Tensor, "y z"]]) -> Float[Tensor, "z x 1"]:
    """Return a grey picture of what is occupied, seen along +y with z up, lit from the viewer.

    Args:
        occupied: Cells of the box, plane by plane, x rising.
    """
    depths = []
    for plane in occupied:
        depth = plane.shape[0]
        depths.append(torch.where(plane.any(dim=0), plane.int().argmax(dim=0), depth))
    first = torch.stack(depths).float()
    slope_x, slope_z = torch.gradient(first)
    facing = 1 / (1 + slope_x.clamp(-4, 4).square() + slope_z.clamp(-4, 4).square()).sqrt()
    grey = torch.where(first < depth, 0.15 + 0.75 * facing, torch.ones(()))
    return grey.T.flip(0)[..., None].contiguous()
