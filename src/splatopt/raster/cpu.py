"""The native CPU renderer: glue between tensors and the C++ passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS, sh_degree_of
from splatopt.raster import constants
from splatopt.raster.losses import PixelLoss
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Footprint, Gaussians, Rendering, RenderOptions


def native_constants(near_plane: float = constants.NEAR_PLANE, low_pass: float = constants.LOW_PASS) -> object:
    """Return the rendering rule's numbers, or others in the place of two, as the native module takes them."""
    radius = constants.SSIM_WINDOW // 2
    taps = [math.exp(-0.5 * (i / constants.SSIM_SIGMA) ** 2) for i in range(-radius, radius + 1)]
    module = native.load()
    assert module is not None  # workers() has said so already
    return module.Constants(
        near_plane=near_plane,
        low_pass=low_pass,
        max_alpha=constants.MAX_ALPHA,
        min_alpha=constants.MIN_ALPHA,
        min_transmittance=constants.MIN_TRANSMITTANCE,
        frustum_margin=constants.FRUSTUM_MARGIN,
        ssim_c1=constants.SSIM_C1,
        ssim_c2=constants.SSIM_C2,
        window=[tap / sum(taps) for tap in taps],
    )


def native_view(camera: Camera, options: RenderOptions) -> object:
    """Return the camera and the options as the native module takes them."""
    module = native.load()
    assert module is not None
    pose = camera.world_to_camera.double()
    return module.View(
        rotation=pose[:3, :3].reshape(-1).tolist(),
        center=camera.center.double().tolist(),
        intrinsics=[camera.fx, camera.fy, camera.cx, camera.cy],
        width=camera.width,
        height=camera.height,
        background=list(options.background),
        antialiased=options.footprint is Footprint.ANTIALIASED,
    )


def native_loss(problem: ViewProblem) -> object:
    """Return the view's loss as the native module takes it, None where it has no pass for such a loss."""
    loss = problem.loss
    if not isinstance(loss, PixelLoss) or loss.native_penalty is None:
        return None
    module = native.load()
    assert module is not None
    return module.LossRule(penalty=loss.native_penalty, count=problem.count, **loss.native_numbers(problem.count))


def native_target(problem: ViewProblem) -> object:
    """Return the photograph and its weights as the native module takes them; the problem keeps them alive.

    Raises:
        ValueError: The photograph is not uint8, or the weights are not float32, on the CPU.
    """
    module = native.load()
    assert module is not None
    for name, tensor, wanted in (("image", problem.image, torch.uint8), ("weights", problem.weights, torch.float32)):
        if tensor is not None and (tensor.dtype != wanted or tensor.device.type != "cpu"):
            raise ValueError(f"the native renderer needs {name} of {wanted} on the CPU, got {tensor.dtype}")
    return module.TargetImage(problem.image, problem.weights)


def native_observed(observed: GradientStatistics) -> object:
    """Return pointers to what a gradient pass adds statistics to; whoever calls keeps the tensors alive."""
    module = native.load()
    assert module is not None
    names = ("views", "gradient", "max_radius", "absolute", "splitting")
    return module.ObservedTensors(*(getattr(observed, name) for name in names))


def native_cloud(gaussians: Gaussians, options: RenderOptions) -> object:
    """Return pointers to the Gaussians' tensors; whoever calls keeps the tensors alive.

    Raises:
        ValueError: A tensor is not contiguous float32 on the CPU.
    """
    module = native.load()
    assert module is not None
    tensors = [getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS]
    for name, tensor in zip(GAUSSIAN_TENSORS, tensors, strict=True):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"the native renderer needs contiguous float32 tensors on the CPU; {name} is {tensor.dtype} "
                f"on {tensor.device}, strides {tensor.stride()} (the reference renderer takes any)"
            )
    degree = sh_degree_of(gaussians.sh_rest)
    active = degree if options.sh_degree is None else min(options.sh_degree, degree)
    return module.Cloud(module.CloudTensors(*tensors), active)


