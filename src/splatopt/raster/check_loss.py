"""Checks that a loss keeps what it promises, for tests of losses: derivatives, residuals and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from splatopt.core.checks import InputError
from splatopt.core.objective import Oracle
from splatopt.raster.losses import Loss

_HEIGHT, _WIDTH = 7, 9
_STEP = 1e-6
_ENTRIES = 12
_BORDER = 2


@dataclass(frozen=True)
class _Case:
    """An image, its photograph and weights, in double precision; no pixel of one is near that of the other.

    Attributes:
        image: (H, W, 3) in [0, 1].
        target: The same.
        weights: (H, W, 1), all above zero.
    """

    image: Tensor
    target: Tensor
    weights: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.image, self.target, self.weights

    def bordered(self) -> _Case:
        """Return the case with a border on every side where images and weights are zero."""
        return _Case(*(_bordered(part) for part in self.all))


def _bordered(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image, (0, 0, _BORDER, _BORDER, _BORDER, _BORDER))


def check_loss(loss: Loss, *, seed: int = 0, tolerance: float = 1e-5) -> None:
    """Check a loss on small random images, in double precision.

    - ∂loss/∂image is the derivative of the value (``torch.autograd.gradcheck``, and central differences of the value
      where the loss has a gradient of its own).
    - Of a loss with residuals: ½‖r‖² is the value, ∂r/∂image · v is their central difference along v,
      ⟨Jv, u⟩ = ⟨v, Jᵀu⟩, and Jᵀr is the gradient.
    - Of a loss with the curvature of single pixels: it is Σ_k (∂r_kp/∂image_p)², entry by entry; and residuals that
      are said to be of single pixels are.
    - A border of weight zero, where both images are zero, changes none of these.

    Args:
        loss: What is checked.
        seed: Of the random images.
        tolerance: Largest relative error.

    Raises:
        InputError: Says what does not hold, and by how much.
    """
    generator = torch.Generator().manual_seed(seed)
    image, apart = torch.rand(2, _HEIGHT, _WIDTH, 3, generator=generator, dtype=torch.float64)
    # Away from corners such as that of |x - y|, and from the floors of the package's own residuals.
    target = (image + 0.1 + 0.3 * apart) % 1.0
    weights = 0.5 + torch.rand(_HEIGHT, _WIDTH, 1, generator=generator, dtype=torch.float64)
    checker = _Checker(loss, _Case(image, target, weights), generator, tolerance)
    checker.check_value()
    if Oracle.JVP in loss.oracles:
        checker.check_residuals()
    if Oracle.GAUSS_NEWTON_DIAGONAL in loss.oracles:
        checker.check_curvature()
    checker.check_border()


class _Checker:
    """The checks of one loss on one case."""

    def __init__(self, loss: Loss, case: _Case, generator: torch.Generator, tolerance: float) -> None:
        self.loss, self.case, self.generator, self.tolerance = loss, case, generator, tolerance
        self._shape("value", loss.value(*case.all), ())
        self.gradient = loss.value_and_gradient(*case.all)[1]

    def check_value(self) -> None:
        value, gradient = self.loss.value_and_gradient(*self.case.all)
        self._shape("value", value, ())
        self._shape("gradient", gradient, self.case.image.shape)
        image, target, weights = self.case.all
        leaf = image.clone().requires_grad_()
        try:
            torch.autograd.gradcheck(
                lambda x: self.loss.value(x, target, weights), leaf, rtol=1e-4, atol=1e-8, fast_mode=True
            )
        except GradcheckError as error:
            raise self._wrong(
                f"autograd's gradient of the value is wrong ({' '.join(str(error).split())[:200]})"
            ) from error
        along = self._random(image.shape)
        change = self._difference(lambda x: self.loss.value(x, target, weights), along)
        self._same("the gradient", (gradient * along).sum(), change)

    def check_residuals(self) -> None:
        image, target, weights = self.case.all
        residuals = self.loss.residuals(*self.case.all)
        self._shape("residuals", residuals, (self.loss.components, *image.shape))
        self._same(
            "half the squared norm of the residuals", residuals.square().sum() / 2, self.loss.value(*self.case.all)
        )
        tangent, cotangent = self._random(image.shape), self._random(residuals.shape)
        jvp_value = self.loss.residual_jvp(*self.case.all, tangent)
        self._shape("residual_jvp", jvp_value, residuals.shape)
        change = self._difference(lambda x: self.loss.residuals(x, target, weights), tangent)
        self._same("residual_jvp", jvp_value, change)
        vjp_value = self.loss.residual_vjp(*self.case.all, cotangent)
        self._shape("residual_vjp", vjp_value, image.shape)
        self._same("⟨v, Jᵀu⟩", (tangent * vjp_value).sum(), (jvp_value * cotangent).sum())
        self._same("Jᵀr", self.loss.residual_vjp(*self.case.all, residuals), self.gradient)

    def check_curvature(self) -> None:
        found = self.loss.pixel_curvature(*self.case.all)
        self._shape("pixel_curvature", found, self.case.image.shape)
        places = torch.randint(found.numel(), (_ENTRIES,), generator=self.generator).tolist()
        for place in places:
            unit = torch.zeros_like(self.case.image).reshape(-1)
            unit[place] = 1.0
            jvp_value = self.loss.residual_jvp(*self.case.all, unit.reshape(found.shape)).reshape(-1, found.numel())
            self._same("pixel_curvature", found.reshape(-1)[place], jvp_value[:, place].square().sum())
            others = jvp_value[:, torch.arange(found.numel()) != place]
            if getattr(self.loss, "pixelwise", False) and others.count_nonzero():
                raise self._wrong("pixelwise is set, but a residual depends on another pixel or channel than its own")

    def check_border(self) -> None:
        """A border of weight zero is as if it were not there."""
        wide = self.case.bordered()
        value, gradient = self.loss.value_and_gradient(*wide.all)
        what = "with a border of weight zero, "
        self._same(f"{what}the value", value, self.loss.value(*self.case.all))
        # Whoever asks sets what it gets there to zero, as it did with the images.
        kept = wide.weights > 0
        self._same(f"{what}the gradient", gradient * kept, _bordered(self.gradient))
        if Oracle.JVP not in self.loss.oracles:
            return
        cotangent = self._random(self.loss.residuals(*self.case.all).shape)
        tangent = self._random(self.case.image.shape)
        pairs = {
            "the residuals": (self.loss.residuals(*wide.all), self.loss.residuals(*self.case.all)),
            "residual_jvp": (
                self.loss.residual_jvp(*wide.all, _bordered(tangent)),
                self.loss.residual_jvp(*self.case.all, tangent),
            ),
            "residual_vjp": (
                self.loss.residual_vjp(*wide.all, _bordered(cotangent)) * kept,
                self.loss.residual_vjp(*self.case.all, cotangent),
            ),
        }
        for name, (found, wanted) in pairs.items():
            self._same(f"{what}{name}", found, _bordered(wanted))

    # ------------------------------------------------------------------ helpers

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _difference(self, function: Callable[[Tensor], Tensor], along: Tensor) -> Tensor:
        """The central difference of ``function`` at the image."""
        with torch.no_grad():
            ahead, behind = (function(self.case.image + sign * _STEP * along) for sign in (1, -1))
        return (ahead - behind) / (2 * _STEP)

    def _same(self, what: str, found: Tensor, wanted: Tensor) -> None:
        error = float((found - wanted).norm())
        size = max(float(wanted.norm()), float(found.norm()))
        if not error <= self.tolerance * size:
            raise self._wrong(f"{what} is off by {error:.3g} where its size is {size:.3g}")

    def _shape(self, what: str, found: Tensor, wanted: tuple[int, ...]) -> None:
        if tuple(found.shape) != tuple(wanted):
            raise self._wrong(f"{what} must have the shape {tuple(wanted)}, got {tuple(found.shape)}")

    def _wrong(self, sentence: str) -> InputError:
        return InputError(f"the loss {type(self.loss).__name__} fails its check: {sentence}")
