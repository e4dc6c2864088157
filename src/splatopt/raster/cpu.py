"""The native CPU renderer: glue between tensors and the C++ passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.raster import constants
from splatopt.raster.renderer import Renderer, ViewLoss
from splatopt.raster.residuals import L1Ssim, ResidualOptions
from splatopt.raster.types import GAUSSIAN_TENSORS, Footprint, Gaussians, Rendering, RenderOptions


def native_constants() -> Any:
    """Return the rendering rule's numbers as the native module takes them."""
    radius = constants.SSIM_WINDOW // 2
    taps = [math.exp(-0.5 * (i / constants.SSIM_SIGMA) ** 2) for i in range(-radius, radius + 1)]
    module = native.load()
    assert module is not None  # workers() has said so already
    return module.Constants(
        near_plane=constants.NEAR_PLANE,
        low_pass=constants.LOW_PASS,
        max_alpha=constants.MAX_ALPHA,
        min_alpha=constants.MIN_ALPHA,
        min_transmittance=constants.MIN_TRANSMITTANCE,
        frustum_margin=constants.FRUSTUM_MARGIN,
        ssim_c1=constants.SSIM_C1,
        ssim_c2=constants.SSIM_C2,
        window=[tap / sum(taps) for tap in taps],
    )


def native_view(camera: Camera, options: RenderOptions) -> Any:
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


def native_rule(residual_options: ResidualOptions, camera: Camera) -> Any:
    """Return the residuals' numbers as the native module takes them."""
    module = native.load()
    assert module is not None
    count = 3 * camera.height * camera.width
    l1_ssim = residual_options if isinstance(residual_options, L1Ssim) else L1Ssim()
    return module.ResidualRule(
        squared=not isinstance(residual_options, L1Ssim),
        scale=count**-0.5,
        absolute_slope=((1 - l1_ssim.ssim_weight) / (2 * count)) ** 0.5,
        dissimilarity_slope=(l1_ssim.ssim_weight / (2 * count)) ** 0.5,
        floor_absolute=l1_ssim.floor_absolute,
        floor_dissimilarity=l1_ssim.floor_dissimilarity,
    )


def stored_degree(sh_rest: Tensor) -> int:
    """Degree of the spherical harmonics that K = (degree+1)² - 1 coefficients hold."""
    return math.isqrt(sh_rest.shape[1] + 1) - 1


