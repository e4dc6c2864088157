"""Fused passes over a whole cloud: the C++ ones on the CPU, the Triton ones on a GPU, under the same names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, runtime_checkable

import torch
from torch import Tensor

from splatopt import kernels
from splatopt.core import native
from splatopt.core.objective import Tensors
from splatopt.core.schema import GAUSSIAN_TENSORS

BoundsT = TypeVar("BoundsT")
CloudT = TypeVar("CloudT")
Bounds_contra = TypeVar("Bounds_contra", contravariant=True)
Cloud_contra = TypeVar("Cloud_contra", contravariant=True)


class ClippedAdamNumbers(TypedDict):
    """The numbers of Adam's clipped step: rates of the six tensors; ``step`` counts from 1."""

    rates: list[float]
    beta1: float
    beta2: float
    epsilon: float
    step: int


class BlockNumbers(TypedDict):
    """The numbers of a step with blocks; with ``measure_only`` nothing moves."""

    decay: float
    correction: float
    scale: float
    damping: float
    factorisations: int
    measure_only: bool


@runtime_checkable
class TrustRegionPasses(Protocol[Bounds_contra, Cloud_contra]):
    """The passes of trust-region steps, all in place; a device has its own form of bounds and clouds."""

    def sign_step(
        self,
        bounds: Bounds_contra,
        values: Cloud_contra,
        gradient: Cloud_contra,
        momentum: Cloud_contra,
        *,
        decay: float,
    ) -> None:
        """Take the momentum's sign times the radii."""
        ...

    def adam_clipped_step(
        self,
        bounds: Bounds_contra,
        values: Cloud_contra,
        gradient: Cloud_contra,
        exp_avg: Cloud_contra,
        exp_avg_sq: Cloud_contra,
        **numbers: Unpack[ClippedAdamNumbers],
    ) -> None:
        """Take Adam's step clipped to the radii; rates of the six tensors, ``step`` counts from 1."""
        ...

    def curvature_step(
        self,
        bounds: Bounds_contra,
        values: Cloud_contra,
        gradient: Cloud_contra,
        momentum: Cloud_contra,
        curvature: Cloud_contra,
        *,
        decay: float,
        factor: float,
        damping: list[float],
    ) -> list[float]:
        """Take momentum over damped curvature clipped to the radii; returns the means of |mη| of the six tensors."""
        ...

    def block_step(
        self,
        bounds: Bounds_contra,
        values: Cloud_contra,
        gradient: Cloud_contra,
        momentum: Cloud_contra,
        blocks: Tensor,
        seen: Tensor | None,
        multipliers: Tensor,
        **numbers: Unpack[BlockNumbers],
    ) -> float:
        """Take steps with 14×14 blocks within balls; returns the sum of |ηg| over the rows that were seen.

        The curvature of ``sh_rest`` is what the blocks bound it by, see ``higher_bands_curvature``.
        """
        ...

    def fold_blocks(self, blocks: Tensor, fresh: Tensor, weights: Tensor) -> None:
        """Move kept blocks towards fresh ones (N, 105) by each row's weight."""
        ...

    def block_form(self, blocks: Tensor, step: Cloud_contra) -> float:
        """Return Σ dᵀBd over all rows, blocks (N, 105), and Σ D d² over ``sh_rest``, D what they bound it by."""
        ...


@dataclass(frozen=True)
class FusedPasses(Generic[BoundsT, CloudT]):
    """What does to a whole cloud, reading and writing each number once, what the steps in torch define.

    Attributes:
        passes: The passes, whose arguments are the same on every device.
        cloud: Makes what they take of a cloud's six tensors, which must outlive it.
        bounds: Makes what they take of a trust region, named as in ``RadiusBounds``.
        in_lanes: Whether kept blocks lie as ``to_lanes`` lays them out, instead of row by row.
    """

    passes: TrustRegionPasses[BoundsT, CloudT]
    cloud: Callable[[Tensors], CloudT]
    bounds: Callable[..., BoundsT]
    in_lanes: bool


AnyFusedPasses: TypeAlias = FusedPasses[Any, Any]
"""Those of some device: what it makes of bounds and clouds goes into its own passes alone."""


def fused_passes(threads: int, *clouds: Tensors, isa: str = "auto") -> AnyFusedPasses | None:
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
