"""Photographs: radiance through a camera, exposed, as 8-bit pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splatopt.data.synthetic.cameras import camera_rays
from splatopt.data.synthetic.tracing import Tracer

_BRIGHT = 0.85
_GAMMA = 2.2


def _view(
    tracer: Tracer, pose: np.ndarray, focal: float, size: tuple[int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return radiance (height, width, samples², 3) and what is there of it, (height, width, samples²)."""
    width, height = size
    steps = (np.arange(samples) + 0.5) / samples
    columns, rows = (np.arange(width)[:, None] + steps).ravel(), (np.arange(height)[:, None] + steps).ravel()
    pixels = np.stack(np.meshgrid(columns, rows), axis=-1)
    # Each of a pixel's rays sees another part of a lamp, the same one in every pixel.
    part = (np.arange(samples)[:, None] * samples + np.arange(samples) + 0.5) / samples**2
    parts = np.tile(part, (height, width)).astype(np.float32)
    colors, there = tracer.radiance(*camera_rays(pose, focal, pixels.reshape(-1, 2), size), parts.ravel())
    split = (height, samples, width, samples)
    colors = colors.reshape(*split, 3).transpose(0, 2, 1, 3, 4).reshape(height, width, samples**2, 3)
    return colors, there.reshape(split).transpose(0, 2, 1, 3).reshape(height, width, samples**2)


def render_images(
    tracer: Tracer, poses: Sequence[np.ndarray], focal: float, size: tuple[int, int], samples: int
) -> list[np.ndarray]:
    """Return one uint8 picture per pose: (height, width, 3), or (height, width, 4) where the world has no sky.

    A pixel is the mean of samples × samples rays, each exposed and gamma-encoded (c = x^(1/2.2), x clipped at 1)
    before the mean, so that edges stay smooth on bright lights. One exposure, set by the 95th percentile over all
    views, serves the scene.
    """
    views = [_view(tracer, pose, focal, size, samples) for pose in poses]
    bright = np.concatenate([colors[there].max(axis=-1)[::7] for colors, there in views])
    exposure = _BRIGHT / max(float(np.percentile(bright, 95)), 1e-6) if len(bright) else 1.0
    pictures = []
    for colors, there in views:
        encoded = np.clip(exposure * colors, 0, 1) ** np.float32(1 / _GAMMA)
        if tracer.world.sky is None and tracer.world.kind == "objects":
            alpha = there.mean(axis=2, keepdims=True)
            mean = (encoded * there[..., None]).sum(axis=2) / np.maximum(there.sum(axis=2), 1)[..., None]
            picture = np.concatenate([mean, alpha], axis=-1)
        else:
            picture = encoded.mean(axis=2)
        pictures.append(np.rint(255 * picture).astype(np.uint8))
    return pictures
