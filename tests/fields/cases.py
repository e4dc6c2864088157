"""Fields and tasks small enough for dense derivatives."""

from __future__ import annotations

import torch

from splatopt.fields import Architecture, ImageTask, field_names, make_field

NAMES = field_names()
SMOOTH = ("gaussian", "sine", "wavelet", "sinc")
MILD = {"gaussian": {"sigma": 0.5}, "sine": {"omega": 3.0}, "wavelet": {"omega": 2.0, "scale": 1.0}}
MILD |= {"sinc": {"omega": 3.0}, "relu-pe": {"frequencies": 2}}
"""Constants at which a field of a few features is well conditioned and no unit is dead."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_image_task(name: str, *, width: int = 5, depth: int = 1, side: int = 6, seed: int = 0) -> ImageTask:
    """A float64 task of a field with mild constants on an image of random colours."""
    source = generator(seed)
    field = make_field(name, Architecture(2, 1, width, depth), source, **MILD.get(name, {})).double()
    image = torch.rand(side, side, 1, generator=source, dtype=torch.float64)
    return ImageTask(field, image)


def random_tangent(parameters, seed: int = 1):
    source = generator(seed)
    return {n: torch.randn(p.shape, generator=source, dtype=p.dtype) for n, p in parameters.items()}
