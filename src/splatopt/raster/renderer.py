"""The seam between renderers and what uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.raster.types import Gaussians, Rendering, RenderOptions


@dataclass(frozen=True)
class ViewLoss:
    """Loss of one rendered view against its photograph.

    Attributes:
        loss: (1-λ)·L1 + λ·(1-SSIM), mean over pixels and channels.
        squared_error: Mean squared error over pixels and channels, for PSNR.
    """

    loss: float
    squared_error: float


class Renderer(ABC):
    """Renders views and gives the derivatives of the photometric loss."""

    name: str

    @property
    @abstractmethod
    def oracles(self) -> frozenset[Oracle]:
        """The derivative questions that this renderer can answer."""

    @abstractmethod
    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        """Render one view, without gradients."""

    @abstractmethod
    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        ssim_weight: float,
        weight: float,
        gradient: Mapping[str, Tensor],
        seen: Tensor,
        overwrite: bool = False,
    ) -> ViewLoss:
        """Add ``weight`` · ∂loss/∂θ of one view to ``gradient``.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            ssim_weight: λ of the loss.
            weight: Factor on the gradient, 1 / number of views in the batch for a mean.
            gradient: One tensor per parameter, in its shape; added to.
            seen: (N,) bool; set true where this view drew the Gaussian, otherwise left as it is.
            overwrite: Take ``gradient`` and ``seen`` as empty, whatever they hold: spares clearing them.

        Returns:
            Loss and squared error of this view, not multiplied by ``weight``.
        """
