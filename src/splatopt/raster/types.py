"""What goes into a renderer and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from torch import Tensor

from splatopt.core.checks import InputError


@runtime_checkable
class Gaussians(Protocol):
    """The six tensors a renderer reads; ``splatopt.scene.GaussianCloud`` is one."""

    @property
    def means(self) -> Tensor: ...  # noqa: D102

    @property
    def log_scales(self) -> Tensor: ...  # noqa: D102

    @property
    def quats(self) -> Tensor: ...  # noqa: D102

    @property
    def logit_opacities(self) -> Tensor: ...  # noqa: D102

    @property
    def sh_dc(self) -> Tensor: ...  # noqa: D102

    @property
    def sh_rest(self) -> Tensor: ...  # noqa: D102


class Footprint(Enum):
    """How the low-pass of 0.3 px² treats opacity.

    CLASSIC leaves it, as 3DGS. ANTIALIASED multiplies it by √(det Σ / det(Σ + 0.3·I)), the
    projected covariance before and after, so that small Gaussians keep their mass (Mip-Splatting's
    2D filter; gsplat's "antialiased").
    """

    CLASSIC = "classic"
    ANTIALIASED = "antialiased"


@dataclass(frozen=True)
class RenderOptions:
    """How a cloud is rendered.

    Attributes:
        background: Colour behind everything, RGB in [0, 1].
        footprint: Classic or antialiased (opacity-compensated).
        sh_degree: Highest degree that is evaluated; None for all that is stored.
    """

    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    footprint: Footprint = Footprint.CLASSIC
    sh_degree: int | None = None

    def __post_init__(self) -> None:
        """Check the colour and the degree."""
        if len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background):
            raise InputError(f"the background must be three numbers in [0, 1], got {self.background}")
        if self.sh_degree is not None and self.sh_degree not in (0, 1, 2, 3):
            raise InputError(f"the spherical-harmonics degree must be 0, 1, 2 or 3, got {self.sh_degree}")


@dataclass(frozen=True)
class Rendering:
    """One rendered view.

    Attributes:
        image: Colour over the background, (H, W, 3), not clamped to [0, 1].
        alpha: 1 - final transmittance, (H, W).
        depth: Σ_i w_i z_i with the blending weights w and the centres' camera depth z, (H, W), world
            units; divide by ``alpha`` for the mean depth of what is hit.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
