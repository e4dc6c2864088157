"""The seam between renderers and what uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.raster.residuals import ResidualOptions
from splatopt.raster.types import GAUSSIAN_TENSORS, Gaussians, Rendering, RenderOptions


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
    """Renders views and gives the derivatives of the photometric loss.

    What concerns the residuals r (:mod:`splatopt.raster.residuals`) and their Jacobian J = ∂r/∂θ is
    optional: a renderer overrides the methods of the oracles that it names, the others raise
    MissingOracleError. n = 3·H·W.
    """

    name: str

    @property
    @abstractmethod
    def oracles(self) -> frozenset[Oracle]:
        """The derivative questions that this renderer can answer."""

    def held(self) -> AbstractContextManager[None]:
        """Promise that, while it is open, the Gaussians are the same whenever a question is asked.

        A view that was drawn last need then not be drawn again.
        """
        return nullcontext()

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

    def value(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        ssim_weight: float,
    ) -> ViewLoss:
        """Return what :meth:`accumulate_gradient` does of one view, without the gradient.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            ssim_weight: λ of the loss.
        """
        gradient = {name: torch.zeros_like(getattr(gaussians, name)) for name in GAUSSIAN_TENSORS}
        seen = torch.zeros(gaussians.means.shape[0], dtype=torch.bool, device=gaussians.means.device)
        return self.accumulate_gradient(
            gaussians, camera, target, options, ssim_weight, 0.0, gradient, seen, overwrite=True
        )

    def residuals(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
    ) -> Tensor:
        """Return the residuals of one view, (components, H, W, 3); the loss is ½‖r‖².

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.

        Raises:
            MissingOracleError: This renderer has none.
        """
        self._refuse("residuals")

    def jvp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        tangent: Mapping[str, Tensor],
    ) -> Tensor:
        """Return J v of one view, in the shape of its residuals.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.JVP.value)

    def vjp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        cotangent: Tensor,
        weight: float,
        gradient: Mapping[str, Tensor],
        overwrite: bool = False,
    ) -> None:
        """Add ``weight`` · Jᵀ u of one view to ``gradient``.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.
            cotangent: u, in the shape of the residuals.
            weight: Factor on the product.
            gradient: One tensor per parameter, in its shape; added to.
            overwrite: Take ``gradient`` as empty, whatever it holds.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.VJP.value)

    def gauss_newton_product(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        tangent: Mapping[str, Tensor],
        weight: float,
        product: Mapping[str, Tensor],
        overwrite: bool = False,
    ) -> None:
        """Add ``weight`` · JᵀJ v of one view to ``product``.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.
            weight: Factor on the product.
            product: One tensor per parameter, in its shape; added to.
            overwrite: Take ``product`` as empty, whatever it holds.

        Raises:
            MissingOracleError: This renderer lacks ``jvp`` or ``vjp``.
        """
        scene = (gaussians, camera, target, options, residual_options)
        self.vjp(*scene, self.jvp(*scene, tangent), weight, product, overwrite)

    def accumulate_diagonal(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        weight: float,
        diagonal: Mapping[str, Tensor],
        overwrite: bool = False,
    ) -> None:
        """Add ``weight`` · the Gauss-Newton diagonal of one view to ``diagonal``.

        D_θ = Σ_{p,c} W_pc (∂C_pc/∂θ)² over pixels p and channels c of the image C, with
        W_pc = Σ_k (∂r_kpc/∂C_pc)²: each residual counts as a function of its own pixel alone. That is
        exactly diag(JᵀJ) for L1 and for squared errors; of SSIM it keeps the derivative to the
        window's centre, as 3DGS-LM (Höllein et al. 2025).

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.
            weight: Factor on the diagonal, 1 / number of views in the batch for a mean.
            diagonal: One tensor per parameter, in its shape; added to, exactly 0 for what is not drawn.
            overwrite: Take ``diagonal`` as empty, whatever it holds.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.GAUSS_NEWTON_DIAGONAL.value)

    def accumulate_blocks(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        weight: float,
        blocks: Tensor,
        rest_diagonal: Tensor,
        overwrite: bool = False,
    ) -> None:
        """Add ``weight`` · each Gaussian's own 14x14 Gauss-Newton block of one view to ``blocks``.

        B = Σ_{p,c} W_pc (∂C_pc/∂θ)(∂C_pc/∂θ)ᵀ over θ = (means 3, log_scales 3, quats 4,
        logit_opacities 1, sh_dc 3), with the weights of :meth:`accumulate_diagonal`.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            residual_options: Which residuals.
            weight: Factor on the blocks.
            blocks: Lower triangles by row, (N, 105), entry (i, j ≤ i) at i·(i+1)/2 + j; added to.
            rest_diagonal: Diagonal for ``sh_rest``, (N, K, 3); added to.
            overwrite: Take both as empty, whatever they hold.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.GAUSS_NEWTON_BLOCKS.value)

    def hvp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        ssim_weight: float,
        tangent: Mapping[str, Tensor],
        weight: float,
        product: Mapping[str, Tensor],
        overwrite: bool = False,
    ) -> None:
        """Add ``weight`` · ∇²loss v of one view to ``product``, the loss being that of the gradient.

        |x - y| counts as having no curvature, at zero either; SSIM and the rendering have theirs.

        Args:
            gaussians: What is rendered.
            camera: From where.
            target: The photograph, (H, W, 3), uint8.
            options: How it is rendered.
            ssim_weight: λ of the loss.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.
            weight: Factor on the product.
            product: One tensor per parameter, in its shape; added to.
            overwrite: Take ``product`` as empty, whatever it holds.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.HVP.value)

    def memory_needed(self, gaussians: int, pixels: int, pairs: int, asked: frozenset[Oracle]) -> int:
        """Estimate the bytes that one view takes beside Gaussians, gradients and residuals.

        What autograd keeps of the projection, of the image and its loss, and lists of keys and values that are
        sorted out of place; counted, and not measured for renderers on a GPU.

        Args:
            gaussians: N.
            pixels: H·W.
            pairs: Pairs of a Gaussian and a tile of 16x16 pixels that it touches.
            asked: The derivatives that are taken.
        """
        return 600 * gaussians + 400 * pixels + 40 * pairs

    def _refuse(self, asked: str) -> NoReturn:
        """Raise MissingOracleError for ``asked``."""
        given = ", ".join(sorted(oracle.value for oracle in self.oracles))
        raise MissingOracleError(
            f"the {self.name} renderer does not give {asked} (it gives {given}); take a renderer that does "
            "(the reference gives all) or an optimizer that asks less"
        )
