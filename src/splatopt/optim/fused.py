"""Fused passes over a whole cloud: the C++ ones on the CPU, the Triton ones on a GPU, under the same names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from splatopt import kernels
from splatopt.core import native
from splatopt.core.objective import Tensors
from splatopt.core.schema import GAUSSIAN_TENSORS


@dataclass(frozen=True)
class FusedPasses:
    """What does to a whole cloud, reading and writing each number once, what the steps in torch define.

    Attributes:
        passes: ``sign_step``, ``adam_clipped_step``, ``curvature_step``, ``block_step``, ``fold_blocks`` and
            ``block_form``, whose arguments are the same on every device.
        cloud: Makes what they take of a cloud's six tensors, which must outlive it.
        bounds: Makes what they take of a trust region, named as in ``RadiusBounds``.
        in_lanes: Whether kept blocks lie as ``to_lanes`` lays them out, instead of row by row.
    """

    passes: Any
    cloud: Callable[[Tensors], Any]
    bounds: Callable[..., Any]
    in_lanes: bool


def fused_passes(threads: int, *clouds: Tensors, isa: str = "auto") -> FusedPasses | None:
    """Return the passes that take all these tensors, or None where the step is taken in torch.

    They take a cloud's six tensors, contiguous float32, on the CPU where the native module is installed, or on one
    GPU where Triton is.

    Args:
        threads: Threads of the native passes, 0 for one per processor.
        clouds: Values, gradient and states.
        isa: Instruction set of the native passes.
    """
    if any(set(tensors) != set(GAUSSIAN_TENSORS) for tensors in clouds):
        return None
    tensors = [tensor for cloud in clouds for tensor in cloud.values()]
    if native.available() and all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors
    ):
        return FusedPasses(native.workers(threads, isa), native.cloud_tensors, native.trust_bounds, in_lanes=False)
    if kernels.takes(tensors):
        from splatopt.kernels import steps

        return FusedPasses(steps, steps.Cloud.of, steps.TrustBounds, in_lanes=True)
    return None
