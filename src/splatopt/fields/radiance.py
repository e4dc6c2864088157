"""A scene as a radiance field (NeRF; Mildenhall et al. 2020): points and directions in, density and colour out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from splatopt.core.camera import Camera
from splatopt.core.graph import mean_squared_residual
from splatopt.fields.image import MAX_DECIBELS, decibels
from splatopt.fields.networks import Field, draw_linear, undrawn_linear
from splatopt.fields.task import Task, chunk_of, in_chunks
from splatopt.metrics.image import SSIM_WINDOW, psnr, ssim

FEATURES = 15
"""What the field hands on beside the density."""

_HEAD_WIDTH = 64


class RadianceField(nn.Module):
    """Raw density f₀(x) and colour c(x, d) = sigmoid(g(f₁…(x), d)), g with one hidden layer of ReLU."""

    def __init__(self, field: Field, generator: torch.Generator) -> None:
        """Put the colour's head on ``field``.

        Args:
            field: From 3 coordinates to 1 + FEATURES numbers.
            generator: Draws the head's start.
        """
        super().__init__()
        if (field.architecture.inputs, field.architecture.outputs) != (3, 1 + FEATURES):
            raise ValueError(f"a radiance field needs a field from 3 to {1 + FEATURES} numbers")
        self.field = field
        self.hidden = undrawn_linear(FEATURES + 3, _HEAD_WIDTH)
        self.color = undrawn_linear(_HEAD_WIDTH, 3)
        draw_linear(self.hidden, generator)
        draw_linear(self.color, generator)

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return densities before their activation, (…, 1), and colours in [0, 1], (…, 3)."""
        found = self.field(points)
        features = torch.relu(self.hidden(torch.cat([found[..., 1:], directions], dim=-1)))
        return found[..., :1], torch.sigmoid(self.color(features))


@runtime_checkable
class Images(Protocol):
    """Images by view, (H, W, 3) uint8."""

    def __getitem__(self, view: int) -> Tensor:
        """Return the photograph of a view."""
        ...


@dataclass(frozen=True)
class Bounds:
    """Where along its rays a scene lies, and what becomes the box [-1, 1]³.

    Attributes:
        center: Of the box, (3,), world units.
        radius: Half the box's edge, world units.
        near: Where samples begin, world units from the camera.
        far: Where they end.
    """

    center: Tensor
    radius: float
    near: float
    far: float


@dataclass(frozen=True)
class Rays:
    """Straight lines through pixel centres.

    Attributes:
        origins: (N, 3), world units.
        directions: (N, 3), unit length.
    """

    origins: Float[Tensor, "count 3"]
    directions: Float[Tensor, "count 3"]


@dataclass(frozen=True)
class RayBatch:
    """What a step sees.

    Attributes:
        rays: The rays.
        colors: What the photographs have there, (B, 3).
        jitter: Where within its stretch each sample lies, (B, samples), in [0, 1).
        seen: Which rays count, (B, 1), 1 or 0 where the pixel is masked; None where all do.
    """

    rays: Rays
    colors: Float[Tensor, "count 3"]
    jitter: Float[Tensor, "count samples"]
    seen: Float[Tensor, "count 1"] | None = None


def camera_rays(camera: Camera, pixels: Tensor) -> Rays:
    """Return the rays of a camera through its pixels ``pixels``, numbered row by row."""
    x = (pixels % camera.width + 0.5 - camera.cx) / camera.fx
    y = (torch.div(pixels, camera.width, rounding_mode="floor") + 0.5 - camera.cy) / camera.fy
    local = torch.stack([x, y, torch.ones_like(x)], dim=-1).double()
    rotated = local @ camera.world_to_camera[:3, :3].double()
    directions = (rotated / rotated.norm(dim=-1, keepdim=True)).float()
    return Rays(camera.center.float().expand_as(directions), directions)