class NativeRenderer(Renderer):
    """Renders on the CPU in C++; one view at a time, its buffers kept between views."""

    name = "native"

    def __init__(self, threads: int = 0, isa: str = "auto") -> None:
        """Start the threads.

        Args:
            threads: Threads; 0 for one per processor. The results do not depend on it.
            isa: "auto", or an instruction set by name; results differ between them by rounding.

        Raises:
            InputError: There is no native module, or the processor lacks the instruction set.
        """
        self._workers = native.workers(threads, isa)
        module = native.load()
        assert module is not None
        self.rasterizer = module.Rasterizer(native_constants(), self._workers)
        self._views: dict[tuple[int, RenderOptions], tuple[Camera, object]] = {}
        self._fixed_parameters = False
        self._drawn: tuple[int, int, RenderOptions, bool] | None = None  # while held, what was drawn last

    @property
    def oracles(self) -> frozenset[Oracle]:
        """All but exact Hessian-vector products; a central difference of gradients stands in for those."""
        return frozenset(Oracle) - {Oracle.HVP}

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._workers.isa

    @property
    def threads(self) -> int:
        """The number of threads in use."""
        return self._workers.threads

    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        """Render one view, without gradients."""
        self.draw(gaussians, camera, options, with_depth=True)
        image = torch.empty(camera.height, camera.width, 3)
        alpha, depth = torch.empty(2, camera.height, camera.width)
        self.rasterizer.copy_image(image)
        self.rasterizer.copy_depth(alpha, depth)
        return Rendering(image, alpha, depth)

    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        """Add ∂loss/∂θ of one view to ``into``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, problem.camera, problem.options)
        loss = self._loss(problem)
        self._backward(cloud, into, seen, observed)
        return loss

    def value(self, gaussians: Gaussians, problem: ViewProblem) -> ViewLoss:
        """Return the loss of one view; see :class:`Renderer`."""
        self.draw(gaussians, problem.camera, problem.options)
        return self._loss(problem)

    def _loss(self, problem: ViewProblem) -> ViewLoss:
        """Return the loss of the view that was drawn last, and keep ∂loss/∂image for the backward pass."""
        rule = native_loss(problem)
        if rule is not None:
            return ViewLoss(*self.rasterizer.loss(native_target(problem), rule))
        loss, gradient = problem.loss_gradient(self._image(problem))
        self.rasterizer.set_image_gradient(gradient.contiguous())
        return loss

    def _image(self, problem: ViewProblem) -> Tensor:
        """Return the image that was drawn last, (H, W, 3), for losses without a native pass."""
        image = torch.empty(problem.camera.height, problem.camera.width, 3)
        self.rasterizer.copy_image(image)
        return image

    def _backward(
        self, cloud: object, into: WeightedSum, seen: Tensor, observed: GradientStatistics | None = None
    ) -> None:
        """Add (∂image/∂θ)ᵀ of the image gradient at hand to ``into``, and what it says of rows to ``observed``."""
        sums, watched = native.cloud_tensors(into.tensors), None if observed is None else native_observed(observed)
        self.rasterizer.backward(cloud, into.weight, sums, seen, into.overwrite, watched)

    def statistics(self, gaussians: Gaussians, problem: ViewProblem, error: ErrorMap, into: WeightedSum) -> None:
        """Add what each Gaussian does in one view to ``into``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, problem.camera, problem.options)
        if "color_cross" in into.tensors:
            self._loss(problem)
        errors = problem.errors(self._image(problem), error).contiguous()
        module = native.load()
        assert module is not None
        sums = module.StatisticsTensors(**into.tensors)
        self.rasterizer.statistics(cloud, native_target(problem), errors, into.weight, sums, into.overwrite)

    def residuals(self, gaussians: Gaussians, problem: ViewProblem) -> Tensor:
        """Return the residuals, (k, H, W, 3); see :class:`Renderer`."""
        self.draw(gaussians, problem.camera, problem.options)
        rule = native_loss(problem)
        if rule is None:
            return problem.residuals(self._image(problem))
        out = self._empty_residuals(problem)
        self.rasterizer.residuals(native_target(problem), rule, out)
        return out

    def _empty_residuals(self, problem: ViewProblem) -> Tensor:
        return torch.empty(problem.loss.components, problem.camera.height, problem.camera.width, 3)

    def jvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v, (k, H, W, 3), a missing tangent being zero; see :class:`Renderer`."""
        return self._jvp(gaussians, self.draw(gaussians, problem.camera, problem.options), problem, tangent)

    def _jvp(self, gaussians: Gaussians, cloud: object, problem: ViewProblem, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v of the view that was drawn last."""
        tensors = [tangent.get(name) for name in GAUSSIAN_TENSORS]
        pairs = zip(GAUSSIAN_TENSORS, tensors, strict=True)
        full = [
            torch.zeros_like(getattr(gaussians, name)) if v is None else v.float().contiguous() for name, v in pairs
        ]
        module = native.load()
        assert module is not None
        direction, rule = module.Cloud(module.CloudTensors(*full), 0), native_loss(problem)
        if rule is None:
            change = torch.empty(problem.camera.height, problem.camera.width, 3)
            self.rasterizer.image_jvp(cloud, direction, change)
            return problem.residual_jvp(self._image(problem), change)
        out = self._empty_residuals(problem)
        self.rasterizer.jvp(cloud, direction, native_target(problem), rule, out)
        return out

    def vjp(self, gaussians: Gaussians, problem: ViewProblem, cotangent: Tensor, into: WeightedSum) -> None:
        """Add Jᵀ u to ``into``; see :class:`Renderer`."""
        self._vjp(gaussians, self.draw(gaussians, problem.camera, problem.options), problem, cotangent, into)

    def _vjp(
        self, gaussians: Gaussians, cloud: object, problem: ViewProblem, cotangent: Tensor, into: WeightedSum
    ) -> None:
        """Add Jᵀ u of the view that was drawn last to ``into``."""
        rule = native_loss(problem)
        if rule is None:
            along = problem.residual_vjp(self._image(problem), cotangent)
            self.rasterizer.set_image_gradient(along.contiguous())
        else:
            self.rasterizer.set_cotangent(native_target(problem), rule, cotangent.contiguous())
        self._backward(cloud, into, torch.zeros(gaussians.means.shape[0], dtype=torch.bool))

    def gauss_newton_product(
        self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor], into: WeightedSum
    ) -> None:
        """Add JᵀJ v to ``into``, drawing the view once; see :class:`Renderer`."""
        cloud = self.draw(gaussians, problem.camera, problem.options)
        self._vjp(gaussians, cloud, problem, self._jvp(gaussians, cloud, problem, tangent), into)

    def accumulate_diagonal(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add diag(JᵀJ), by pixels' own residuals, to ``into``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, problem.camera, problem.options)
        self._set_pixel_curvature(problem)
        self.rasterizer.diagonal(cloud, into.weight, native.cloud_tensors(into.tensors), into.overwrite)

    def accumulate_blocks(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add each Gaussian's block of JᵀJ to ``into``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, problem.camera, problem.options)
        self._set_pixel_curvature(problem)
        blocks, rest = into.tensors["blocks"], into.tensors["sh_rest"]
        self.rasterizer.blocks(cloud, into.weight, blocks, rest, into.overwrite)

    def _set_pixel_curvature(self, problem: ViewProblem) -> None:
        """Keep W of the view that was drawn last for the passes of diagonals and blocks."""
        rule = native_loss(problem)
        if rule is None:
            self.rasterizer.set_image_gradient(problem.pixel_curvature(self._image(problem)).contiguous())
        else:
            self.rasterizer.set_pixel_curvature(native_target(problem), rule)

    def backpropagate(
        self, gaussians: Gaussians, options: RenderOptions, image_gradient: Tensor, gradient: Mapping[str, Tensor]
    ) -> None:
        """Add ∂L/∂θ to ``gradient`` for ∂L/∂image (H, W, 3) of the view that was rendered last."""
        self.rasterizer.set_image_gradient(image_gradient.float().contiguous())
        seen = torch.zeros(gaussians.means.shape[0], dtype=torch.bool)
        self._backward(native_cloud(gaussians, options), WeightedSum(gradient), seen)

    def memory_needed(self, gaussians: int, pixels: int, pairs: int, asked: frozenset[Oracle]) -> int:
        """Count the rasterizer's buffers; measured within a tenth. See :class:`Renderer`."""
        curvature = bool(asked & {Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.GAUSS_NEWTON_BLOCKS})
        row = 137 + 48 * (Oracle.JVP in asked) + 144 * curvature
        pair = 28 + (180 if curvature else 54)
        # Statistics take the gradient's sums; image, photograph and what the errors are made of come on top.
        pixel = 40 + 12 * (Oracle.JVP in asked) + 52 * (Oracle.STATISTICS in asked)
        return row * gaussians + pixel * pixels + pair * pairs

    def draw(self, gaussians: Gaussians, camera: Camera, options: RenderOptions, *, with_depth: bool = False) -> object:
        """Render into the rasterizer's own buffers; returns the cloud that a backward pass needs."""
        cloud = native_cloud(gaussians, options)
        asked = (gaussians.means.data_ptr(), id(camera), options, with_depth)
        if self._drawn != asked:
            self._drawn = None
            self.rasterizer.forward(self._view(camera, options), cloud, with_depth)
            self._drawn = asked if self._fixed_parameters else None
        return cloud

    @contextmanager
    def fixed_parameters(self) -> Iterator[None]:
        """Draw a view once, though several questions about it follow each other; see :class:`Renderer`.

        What was drawn before it opens, or before it ends, is drawn anew.
        """
        outer, self._fixed_parameters, self._drawn = self._fixed_parameters, True, None
        try:
            yield
        finally:
            self._fixed_parameters, self._drawn = outer, None

    def _view(self, camera: Camera, options: RenderOptions) -> object:
        # Keyed by identity: cameras are frozen, and the kept reference keeps the id from being reused.
        key = (id(camera), options)
        if key not in self._views:
            if len(self._views) > 4096:
                self._views.clear()
            self._views[key] = (camera, native_view(camera, options))
        return self._views[key][1]
