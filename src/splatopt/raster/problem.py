"""One view to be explained: what a renderer is asked about, and where it writes its sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.row_statistics import ErrorMap
from splatopt.raster.losses import Image, L1Ssim, Loss, Residual
from splatopt.raster.types import RenderOptions


@dataclass(frozen=True)
class ViewProblem:
    """A photograph that a render from its camera should match.

    Attributes:
        camera: From where.
        image: The photograph, (H, W, 3), uint8.
        options: How it is rendered.
        loss: How the two are compared.
        weights: How much each pixel counts, (H, W) float32 of at least 0; all alike when None. A pixel of weight 0
            leaves no trace: the loss is what it would be if the pixel lay beyond the image's border.
    """

    camera: Camera
    image: UInt8[Tensor, "h w 3"]
    options: RenderOptions = RenderOptions()  # noqa: RUF009 - frozen
    loss: Loss = L1Ssim()  # noqa: RUF009 - frozen
    weights: Float[Tensor, "h w"] | None = None

    def __post_init__(self) -> None:
        """Keep contiguous copies of what is not: passes of the native module read them where they lie."""
        object.__setattr__(self, "image", self.image.contiguous())
        if self.weights is not None:
            object.__setattr__(self, "weights", self.weights.contiguous())

    @property
    def count(self) -> float:
        """N = 3·Σw: colour values that are compared."""
        if self.weights is None:
            return 3.0 * self.camera.height * self.camera.width
        return 3.0 * float(self.weights.sum(dtype=torch.float64))

    def loss_of(self, image: Image) -> Float[Tensor, ""]:
        """Return the loss of a rendered image, differentiably."""
        return self.loss.value(self._seen(image), self._target(image), self._weights(image))

    def loss_gradient(self, image: Image) -> tuple[ViewLoss, Image]:
        """Return the loss of a rendered image, and ∂loss/∂image."""
        arguments = self._seen(image.detach()), self._target(image), self._weights(image)
        loss, gradient = self.loss.value_and_gradient(*arguments)
        return ViewLoss(float(loss), self.squared_error(image)), self._seen(gradient)

    def squared_error(self, image: Image) -> float:
        """Return the mean squared error over what is compared, for PSNR."""
        squares = (image.detach() - self._target(image)).square()
        if self.weights is None:
            return float(squares.mean())
        return float((self._weights(image) * squares).sum()) / (self.count or 1.0)

    def residuals(self, image: Image) -> Residual:
        """Return the residuals r of a rendered image."""
        return self.loss.residuals(self._seen(image), self._target(image), self._weights(image))

    def residual_jvp(self, image: Image, tangent: Image) -> Residual:
        """Return ∂r/∂image · ``tangent``."""
        arguments = self._seen(image), self._target(image), self._weights(image)
        return self.loss.residual_jvp(*arguments, self._seen(tangent))

    def residual_vjp(self, image: Image, cotangent: Residual) -> Image:
        """Return (∂r/∂image)ᵀ · ``cotangent``."""
        arguments = self._seen(image), self._target(image), self._weights(image)
        return self._seen(self.loss.residual_vjp(*arguments, cotangent))

    def pixel_curvature(self, image: Image) -> Image:
        """Return W_pc = Σ_k (∂r_kpc/∂image_pc)² of each pixel's own residuals."""
        arguments = self._seen(image), self._target(image), self._weights(image)
        return self._seen(self.loss.pixel_curvature(*arguments))

    def errors(self, image: Image, error: ErrorMap) -> Float[Tensor, "h w"]:
        """Return what ``error`` makes of a rendered image and the photograph, 0 where nothing counts.

        Raises:
            ValueError: It is not one number for each pixel.
        """
        found = error(self._seen(image), self._target(image)).to(image)
        if found.shape != image.shape[:2]:
            raise ValueError(f"an image of errors must be (H, W) = {tuple(image.shape[:2])}, got {tuple(found.shape)}")
        return torch.where(self.counted(image), found, torch.zeros_like(found))

    def counted(self, image: Image) -> Bool[Tensor, "h w"]:
        """Return which pixels count: those of a weight above 0."""
        return self._weights(image)[:, :, 0] > 0

    def _target(self, image: Image) -> Image:
        """The photograph in [0, 1], 0 where nothing counts."""
        return self._seen(self.image.to(image) / 255)

    def _weights(self, image: Image) -> Float[Tensor, "h w 1"]:
        if self.weights is None:
            return image.new_ones(*image.shape[:2], 1)
        return self.weights.to(image)[:, :, None]

    def _seen(self, image: Image) -> Image:
        """An image with 0 where the weights are."""
        if self.weights is None:
            return image
        return torch.where(self.weights.to(image.device)[:, :, None] > 0, image, torch.zeros_like(image))


@dataclass(frozen=True)
class ViewLoss:
    """Loss of one rendered view against its photograph.

    Attributes:
        loss: The value of the view's loss.
        squared_error: Mean squared error over what is compared, for PSNR.
    """

    loss: float
    squared_error: float


@dataclass(frozen=True)
class WeightedSum:
    """Where a renderer adds what it finds in one view: into[name] ← into[name] + weight · found[name].

    Attributes:
        tensors: What is added to, by name.
        weight: Factor, 1 / number of views in a batch for a mean.
        overwrite: Take the tensors as empty, whatever they hold: spares clearing them.
    """

    tensors: Mapping[str, Tensor]
    weight: float = 1.0
    overwrite: bool = False

    def add(self, found: Mapping[str, Tensor | None]) -> None:
        """Add ``weight`` · ``found``; one that is None is zero."""
        for name, into in self.tensors.items():
            if self.overwrite:
                into.zero_()
            part = found[name]
            if part is not None:
                into.add_(part, alpha=self.weight)


def add_statistics(into: WeightedSum, found: Mapping[str, Tensor]) -> None:
    """Add what was found of rows in one view to ``into``: of the greatest weights the greater, of all else the sum."""
    name = "max_weight"
    greatest = into.tensors[name]
    if into.overwrite:
        greatest.zero_()
    torch.maximum(greatest, found[name], out=greatest)
    others = {key: tensor for key, tensor in into.tensors.items() if key != name}
    WeightedSum(others, into.weight, into.overwrite).add(found)