class RadianceTask(Task):
    """L = mean over the batch's rays and channels of (C - y)², C the colour by volume rendering.

    Ray o + td is cut into equal stretches between near and far, with one sample in each: at its jitter in training,
    in its middle when rendering. With densities σᵢ = softplus(f₀ - 1) per stretch, colours cᵢ and the distances δᵢ
    between samples, in stretches::

        αᵢ = 1 - exp(-σᵢδᵢ)      wᵢ = αᵢ·Πⱼ<ᵢ (1 - αⱼ)      C = Σ wᵢcᵢ + (1 - Σ wᵢ)·background

    A batch holds rays and jitter, so that gradient and Hessian product see the same samples.
    """

    def __init__(
        self,
        field: nn.Module,
        cameras: Sequence[Camera],
        images: Images,
        bounds: Bounds,
        *,
        train: Sequence[int],
        test: Sequence[int],
        samples: int = 64,
        background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        """Bind ``field`` to photographs.

        Args:
            field: From points of the box and directions to raw densities and colours, as a RadianceField.
            cameras: One per view.
            images: One per view; with ``weights`` by view, as an ImageStore's, those of weight 0 do not count.
            bounds: Where the scene lies.
            train: Views to learn from.
            test: Views to score on, at least one.
            samples: Per ray.
            background: What lies behind, red, green and blue in [0, 1].
        """
        super().__init__(field)
        self.field = field
        self.cameras, self.images, self.bounds = cameras, images, bounds
        self.weights = getattr(images, "weights", None)
        self.train, self.test = tuple(train), tuple(test)
        self.samples = samples
        self.background = torch.tensor(background)
        counts = torch.tensor([cameras[view].width * cameras[view].height for view in self.train])
        self._ends = counts.cumsum(0)

    @property
    def size(self) -> int:
        """Number of rays of the training views."""
        return int(self._ends[-1])

    @property
    def chunk(self) -> int:
        """Rays that are evaluated at once outside training."""
        return chunk_of(self.module, self.samples)

    def draw(self, indices: Tensor, generator: torch.Generator) -> RayBatch:
        """Return the rays ``indices`` of all training views, one after the other, with fresh jitter."""
        position = torch.searchsorted(self._ends, indices, right=True)
        before = torch.cat([self._ends.new_zeros(1), self._ends])[position]
        origins, directions, colors = (torch.empty(len(indices), 3) for _ in range(3))
        seen = None if self.weights is None else torch.ones(len(indices), 1)
        for place in position.unique().tolist():
            rows = position == place
            pixels = (indices - before)[rows]
            rays = camera_rays(self.cameras[self.train[place]], pixels)
            origins[rows], directions[rows] = rays.origins, rays.directions
            colors[rows] = self.images[self.train[place]].reshape(-1, 3)[pixels].float() / 255
            weights = None if self.weights is None else self.weights[self.train[place]]
            if seen is not None and weights is not None:
                seen[rows] = weights.reshape(-1, 1)[pixels]
        jitter = torch.rand(len(indices), self.samples, generator=generator)
        return RayBatch(Rays(origins, directions), colors, jitter, seen)

    def residual(self, batch: RayBatch) -> Tensor:
        """Return √(2/n)·(C - y), n the colour values that count; 0 where a ray does not."""
        shaded = self.shade(batch.rays, batch.jitter)
        if batch.seen is None:
            return mean_squared_residual(shaded, batch.colors)
        share = float(batch.seen.mean()) or 1.0
        return mean_squared_residual(shaded * batch.seen, batch.colors * batch.seen) / math.sqrt(share)

    def metrics(self, loss: float) -> Mapping[str, float]:
        """Return the PSNR of the batch, dB; the loss is its mean squared error."""
        return {"psnr": decibels(loss)}

    def shade(self, rays: Rays, jitter: Tensor) -> Float[Tensor, "count 3"]:
        """Return the colours of ``rays``, with samples at ``jitter``, (count, samples) or one number for all."""
        near, far = self.bounds.near, self.bounds.far
        stretch = (far - near) / self.samples
        distances = near + (torch.arange(self.samples) + jitter.expand(len(rays.origins), self.samples)) * stretch
        points = rays.origins[:, None] + distances[..., None] * rays.directions[:, None]
        boxed = (points - self.bounds.center) / self.bounds.radius
        raw, colors = self.field(boxed, rays.directions[:, None].expand_as(points))
        gaps = torch.diff(distances, dim=1, append=distances.new_full((len(distances), 1), far)) / stretch
        depth = nn.functional.softplus(raw.squeeze(-1) - 1) * gaps
        before = torch.cumsum(depth, dim=1) - depth
        weights = (1 - torch.exp(-depth)) * torch.exp(-before)
        behind = 1 - weights.sum(dim=1, keepdim=True)
        return (weights[..., None] * colors).sum(dim=1) + behind * self.background

    def render(self, view: int) -> Float[Tensor, "height width 3"]:
        """Return a whole view, samples in the middle of their stretches."""
        camera = self.cameras[view]
        pixels = torch.arange(camera.width * camera.height)
        middle = torch.tensor(0.5)
        image = in_chunks(lambda part: self.shade(camera_rays(camera, part), middle), pixels, self.chunk)
        return image.clamp(0, 1).reshape(camera.height, camera.width, 3)

    def image(self, view: int) -> UInt8[Tensor, "height width 3"]:
        """Return the photograph of a view."""
        return self.images[view]

    def score(self) -> Mapping[str, float]:
        """Return mean PSNR and SSIM over the test views; no SSIM where a side is below its window."""
        found: dict[str, list[float]] = {"psnr": [], "ssim": []}
        cameras = [self.cameras[view] for view in self.test]
        has_ssim = min(min(camera.height, camera.width) for camera in cameras) >= SSIM_WINDOW
        for view in self.test:
            weight = None if self.weights is None else self.weights[view]
            pair = self.render(view), self.image(view).float() / 255, weight
            found["psnr"].append(min(psnr(*pair), MAX_DECIBELS))
            if has_ssim:
                found["ssim"].append(ssim(*pair))
        return {name: sum(values) / len(values) for name, values in found.items() if values}
