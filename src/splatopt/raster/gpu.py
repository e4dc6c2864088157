"""The renderer on a GPU: glue between tensors and the Triton kernels, imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import ErrorMap, GradientStatistics
from splatopt.core.schema import GAUSSIAN_TENSORS, GaussianTensors, sh_degree_of
from splatopt.kernels.blend import Blended, blend
from splatopt.kernels.blend_backward import blend_backward
from splatopt.kernels.blend_moments import blend_moments
from splatopt.kernels.curvature import project_blocks, project_diagonal
from splatopt.kernels.projection import CloudPointers, SplatBuffers, project
from splatopt.kernels.projection_backward import project_backward
from splatopt.kernels.statistics import blend_statistics, observe, project_statistics
from splatopt.kernels.tangent import blend_jvp, project_jvp
from splatopt.kernels.tiles import TileLists, make_tile_lists
from splatopt.kernels.view import RenderingRule, pack_view
from splatopt.raster import constants, gpu_loss
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Footprint, Gaussians, Rendering, RenderOptions

_VIEWS_KEPT = 4096


def view_numbers(camera: Camera, options: RenderOptions, device: torch.device) -> Tensor:
    """Return camera, background and the rule's numbers as the kernels take them."""
    rule = RenderingRule(
        near_plane=constants.NEAR_PLANE,
        low_pass=constants.LOW_PASS,
        max_alpha=constants.MAX_ALPHA,
        min_alpha=constants.MIN_ALPHA,
        min_transmittance=constants.MIN_TRANSMITTANCE,
        frustum_margin=constants.FRUSTUM_MARGIN,
    )
    return pack_view(camera, options.background, rule, device)


def cloud_pointers(gaussians: Gaussians, options: RenderOptions) -> CloudPointers:
    """Return the Gaussians' tensors as the kernels take them.

    Raises:
        ValueError: A tensor is not contiguous float32, or they do not lie together on one GPU.
    """
    tensors = {name: getattr(gaussians, name).detach() for name in GAUSSIAN_TENSORS}
    device = tensors["means"].device
    at_hand = device.type == "cuda" or triton.knobs.runtime.interpret
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device != device or not tensor.is_contiguous() or not at_hand:
            raise ValueError(
                f"the triton renderer needs contiguous float32 tensors on one GPU; {name} is {tensor.dtype} "
                f"on {tensor.device}, strides {tensor.stride()} (the reference renderer takes any)"
            )
    stored = sh_degree_of(gaussians.sh_rest)
    degree = stored if options.sh_degree is None else min(options.sh_degree, stored)
    return CloudPointers(GaussianTensors(**tensors), degree)


