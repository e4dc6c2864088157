"""The renderer on a GPU: glue between tensors and the Triton kernels, imported on first use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.kernels.projection import CloudPointers
from splatopt.kernels.view import RenderingRule, pack_view
from splatopt.raster import constants
from splatopt.raster.types import GAUSSIAN_TENSORS, Gaussians, RenderOptions


def view_numbers(camera: Camera, options: RenderOptions, device: torch.device) -> Tensor:
    """Return camera, background and the rule's numbers as the kernels take them."""
    rule = RenderingRule(
        near_plane=constants.NEAR_PLANE,
        low_pass=constants.LOW_PASS,
        max_alpha=constants.MAX_ALPHA,
        min_alpha=constants.MIN_ALPHA,
        min_transmittance=constants.MIN_TRANSMITTANCE,
        frustum_margin=constants.FRUSTUM_MARGIN,
    )
    return pack_view(camera, options.background, rule, device)


def cloud_pointers(gaussians: Gaussians, options: RenderOptions) -> CloudPointers:
    """Return the Gaussians' tensors as the kernels take them.

    Raises:
        ValueError: A tensor is not contiguous float32, or they lie on different devices.
    """
    tensors = [getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS]
    device = tensors[0].device
    for name, tensor in zip(GAUSSIAN_TENSORS, tensors, strict=True):
        if tensor.dtype != torch.float32 or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"the cuda renderer needs contiguous float32 tensors on one device; {name} is {tensor.dtype} "
                f"on {tensor.device}, strides {tensor.stride()} (the reference renderer takes any type)"
            )
    stored = math.isqrt(gaussians.sh_rest.shape[1] + 1) - 1
    degree = stored if options.sh_degree is None else min(options.sh_degree, stored)
    return CloudPointers(*tensors, degree)
