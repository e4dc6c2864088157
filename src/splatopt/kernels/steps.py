"""The fused steps of a whole cloud on the GPU, under the names of the native passes."""

from __future__ import annotations

from splatopt.core.schema import GaussianTensors as Cloud
from splatopt.kernels.block_step import block_form, block_step, fold_blocks
from splatopt.kernels.hellinger import TrustBounds
from splatopt.kernels.trust_region import adam_clipped_step, curvature_step, sign_step

__all__ = [
    "Cloud",
    "TrustBounds",
    "adam_clipped_step",
    "block_form",
    "block_step",
    "curvature_step",
    "fold_blocks",
    "sign_step",
]