@dataclass(frozen=True)
class _Drawn:
    """A view that was drawn, with all that its derivatives need."""

    numbers: Tensor
    cloud: CloudPointers
    splats: SplatBuffers
    lists: TileLists
    blended: Blended
    antialiased: bool

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    def factor(self, weight: float) -> Tensor:
        """Return a factor as the kernels take it; filled in on the device, which nothing waits for."""
        return torch.full((), weight, device=self.device)

    def vjp(self, image_gradient: Tensor, into: WeightedSum, observed: GradientStatistics | None = None) -> None:
        """Add (∂image/∂θ)ᵀ · ``image_gradient`` to ``into``, and what it says of rows to ``observed``."""
        absolute = observed is not None and observed.absolute is not None
        sums = blend_backward(self.numbers, self.splats, self.lists, self.blended, image_gradient, absolute=absolute)
        if observed is not None:
            observe(self.numbers, self.cloud, self.splats, sums, observed)
        project_backward(
            self.numbers,
            self.cloud,
            self.splats,
            sums,
            [into.tensors[name] for name in GAUSSIAN_TENSORS],
            self.factor(into.weight),
            antialiased=self.antialiased,
            overwrite=into.overwrite,
        )

    def jvp(self, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return ∂image/∂θ · ``tangent``, a missing one being zero."""
        given = [tangent.get(name) for name in GAUSSIAN_TENSORS]
        pairs = zip(self.cloud.tensors, given, strict=True)
        whole = [torch.zeros_like(value) if v is None else v.contiguous() for value, v in pairs]
        tangents = project_jvp(self.numbers, self.cloud, self.splats, whole, antialiased=self.antialiased)
        return blend_jvp(self.numbers, self.splats, self.lists, self.blended, tangents)

    def moments(self, pixel_weights: Tensor, cross: bool) -> Tensor:
        """Return the curvature sums of the splats."""
        return blend_moments(self.numbers, self.splats, self.lists, self.blended, pixel_weights, cross=cross)


class TritonRenderer(Renderer):
    """Renders on the GPU that the Gaussians lie on, by kernels that Triton compiles when they are first used.

    The same input gives the same bits: nothing is added in an order that depends on timing. Where there is no GPU and
    Triton was told to interpret (``TRITON_INTERPRET=1``), it runs on tensors on the CPU, far too slowly for more
    than tests.
    """

    name = "triton"

    def __init__(self) -> None:
        """Make a renderer.

        Raises:
            InputError: There is no GPU.
        """
        if not (torch.cuda.is_available() or triton.knobs.runtime.interpret):
            raise InputError(
                f"the triton renderer needs a GPU, and this PyTorch ({torch.__version__}) finds none; leave --renderer "
                "and --device out to render on the CPU"
            )
        self._views: dict[tuple[int, RenderOptions, torch.device], tuple[Camera, Tensor]] = {}

    @property
    def oracles(self) -> frozenset[Oracle]:
        """All but exact Hessian-vector products; a central difference of gradients stands in for those."""
        return frozenset(Oracle) - {Oracle.HVP}

    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        """Render one view, without gradients."""
        blended = self.draw(gaussians, camera, options, with_depth=True).blended
        return Rendering(blended.image, 1 - blended.transmittance, blended.depth)

    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        """Add ∂loss/∂θ of one view to ``into``; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        image_gradient = torch.empty_like(drawn.blended.image)
        loss = gpu_loss.view_loss(drawn.blended.image, here, image_gradient)
        drawn.vjp(image_gradient, into, observed)
        visible = drawn.splats.row_count > 0
        seen.copy_(visible if into.overwrite else seen | visible)
        return loss

    def value(self, gaussians: Gaussians, problem: ViewProblem) -> ViewLoss:
        """Return the loss of one view; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        return gpu_loss.view_loss(drawn.blended.image, here)

    def residuals(self, gaussians: Gaussians, problem: ViewProblem) -> Tensor:
        """Return the residuals, (k, H, W, 3); see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        return gpu_loss.residuals(drawn.blended.image, here)

    def jvp(self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor]) -> Tensor:
        """Return J v, (k, H, W, 3), a missing tangent being zero; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        return gpu_loss.residual_jvp(drawn.blended.image, here, drawn.jvp(tangent))

    def vjp(self, gaussians: Gaussians, problem: ViewProblem, cotangent: Tensor, into: WeightedSum) -> None:
        """Add Jᵀ u to ``into``; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        drawn.vjp(gpu_loss.residual_vjp(drawn.blended.image, here, cotangent.contiguous()), into)

    def gauss_newton_product(
        self, gaussians: Gaussians, problem: ViewProblem, tangent: Mapping[str, Tensor], into: WeightedSum
    ) -> None:
        """Add JᵀJ v to ``into``, drawing the view once; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        image = drawn.blended.image
        cotangent = gpu_loss.residual_jvp(image, here, drawn.jvp(tangent))
        drawn.vjp(gpu_loss.residual_vjp(image, here, cotangent), into)

    def accumulate_diagonal(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add diag(JᵀJ), by pixels' own residuals, to ``into``; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        project_diagonal(
            drawn.numbers,
            drawn.cloud,
            drawn.splats,
            # Above degree 0 a mean moves its colour too, and then the cross sums count.
            drawn.moments(gpu_loss.pixel_curvature(drawn.blended.image, here), cross=drawn.cloud.degree > 0),
            [into.tensors[name] for name in GAUSSIAN_TENSORS],
            drawn.factor(into.weight),
            antialiased=drawn.antialiased,
            overwrite=into.overwrite,
        )

    def accumulate_blocks(self, gaussians: Gaussians, problem: ViewProblem, into: WeightedSum) -> None:
        """Add each Gaussian's block of JᵀJ to ``into``; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        project_blocks(
            drawn.numbers,
            drawn.cloud,
            drawn.splats,
            drawn.moments(gpu_loss.pixel_curvature(drawn.blended.image, here), cross=True),
            (into.tensors["blocks"], into.tensors["sh_rest"]),
            drawn.factor(into.weight),
            antialiased=drawn.antialiased,
            overwrite=into.overwrite,
        )

    def statistics(self, gaussians: Gaussians, problem: ViewProblem, error: ErrorMap, into: WeightedSum) -> None:
        """Add what each Gaussian does in one view to ``into``; see :class:`Renderer`."""
        drawn, here = self._ask(gaussians, problem)
        image = drawn.blended.image
        image_gradient = torch.empty_like(image) if "color_cross" in into.tensors else None
        if image_gradient is not None:
            gpu_loss.view_loss(image, here, image_gradient)
        # Where a pixel does not count, no row reaches it.
        last = torch.where(here.counted(image), drawn.blended.last, 0)
        found = blend_statistics(
            drawn.numbers,
            drawn.splats,
            drawn.lists,
            replace(drawn.blended, last=last),
            here.errors(image, error).contiguous(),
            image_gradient,
        )
        factor = drawn.factor(into.weight)
        project_statistics(
            drawn.numbers, drawn.cloud, drawn.splats, found, into.tensors, factor, overwrite=into.overwrite
        )

    def _ask(self, gaussians: Gaussians, problem: ViewProblem) -> tuple[_Drawn, ViewProblem]:
        """Draw a view, and return its problem with photograph and weights on the view's device."""
        drawn = self.draw(gaussians, problem.camera, problem.options)
        image = problem.image.to(drawn.device, non_blocking=True)
        weights = None if problem.weights is None else problem.weights.to(drawn.device, non_blocking=True)
        return drawn, replace(problem, image=image, weights=weights)

    def memory_needed(self, gaussians: int, pixels: int, pairs: int, asked: frozenset[Oracle]) -> int:
        """Count the bytes that one view takes beside Gaussians, gradients and residuals; ``docs/kernels.md``.

        Args:
            gaussians: N.
            pixels: H·W.
            pairs: Tile entries.
            asked: The derivatives that are taken.
        """
        cross = bool(asked & {Oracle.GAUSS_NEWTON_DIAGONAL, Oracle.GAUSS_NEWTON_BLOCKS})
        sums = 4 * (36 if cross else 12 if Oracle.STATISTICS in asked else 9)
        # Two sorts with 8-byte indices come first and the sums after them, over what both keep.
        return (
            gaussians * (60 + max(24, sums) + 36 * (Oracle.JVP in asked))
            + pixels * (20 + 12 + 36 + 24 * (Oracle.JVP in asked) + 56 * (Oracle.STATISTICS in asked))
            + pairs * (8 + max(28, sums))
        )

    def draw(self, gaussians: Gaussians, camera: Camera, options: RenderOptions, *, with_depth: bool = False) -> _Drawn:
        """Draw a view: project, list, blend."""
        cloud = cloud_pointers(gaussians, options)
        numbers = self._view(camera, options, cloud.tensors.means.device)
        antialiased = options.footprint is Footprint.ANTIALIASED
        splats = project(numbers, cloud, antialiased)
        lists = make_tile_lists(numbers, splats, camera.width, camera.height)
        blended = blend(numbers, splats, lists, camera.width, camera.height, with_depth=with_depth)
        return _Drawn(numbers, cloud, splats, lists, blended, antialiased)

    def _view(self, camera: Camera, options: RenderOptions, device: torch.device) -> Tensor:
        # Keyed by identity: cameras are frozen, and the kept reference keeps the id from being reused.
        key = (id(camera), options, device)
        if key not in self._views:
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            self._views[key] = (camera, view_numbers(camera, options, device))
        return self._views[key][1]
