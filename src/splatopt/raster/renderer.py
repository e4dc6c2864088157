"""The seam between renderers and what uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum
from splatopt.raster.types import Gaussians, Rendering, RenderOptions


class Renderer(ABC):
    """Renders views and gives the derivatives of a view's loss.

    What concerns the residuals r of a loss (:mod:`splatopt.raster.losses`) and their Jacobian J = ∂r/∂θ is optional:
    a renderer overrides the methods of the oracles that it names, the others raise MissingOracleError.
    """

    name: str

    @property
    @abstractmethod
    def oracles(self) -> frozenset[Oracle]:
        """The derivative questions that this renderer can answer."""

    def fixed_parameters(self) -> AbstractContextManager[None]:
        """Say that, while it is open, the Gaussians are the same whenever a question is asked.

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
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        """Add ∂loss/∂θ of one view to ``into``.

        Args:
            gaussians: What is rendered.
            problem: The view.
            into: One tensor per parameter, in its shape.
            seen: (N,) bool; set true where this view drew the Gaussian, otherwise left as it is, or taken as false
                where ``into`` is overwritten.
            observed: Where the rows that ``seen`` is set for have this view's statistics added, of its own loss
                without the sum's weight; a renderer that lacks the oracle of statistics refuses it.

        Returns:
            Loss and squared error of this view, without the sum's weight.

        Raises:
            MissingOracleError: This renderer has no statistics, and they are asked for.
        """

    def value(self, gaussians: Gaussians, problem: ViewProblem) -> ViewLoss:
        """Return what :meth:`accumulate_gradient` does of one view, without the gradient."""
        gradient = {name: torch.zeros_like(getattr(gaussians, name)) for name in GAUSSIAN_TENSORS}
        seen = torch.zeros(gaussians.means.shape[0], dtype=torch.bool, device=gaussians.means.device)
        return self.accumulate_gradient(gaussians, problem, WeightedSum(gradient, 0.0, overwrite=True), seen)

    def residuals(self, gaussians: Gaussians, problem: ViewProblem) -> Tensor:
        """Return the residuals of one view, (k, H, W, 3); the loss is ½‖r‖².

        Raises:
            MissingOracleError: This renderer has none.
        """
        self._refuse("residuals")

    def jvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v of one view, in the shape of its residuals.

        Args:
            gaussians: What is rendered.
            problem: The view.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.JVP.value)

    def vjp(self, gaussians: Gaussians, problem: ViewProblem, cotangent: Tensor, into: WeightedSum) -> None:
        """Add Jᵀ u of one view to ``into``.

        Args:
            gaussians: What is rendered.
            problem: The view.
            cotangent: u, in the shape of the residuals.
            into: One tensor per parameter, in its shape.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.VJP.value)

    def gauss_newton_product(
        self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor], into: WeightedSum
    ) -> None:
        """Add JᵀJ v of one view to ``into``.

        Args:
            gaussians: What is rendered.
            problem: The view.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.
            into: One tensor per parameter, in its shape.

        Raises:
            MissingOracleError: This renderer lacks ``jvp`` or ``vjp``.
        """
        self.vjp(gaussians, problem, self.jvp(gaussians, problem, tangent), into)

    def accumulate_diagonal(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add the Gauss-Newton diagonal of one view to ``into``.

        D_θ = Σ_{p,c} W_pc (∂C_pc/∂θ)² over pixels p and channels c of the image C, with
        W_pc = Σ_k (∂r_kpc/∂C_pc)²: each residual counts as a function of its own pixel alone. That is
        exactly diag(JᵀJ) for losses without SSIM; of SSIM it keeps the derivative to the window's centre, as 3DGS-LM
        (Höllein et al. 2025).

        Args:
            gaussians: What is rendered.
            problem: The view.
            into: One tensor per parameter, in its shape; exactly 0 is added for what is not drawn.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.GAUSS_NEWTON_DIAGONAL.value)

    def accumulate_blocks(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add each Gaussian's own 14x14 Gauss-Newton block of one view to ``into``.

        B = Σ_{p,c} W_pc (∂C_pc/∂θ)(∂C_pc/∂θ)ᵀ over θ = (means 3, log_scales 3, quats 4,
        logit_opacities 1, sh_dc 3), with the weights of :meth:`accumulate_diagonal`.

        Args:
            gaussians: What is rendered.
            problem: The view.
            into: ``blocks``, lower triangles by row, (N, 105), entry (i, j ≤ i) at i·(i+1)/2 + j, and ``sh_rest``, the
                diagonal for it, (N, K, 3).

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.GAUSS_NEWTON_BLOCKS.value)

    def hvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor], into: WeightedSum) -> None:
        """Add ∇²loss v of one view to ``into``.

        |x - y| counts as having no curvature, at zero either; SSIM and the rendering have theirs.

        Args:
            gaussians: What is rendered.
            problem: The view.
            tangent: v, one tensor per parameter in its shape; a missing one is zero.
            into: One tensor per parameter, in its shape.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.HVP.value)

    def statistics(self, gaussians: Gaussians, problem: ViewProblem, error: ErrorMap, into: WeightedSum) -> None:
        """Add what each Gaussian does in one view to ``into``; see :class:`~splatopt.core.row_statistics`.

        Pixels of weight 0 count nowhere. A pair whose α is clamped has no part in ``color_cross``, as it passes no
        gradient. Of ``max_weight`` the greatest is kept, whatever the sum's weight.

        Args:
            gaussians: What is rendered.
            problem: The view.
            error: Makes the image of errors of the rendered image and the photograph.
            into: One tensor for each field of RowStatistics, in its shape; 0 is added for what is not drawn. Without
                ``color_cross`` that one is not given.

        Raises:
            MissingOracleError: This renderer does not give it.
        """
        self._refuse(Oracle.STATISTICS.value)

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
