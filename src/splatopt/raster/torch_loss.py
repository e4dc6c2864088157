"""Losses that others write, in PyTorch: autograd gives every derivative that is not given."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.raster.losses import Image, Loss, Residual, Weights

_OF_RESIDUALS = frozenset({Oracle.JVP, Oracle.VJP})
_OF_PIXELS = frozenset({Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.GAUSS_NEWTON_BLOCKS})


class TorchLoss(Loss):
    """A loss whose image, photograph and weights are tensors, and whose derivatives are autograd's.

    Give :meth:`residuals`, and the loss is ½‖r‖²; or :meth:`value` alone, and only optimizers that ask for nothing but
    the gradient can be used; or both, where the value can be had more directly. The residuals' JVP and VJP with respect
    to the image are taken by autograd; override them where they can be had more cheaply, or where autograd's are
    infinite, as of a square root at zero. :func:`~splatopt.raster.check_loss.check_loss` checks all of it.

    A subclass is a frozen dataclass; its fields are the loss's options, each with a default.
    """

    components: ClassVar[int] = 1
    """k: residuals for each pixel and channel."""

    pixelwise: ClassVar[bool] = False
    """Whether each residual depends on its own pixel and channel alone. Then diagonals and blocks of JᵀJ are exact, and
    are given; else they are refused, unless :meth:`pixel_curvature` is overridden."""

    @classmethod
    def gives(cls, method: str) -> bool:
        """Whether this class has a method of its own."""
        return getattr(cls, method) is not getattr(TorchLoss, method)

    @property
    def oracles(self) -> frozenset[Oracle]:
        """Gradient and HVP; with residuals JVP and VJP; with the curvature of single pixels diagonals and blocks."""
        given = {Oracle.GRADIENT, Oracle.HVP, Oracle.STATISTICS}
        if self.gives("residuals"):
            given |= _OF_RESIDUALS
            if self.pixelwise or self.gives("pixel_curvature"):
                given |= _OF_PIXELS
        return frozenset(given)

    def value(self, image: Image, target: Image, weights: Weights) -> Float[Tensor, ""]:
        """Return ½‖r‖²."""
        return 0.5 * self.residuals(image, target, weights).square().sum()

    def residuals(self, image: Image, target: Image, weights: Weights) -> Residual:
        """Refuse: a value has no residuals by itself."""
        self._refuse("residuals")

    def residual_jvp(self, image: Image, target: Image, weights: Weights, tangent: Image) -> Residual:
        """Return ∂r/∂x · ``tangent``, by autograd's forward mode."""
        return torch.func.jvp(lambda x: self.residuals(x, target, weights), (image.detach(),), (tangent,))[1]

    def residual_vjp(self, image: Image, target: Image, weights: Weights, cotangent: Residual) -> Image:
        """Return (∂r/∂x)ᵀ · ``cotangent``, by autograd."""
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            return torch.autograd.grad(self.residuals(leaf, target, weights), leaf, cotangent)[0]

    def pixel_curvature(self, image: Image, target: Image, weights: Weights) -> Image:
        """Return W = Σ_k (∂r_k/∂x)², where each residual is a function of its own pixel alone.

        Raises:
            MissingOracleError: It is not; autograd cannot take the diagonal of ∂r/∂x out.
        """
        if not self.pixelwise:
            self._refuse("the curvature of single pixels")
        return self.residual_jvp(image, target, weights, torch.ones_like(image)).square().sum(dim=0)

    def _refuse(self, what: str) -> NoReturn:
        raise MissingOracleError(
            f"{what} was asked for, which the loss {type(self).__name__} does not give; choose another loss, or an "
            "optimizer that asks less"
        )


def weight_per_value(weights: Weights) -> Weights:
    """Return w/n, n = 3·Σw: multiply penalties by it and sum, and it is their mean under the weights; 0 where Σw is."""
    total = 3 * weights.sum()
    return weights / torch.where(total > 0, total, torch.ones_like(total))