def native_cloud(gaussians: Gaussians, options: RenderOptions) -> Any:
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
    degree = stored_degree(gaussians.sh_rest)
    active = degree if options.sh_degree is None else min(options.sh_degree, degree)
    return module.Cloud(*tensors, active)


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
        self._views: dict[tuple[int, RenderOptions], tuple[Camera, Any]] = {}
        self._held = False
        self._drawn: tuple[int, int, RenderOptions, bool] | None = None  # while held, what was drawn last

    @property
    def oracles(self) -> frozenset[Oracle]:
        """All but exact Hessian-vector products; a central difference of gradients stands in for those."""
        return frozenset(
            {
                Oracle.GRADIENT,
                Oracle.JVP,
                Oracle.VJP,
                Oracle.GAUSS_NEWTON_DIAGONAL,
                Oracle.GAUSS_NEWTON_BLOCKS,
            }
        )

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
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        ssim_weight: float,
        weight: float,
        gradient: Mapping[str, Tensor],
        seen: Tensor,
        overwrite: bool = False,
    ) -> ViewLoss:
        """Add ``weight`` · ∂loss/∂θ of one view to ``gradient``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        loss, squared_error, _ = self.rasterizer.loss(target, ssim_weight)
        self.rasterizer.backward(cloud, weight, *(gradient[name] for name in GAUSSIAN_TENSORS), seen, overwrite)
        return ViewLoss(loss, squared_error)

    def value(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        ssim_weight: float,
    ) -> ViewLoss:
        """Return the loss of one view; see :class:`Renderer`."""
        self.draw(gaussians, camera, options)
        loss, squared_error, _ = self.rasterizer.loss(target, ssim_weight)
        return ViewLoss(loss, squared_error)

    def residuals(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
    ) -> Tensor:
        """Return the residuals, (components, H, W, 3); see :class:`Renderer`."""
        self.draw(gaussians, camera, options)
        out = torch.empty(residual_options.components, camera.height, camera.width, 3)
        self.rasterizer.residuals(target, native_rule(residual_options, camera), out)
        return out

    def jvp(
        self,
        gaussians: Gaussians,
        camera: Camera,
        target: Tensor,
        options: RenderOptions,
        residual_options: ResidualOptions,
        tangent: Mapping[str, Tensor],
    ) -> Tensor:
        """Return J v, (components, H, W, 3), a missing tangent being zero; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        return self._push(gaussians, cloud, camera, target, residual_options, tangent)

    def _push(
        self,
        gaussians: Gaussians,
        cloud: Any,
        camera: Camera,
        target: Tensor,
        residual_options: ResidualOptions,
        tangent: Mapping[str, Tensor],
    ) -> Tensor:
        """Return J v of the view that was drawn last."""
        tensors = [tangent.get(name) for name in GAUSSIAN_TENSORS]
        pairs = zip(GAUSSIAN_TENSORS, tensors, strict=True)
        full = [torch.zeros_like(getattr(gaussians, name)) if v is None else v.contiguous() for name, v in pairs]
        module = native.load()
        assert module is not None
        direction = module.Cloud(*full, 0)
        out = torch.empty(residual_options.components, camera.height, camera.width, 3)
        self.rasterizer.jvp(cloud, direction, target, native_rule(residual_options, camera), out)
        return out

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
        """Add ``weight`` · Jᵀ u to ``gradient``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        self._pull(gaussians, cloud, camera, target, residual_options, cotangent, weight, gradient, overwrite)

    def _pull(
        self,
        gaussians: Gaussians,
        cloud: Any,
        camera: Camera,
        target: Tensor,
        residual_options: ResidualOptions,
        cotangent: Tensor,
        weight: float,
        gradient: Mapping[str, Tensor],
        overwrite: bool,
    ) -> None:
        """Add ``weight`` · Jᵀ u of the view that was drawn last to ``gradient``."""
        self.rasterizer.set_cotangent(target, native_rule(residual_options, camera), cotangent.contiguous())
        seen = torch.zeros(gaussians.means.shape[0], dtype=torch.bool)
        self.rasterizer.backward(cloud, weight, *(gradient[name] for name in GAUSSIAN_TENSORS), seen, overwrite)

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
        """Add ``weight`` · JᵀJ v to ``product``, drawing the view once; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        pushed = self._push(gaussians, cloud, camera, target, residual_options, tangent)
        self._pull(gaussians, cloud, camera, target, residual_options, pushed, weight, product, overwrite)

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
        """Add ``weight`` · diag(JᵀJ), by pixels' own residuals, to ``diagonal``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        tensors = (diagonal[name] for name in GAUSSIAN_TENSORS)
        self.rasterizer.diagonal(cloud, target, native_rule(residual_options, camera), weight, *tensors, overwrite)

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
        """Add ``weight`` · each Gaussian's block of JᵀJ to ``blocks``; see :class:`Renderer`."""
        cloud = self.draw(gaussians, camera, options)
        rule = native_rule(residual_options, camera)
        self.rasterizer.blocks(cloud, target, rule, weight, blocks, rest_diagonal, overwrite)

    def backpropagate(
        self, gaussians: Gaussians, options: RenderOptions, image_gradient: Tensor, gradient: Mapping[str, Tensor]
    ) -> None:
        """Add ∂L/∂θ to ``gradient`` for ∂L/∂image (H, W, 3) of the view that was rendered last."""
        self.rasterizer.set_image_gradient(image_gradient.float().contiguous())
        seen = torch.zeros(gaussians.means.shape[0], dtype=torch.bool)
        cloud = native_cloud(gaussians, options)
        self.rasterizer.backward(cloud, 1.0, *(gradient[name] for name in GAUSSIAN_TENSORS), seen, False)

    def memory_needed(self, gaussians: int, pixels: int, pairs: int, asked: frozenset[Oracle]) -> int:
        """Count the rasterizer's buffers; measured within a tenth. See :class:`Renderer`."""
        curvature = bool(asked & {Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.GAUSS_NEWTON_BLOCKS})
        row = 137 + 48 * (Oracle.JVP in asked) + 144 * curvature
        pair = 28 + (180 if curvature else 54)
        return row * gaussians + (40 + 12 * (Oracle.JVP in asked)) * pixels + pair * pairs

    def draw(self, gaussians: Gaussians, camera: Camera, options: RenderOptions, *, with_depth: bool = False) -> Any:
        """Render into the rasterizer's own buffers; returns the cloud that a backward pass needs."""
        cloud = native_cloud(gaussians, options)
        asked = (gaussians.means.data_ptr(), id(camera), options, with_depth)
        if self._drawn != asked:
            self._drawn = None
            self.rasterizer.forward(self._view(camera, options), cloud, with_depth)
            self._drawn = asked if self._held else None
        return cloud

    @contextmanager
    def held(self) -> Iterator[None]:
        """Draw a view once, though several questions about it follow each other; see :class:`Renderer`.

        What was drawn before it opens, or before it ends, is drawn anew.
        """
        outer, self._held, self._drawn = self._held, True, None
        try:
            yield
        finally:
            self._held, self._drawn = outer, None

    def _view(self, camera: Camera, options: RenderOptions) -> Any:
        # Keyed by identity: cameras are frozen, and the kept reference keeps the id from being reused.
        key = (id(camera), options)
        if key not in self._views:
            if len(self._views) > 4096:
                self._views.clear()
            self._views[key] = (camera, native_view(camera, options))
        return self._views[key][1]
