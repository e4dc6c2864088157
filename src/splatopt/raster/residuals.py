"""Which residuals a photometric loss is made of, and how their derivatives stay finite.

With n = 3·H·W components a view, every variant's residuals r satisfy loss = ½‖r‖², so that JᵀJ is the
Gauss-Newton matrix of the loss, J = ∂r/∂θ. ``docs/curvature.md`` has the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from splatopt.core.checks import InputError
from splatopt.raster.constants import SSIM_WEIGHT

BLOCK_TENSORS = ("means", "log_scales", "quats", "logit_opacities", "sh_dc")
"""The tensors whose entries, in this order, make up a Gaussian's block."""

BLOCK_SIZE = 14
"""Rows of a Gaussian's block: centre 3, scales 3, quaternion 4, opacity 1, base colour 3."""

PACKED_BLOCK = BLOCK_SIZE * (BLOCK_SIZE + 1) // 2
"""Numbers of a block's lower triangle; entry (i, j ≤ i) stands at i·(i+1)/2 + j."""


@dataclass(frozen=True)
class L1Ssim:
    """The loss (1-λ)·mean|x - y| + λ·(1 - mean SSIM) of 3DGS; residuals (2, H, W, 3).

    r₁ = √(2(1-λ)/n · |x - y|) and r₂ = √(2λ/n · (1 - SSIM)), per pixel and channel. Both are square roots
    that end in zero, where their slope is infinite, so the derivatives (not the residuals) hold what is
    under the root above a floor:

        ∂r₁/∂x = sign(x - y) · √((1-λ) / (2n · max(|x - y|, floor_absolute))), sign(0) = 0
        ∂r₂ₚ/∂x_q = -√(λ / (2n · max(1 - SSIMₚ, floor_dissimilarity))) · ∂SSIMₚ/∂x_q, over the 11×11 window

    Jᵀr is the gradient of the loss where neither floor acts, and smaller than it where one does.

    Attributes:
        ssim_weight: λ, a fraction.
        floor_absolute: Least |x - y| in ∂r₁/∂x, in colours from 0 to 1; one step of an 8-bit image.
        floor_dissimilarity: Least 1 - SSIM in ∂r₂/∂x.
    """

    components: ClassVar[int] = 2
    ssim_weight: float = SSIM_WEIGHT
    floor_absolute: float = 1.0 / 255.0
    floor_dissimilarity: float = 1e-3

    def __post_init__(self) -> None:
        """Check that λ is a fraction and that the floors are above zero."""
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"the weight of SSIM in the residuals must lie in [0, 1], got {self.ssim_weight}")
        for name, value in (
            ("floor_absolute", self.floor_absolute),
            ("floor_dissimilarity", self.floor_dissimilarity),
        ):
            if not 0 < value < float("inf"):
                raise InputError(
                    f"the residuals' {name} must be a positive number, got {value}; without a floor their "
                    "derivative is infinite where the error is zero"
                )


@dataclass(frozen=True)
class SquaredError:
    """Half the mean squared error; residuals (1, H, W, 3), r = (x - y)/√n."""

    components: ClassVar[int] = 1


ResidualOptions = L1Ssim | SquaredError
"""One variant; each has ``components``, the first axis of its residuals (components, H, W, 3)."""
