"""The photometric objective: renders of a cloud against photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.objective import (
    Evaluation,
    GaussNewtonBlocks,
    MissingOracleError,
    Objective,
    Oracle,
    Residuals,
    Tensors,
)
from splatopt.core.row_statistics import ErrorMap, GradientStatistics, RowStatistics
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import BLOCK_TENSORS, PACKED_BLOCK
from splatopt.metrics.image import ViewScore, psnr, ssim
from splatopt.raster.losses import L1Ssim, Loss
from splatopt.raster.problem import ViewProblem, WeightedSum
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.exposure import ExposureMaps
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.rigid_motion import WorldTwist


@runtime_checkable
class Images(Protocol):
    """Photographs by view index; ``splatopt.data.ImageStore`` is one."""

    def __getitem__(self, index: int) -> Tensor:
        """Return photograph ``index``, (H, W, 3), uint8."""
        ...


@runtime_checkable
class PixelWeights(Protocol):
    """How much each pixel counts, by view index."""

    def __getitem__(self, index: int) -> Tensor | None:
        """Return the weights of photograph ``index``, (H, W) float32; None where all count alike."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """Photographs that say how much each of their pixels counts, as those with masks do."""

    @property
    def weights(self) -> PixelWeights | None:
        """By view index; None where all pixels count alike."""
        ...


class PhotometricObjective(Objective):
    """Mean over the batch's views of a loss of render against photograph.

    A batch is a sequence of view indices. The parameters are the cloud's six tensors. The
    gradient's buffers are parts of one flat buffer that every evaluation clears and fills; each
    other oracle has its own, made when it is first asked.

    The residuals of a batch of V views are the views' own divided by √V, one tensor per view, so that
    JᵀJ and its diagonal and blocks are means over the views, as the loss is.

    Attributes:
        observed: While it is set, every view of every gradient adds its statistics to it; edits of rows are its own.
        exposure: While it is set, renders are compared with photographs that its colour maps have taken back; scores
            are of the photographs as they are.
        twists: While it is set, the first gradient of each view leaves there what it says of its camera's motion.
    """

    def __init__(
        self,
        cloud: GaussianCloud,
        cameras: Sequence[Camera],
        images: Images,
        renderer: Renderer,
        options: RenderOptions | None = None,
        *,
        loss: Loss | None = None,
        weights: PixelWeights | None = None,
        length_scale: float = 1.0,
    ) -> None:
        """Bind a cloud to the views it shall explain.

        Args:
            cloud: What is optimised, in place.
            cameras: One per view.
            images: One photograph per view, of its camera's size.
            renderer: What renders and differentiates.
            options: How it is rendered; black background and all stored degrees when None.
            loss: How render and photograph are compared; that of 3DGS, L1 and SSIM, when None.
            weights: How much each pixel counts, (H, W) float32 per view; where None, as ``images`` say if they do.
            length_scale: The scene's extent, world units; scales the means' learning rate.
        """
        if not 0 < length_scale < math.inf:
            raise InputError(f"the scene's extent must be a positive number, got {length_scale}")
        self.cloud = cloud
        self.cameras = tuple(cameras)
        self.images = images
        self.renderer = renderer
        self.options = options or RenderOptions()
        self.loss = loss or L1Ssim()
        self.weights = images.weights if weights is None and isinstance(images, Weighted) else weights
        self.observed: GradientStatistics | None = None
        self.exposure: ExposureMaps | None = None
        self.twists: dict[int, WorldTwist] | None = None
        self._length_scale = length_scale
        self._allocate()

    def _allocate(self) -> None:
        """Make the gradient's buffers for the cloud's present number of rows."""
        self._gradient = self._flat_tensors()
        self._seen = torch.zeros(len(self.cloud), dtype=torch.bool, device=self.cloud.means.device)
        self._kept: dict[Oracle | str, dict[str, Tensor]] = {}

    def _flat_tensors(self) -> dict[str, Tensor]:
        """Return zeros in the shapes of the parameters, parts of one flat buffer."""
        tensors = self.cloud.tensors
        sizes = [tensor.numel() for tensor in tensors.values()]
        parts = self.cloud.means.new_zeros(sum(sizes)).split(sizes)
        return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}

    def _buffers(self, question: Oracle | str) -> dict[str, Tensor]:
        """Return the buffers of ``question``, made when it is first asked after an edit of rows."""
        if question not in self._kept:
            self._kept[question] = self._flat_tensors()
        return self._kept[question]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The cloud's six tensors."""
        return self.cloud.tensors

    @property
    def oracles(self) -> frozenset[Oracle]:
        """What both the renderer and the loss can answer."""
        return self.renderer.oracles & self.loss.oracles

    def require(self, needed: frozenset[Oracle], who: str) -> None:
        """Raise MissingOracleError if an oracle in ``needed`` cannot be answered; see :meth:`Objective.require`."""
        lacking = needed & self.renderer.oracles - self.loss.oracles
        if lacking:
            missing, given = (", ".join(sorted(one.value for one in some)) for some in (lacking, self.loss.oracles))
            raise MissingOracleError(
                f"{who!r} needs {missing}, which the loss {type(self.loss).__name__} does not give (it gives {given}); "
                "choose another loss, or an optimizer that asks less"
            )
        super().require(needed, who)

    @property
    def length_scale(self) -> float:
        """The scene's extent, world units."""
        return self._length_scale

    @property
    def backend(self) -> str:
        """The renderer's name."""
        return self.renderer.name

    def fixed_parameters(self) -> AbstractContextManager[None]:
        """Say so to the renderer."""
        return self.renderer.fixed_parameters()

    @property
    def block_names(self) -> tuple[str, ...]:
        """All tensors but the colour's higher bands."""
        return BLOCK_TENSORS

    @property
    def sh_degree(self) -> int:
        """Highest spherical-harmonics degree that is rendered."""
        stored = self.cloud.sh_degree
        return stored if self.options.sh_degree is None else min(stored, self.options.sh_degree)

    @sh_degree.setter
    def sh_degree(self, degree: int) -> None:
        """Render up to ``degree`` from now on; coefficients above it get no gradient."""
        self.options = replace(self.options, sh_degree=degree)

    def gradient(self, batch: Sequence[int]) -> Evaluation:
        """Return the mean loss over the views of ``batch``, its gradient, and the mean PSNR as a metric.

        A Gaussian that is drawn in pixels of weight 0 alone counts as not seen.
        """
        weight = _weight(batch)
        loss = psnr = 0.0
        twists, before = self.twists, None
        together = nullcontext() if self.observed is None or len(batch) < 2 else self.observed.all_or_nothing()
        with together:
            for view, (problem, into) in zip(batch, self._sums(batch, self._gradient), strict=True):
                observed = self.observed
                own = None if observed is None or problem.weights is None else observed.like()
                result = self.renderer.accumulate_gradient(self.cloud, problem, into, self._seen, own or observed)
                if own is not None and observed is not None:
                    observed.add_counted(own)
                loss += weight * result.loss
                psnr += weight * decibels(result.squared_error)
                if twists is not None and not twists.keys() >= set(batch):
                    sums = WorldTwist.of(self.cloud, self._gradient)
                    twists.setdefault(view, sums.less(before, weight))
                    before = sums
        if self.weights is not None:
            self._seen &= _touched(self._gradient)
        return Evaluation(loss=loss, gradient=self._gradient, seen=self._seen, metrics={"psnr": psnr})

    def problem(self, view: int) -> ViewProblem:
        """Return what a renderer is asked about one view."""
        image = self.images[view]
        if self.exposure is not None:
            image = self.exposure.taken_back(view, image)
        return ViewProblem(self.cameras[view], image, self.options, self.loss, self.weights_of(view))

    def weights_of(self, view: int) -> Tensor | None:
        """Return how much each pixel of a photograph counts, (H, W); None where all count alike."""
        return None if self.weights is None else self.weights[view]

    def show(self, cameras: Sequence[Camera], images: Images) -> None:
        """Compare with ``images`` from now on, photographs of the same views at the size of these ``cameras``."""
        self.cameras, self.images = tuple(cameras), images
        self.weights = images.weights if isinstance(images, Weighted) else None
        if self.exposure is not None:
            self.exposure.forget()

    def replace_camera(self, view: int, camera: Camera) -> None:
        """See ``view`` from ``camera`` from now on."""
        self.cameras = (*self.cameras[:view], camera, *self.cameras[view + 1 :])

    def parts(self, batch: Sequence[int]) -> tuple[Sequence[int], ...]:
        """Return one batch per view."""
        return tuple((view,) for view in batch)

    def views(self, batch: Sequence[int]) -> Sequence[int]:
        """Return ``batch``, which is made of views' numbers."""
        return batch

    def split(self, batch: Sequence[int], count: int) -> tuple[Sequence[int], ...]:
        """Return at most ``count`` batches; neighbours in ``batch`` go to different ones."""
        return tuple(batch[first::count] for first in range(min(count, len(batch))))

    def value(self, batch: Sequence[int]) -> float:
        """Return the mean loss over the views of ``batch``."""
        weight = _weight(batch)
        return sum(weight * self.renderer.value(self.cloud, self.problem(view)).loss for view in batch)

    def residuals(self, batch: Sequence[int]) -> Residuals:
        """Return the residuals, (k, H, W, 3) per view; see :meth:`Objective.residuals`."""
        scale = math.sqrt(_weight(batch))
        return tuple(self.renderer.residuals(self.cloud, self.problem(view)).mul_(scale) for view in batch)

    def empty_residuals(self, batch: Sequence[int]) -> Residuals:
        """Return tensors in the shapes of the residuals, with any values."""
        components = self.loss.components
        cameras = [self.cameras[view] for view in batch]
        return tuple(self.cloud.means.new_empty(components, camera.height, camera.width, 3) for camera in cameras)

    def jvp(self, batch: Sequence[int], tangent: Tensors) -> Residuals:
        """Return J v, one tensor per view; see :meth:`Objective.jvp`."""
        scale = math.sqrt(_weight(batch))
        return tuple(self.renderer.jvp(self.cloud, self.problem(view), tangent).mul_(scale) for view in batch)

    def vjp(self, batch: Sequence[int], cotangent: Residuals) -> Tensors:
        """Return Jᵀ u; see :meth:`Objective.vjp`."""
        scale = math.sqrt(_weight(batch))
        if len(cotangent) != len(batch):
            raise ValueError(f"a cotangent must hold one tensor for each of {len(batch)} views, got {len(cotangent)}")
        product = self._buffers(Oracle.VJP)
        for position, (view, part) in enumerate(zip(batch, cotangent, strict=True)):
            into = WeightedSum(product, scale, overwrite=position == 0)
            self.renderer.vjp(self.cloud, self.problem(view), part, into)
        return product

    def gauss_newton_product(self, batch: Sequence[int], tangent: Tensors) -> Tensors:
        """Return JᵀJ v; see :meth:`Objective.gauss_newton_product`."""
        product = self._buffers("gauss_newton_product")
        for problem, into in self._sums(batch, product):
            self.renderer.gauss_newton_product(self.cloud, problem, tangent, into)
        return product

    def exact_gauss_newton_diagonal(self, batch: Sequence[int]) -> Tensors:
        """Return diag(JᵀJ), each residual taken as a function of its own pixel alone.

        Exact for losses without SSIM; of SSIM it keeps the derivative to the window's centre.
        """
        diagonal = self._buffers(Oracle.GAUSS_NEWTON_DIAGONAL)
        for problem, into in self._sums(batch, diagonal):
            self.renderer.accumulate_diagonal(self.cloud, problem, into)
        return diagonal

    def gauss_newton_blocks(self, batch: Sequence[int]) -> GaussNewtonBlocks:
        """Return each Gaussian's 14x14 block of JᵀJ and the diagonal of ``sh_rest``.

        The blocks take residuals as functions of their own pixel, as :meth:`exact_gauss_newton_diagonal`.
        """
        if Oracle.GAUSS_NEWTON_BLOCKS not in self._kept:
            blocks = self.cloud.means.new_zeros(len(self.cloud), PACKED_BLOCK)
            self._kept[Oracle.GAUSS_NEWTON_BLOCKS] = {
                "blocks": blocks,
                "sh_rest": torch.zeros_like(self.cloud.sh_rest),
            }
        kept = self._kept[Oracle.GAUSS_NEWTON_BLOCKS]
        for problem, into in self._sums(batch, kept):
            self.renderer.accumulate_blocks(self.cloud, problem, into)
        return GaussNewtonBlocks(BLOCK_TENSORS, kept["blocks"], {"sh_rest": kept["sh_rest"]})

    def exact_hvp(self, batch: Sequence[int], tangent: Tensors) -> Tensors:
        """Return ∇²L v of the loss; see :meth:`Objective.exact_hvp`."""
        product = self._buffers(Oracle.HVP)
        for problem, into in self._sums(batch, product):
            self.renderer.hvp(self.cloud, problem, tangent, into)
        return product

    def statistics(self, batch: Sequence[int], error: ErrorMap, cross: bool = True) -> RowStatistics:
        """Return what each Gaussian does in the views of ``batch``; see :class:`RowStatistics`.

        Args:
            batch: View indices.
            error: Makes the image e (H, W) of a rendered view, not clamped, and its photograph in [0, 1], both
                (H, W, 3) and 0 where the pixels' weights are.
            cross: Whether the cross term is wanted, which costs about half as much again.
        """
        if Oracle.STATISTICS not in self._kept:
            rows = len(self.cloud)
            shapes = {field.name: (rows,) for field in fields(RowStatistics)} | {"color_cross": (rows, 3, 3)}
            self._kept[Oracle.STATISTICS] = {name: self.cloud.means.new_zeros(shape) for name, shape in shapes.items()}
        asked = {
            name: tensor for name, tensor in self._kept[Oracle.STATISTICS].items() if cross or name != "color_cross"
        }
        for problem, into in self._sums(batch, asked):
            self.renderer.statistics(self.cloud, problem, error, into)
        sums = {name: tensor for name, tensor in asked.items() if name != "color_cross"}
        return RowStatistics(**sums, color_cross=asked.get("color_cross"))

    def _sums(self, batch: Sequence[int], tensors: Tensors) -> Iterator[tuple[ViewProblem, WeightedSum]]:
        """Yield the problem of each view, and where its share of a mean over the batch is added."""
        weight = _weight(batch)
        for position, view in enumerate(batch):
            yield self.problem(view), WeightedSum(tensors, weight, overwrite=position == 0)

    def edit_rows(self, edit: SceneEdit) -> None:
        """Edit the cloud's rows and make buffers for the new number of them."""
        self.cloud.edit_rows(edit)
        self._allocate()

    def evaluate(self, views: Sequence[int], watch: Callable[[int], None] | None = None) -> tuple[ViewScore, ...]:
        """Render ``views``, clamp to [0, 1] and compare with their photographs.

        Args:
            views: View indices.
            watch: Called after each view with the number of views done.

        Returns:
            PSNR and SSIM per view, in the order of ``views``.
        """
        scores = []
        for done, view in enumerate(views, start=1):
            camera = self.cameras[view]
            image = self.renderer.render(self.cloud, camera, self.options).image.clamp(0, 1).float()
            target = self.images[view].to(image.device).float() / 255
            weights = self.weights_of(view)
            counted = 1.0 if weights is None else float((weights > 0).double().mean())
            compared = image, target, weights
            scores.append(ViewScore(camera.name, psnr(*compared), ssim(*compared), counted))
            if watch:
                watch(done)
        return tuple(scores)


def _touched(gradient: Tensors) -> Tensor:
    """Return which rows have a gradient, (N,); of those drawn, the others are drawn in masked pixels alone."""
    names = ("means", "logit_opacities", "sh_dc")
    return torch.stack([gradient[name].reshape(len(gradient[name]), -1).any(dim=1) for name in names]).any(dim=0)


def _weight(batch: Sequence[int]) -> float:
    """Return the share of one view in a mean over the batch."""
    if not batch:
        raise ValueError("a batch must hold at least one view index, got none")
    return 1.0 / len(batch)


def decibels(squared_error: float) -> float:
    """Return PSNR = -10·log₁₀(mean squared error) for values in [0, 1], dB; 100 at most, so that JSON holds it."""
    if squared_error <= 0:
        return 100.0
    ratio = -10.0 * math.log10(squared_error)
    return 100.0 if ratio > 100.0 else ratio  # min() would hide a NaN
