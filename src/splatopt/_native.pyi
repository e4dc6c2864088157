"""
Native kernels of splatopt: rendering, its derivatives, the photometric loss and fused optimizer steps.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Workers:
    """Threads and the kernels that fit this processor."""

    def __init__(self, threads: int, isa: str = 'auto') -> None: ...

    def blend_ceiling(self, constants: Constants, rounds: int) -> float:
        """
        Pixel-Gaussian pairs a second that all threads together blend in a bare loop: the renderer's ceiling.
        """

    @property
    def threads(self) -> int: ...

    @property
    def isa(self) -> str: ...

    def project_rows(self, constants: Constants, view: View, limits: Sequence[float], rows: PlainRows, into: PlainSplats) -> None:
        """
        Project rows; limits are the far plane and the radius up to which they are left out.
        """

    def project_rows_backward(self, constants: Constants, view: View, rows: PlainRows, given: PlainSplatGradients, means: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], quats: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> list[float]:
        """
        Add to the rows' gradients; returns that of world to camera, 3x3 and 3 numbers.
        """

    def harmonics(self, rows: HarmonicRows, colors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """Evaluate spherical harmonics, (N, 3)."""

    def harmonics_backward(self, rows: HarmonicRows, colors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], directions: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], coefficients: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')], overwrite: bool) -> list[float]:
        """
        Add to the directions' gradient, and to the coefficients' or overwrite it; returns the directions' sum.
        """

    def adam_step(self, parameter: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], gradient: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], exp_avg: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], exp_avg_sq: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], *, rate: float, beta1: float, beta2: float, epsilon: float, step: int) -> None:
        """One Adam step in place on flat float32 tensors; step counts from 1."""

    def sign_step(self, bounds: TrustBounds, values: CloudTensors, gradient: CloudTensors, momentum: CloudTensors, *, decay: float) -> None:
        """Momentum's sign times the trust radii, in place."""

    def adam_clipped_step(self, bounds: TrustBounds, values: CloudTensors, gradient: CloudTensors, exp_avg: CloudTensors, exp_avg_sq: CloudTensors, *, rates: Sequence[float], beta1: float, beta2: float, epsilon: float, step: int) -> None:
        """
        One Adam step clipped to the trust radii, in place; step counts from 1.
        """

    def curvature_step(self, bounds: TrustBounds, values: CloudTensors, gradient: CloudTensors, momentum: CloudTensors, curvature: CloudTensors, *, decay: float, factor: float, damping: Sequence[float]) -> list[float]:
        """
        Momentum over damped curvature clipped to the trust radii, in place; the curvature is only read. Returns the mean of |momentum * radius| over each tensor's entries that are not 0.
        """

    def block_step(self, bounds: TrustBounds, values: CloudTensors, gradient: CloudTensors, momentum: CloudTensors, blocks: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], seen: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, multipliers: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], *, decay: float, correction: float, scale: float, damping: float, factorisations: int, measure_only: bool = False) -> float:
        """
        Trust-region steps with 14x14 blocks, in place; multipliers are read and updated. Returns the sum of |h| over the rows that were seen; with measure_only that is all it does.
        """

    def fold_blocks(self, blocks: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], fresh: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weights: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """Move kept blocks (N, 105) towards fresh ones by each row's weight."""

    def block_form(self, blocks: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], step: CloudTensors) -> float:
        """
        The sum of d'Bd over all rows, blocks (N, 105), and of what they bound sh_rest's by.
        """

    def learned_step(self, passes: LearnedPasses, values: CloudTensors, gradient: CloudTensors, memory: LearnedMemory, seen: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu', writable=False)], near: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], scene: Sequence[float], *, rates: Sequence[float], ageing: Sequence[float], beta1: float, beta2: float, beta_slow: float, epsilon: float) -> None:
        """
        One learned step in place: moments, latent state and values of the rows that were seen.
        """

    def nearest_others(self, points: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        Fill rows (N, k) with those of the k nearest other points of each of (N, 3), nearest first, k < N.
        """

class Constants:
    """The rendering rule's numbers."""

    def __init__(self, *, near_plane: float, low_pass: float, max_alpha: float, min_alpha: float, min_transmittance: float, frustum_margin: float, ssim_c1: float, ssim_c2: float, window: Sequence[float]) -> None: ...

class View:
    """A camera, the image's size and how it is drawn."""

    def __init__(self, *, rotation: Sequence[float], center: Sequence[float], intrinsics: Sequence[float], width: int, height: int, background: Sequence[float], antialiased: bool) -> None: ...

class CloudTensors:
    """
    Pointers to six tensors in a cloud's shapes, which the caller keeps alive.
    """

    def __init__(self, means: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], log_scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], quats: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], logit_opacities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], sh_dc: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], sh_rest: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')]) -> None: ...

class Cloud:
    """
    Gaussians, or a tangent of them, and the degree of colour that is evaluated.
    """

    def __init__(self, tensors: CloudTensors, degree: int) -> None: ...

class LossRule:
    """A loss of a view and its residuals."""

    def __init__(self, *, penalty: str, penalty_parameter: float = 0.0, ssim_weight: float, count: float, pixel_scale: float, pixel_half_scale: float, ssim_half_scale: float, floor_dissimilarity: float) -> None: ...

class TargetImage:
    """
    Pointers to (H, W, 3) bytes and their (H, W) weights, kept alive by the caller.
    """

    def __init__(self, bytes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None, 3), order='C', device='cpu', writable=False)], weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None) -> None: ...

class ObservedTensors:
    """
    Pointers to what a gradient pass adds statistics of rows to, kept alive by the caller.
    """

    def __init__(self, views: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], gradient: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], max_radius: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], absolute: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')] | None, splitting: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None) -> None: ...

class StatisticsTensors:
    """
    Pointers to what statistics of rows are added to, kept alive by the caller.
    """

    def __init__(self, *, weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], max_weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], pixels: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], error: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], weighted_error: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], weighted_squared_error: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], color_cross: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')] | None = None) -> None: ...

class Rasterizer:
    """One view's passes in order, with the buffers they share."""

    def __init__(self, constants: Constants, workers: Workers) -> None: ...

    def forward(self, view: View, cloud: Cloud, with_depth: bool = False) -> None:
        """Project, bin and blend."""

    def loss(self, target: TargetImage, rule: LossRule) -> tuple[float, float]:
        """
        Loss and mean squared error of the last view; keeps dL/dimage for backward.
        """

    def set_image_gradient(self, gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)]) -> None:
        """Take dL/dimage (H, W, 3), or the pixels' curvature, from outside."""

    def backward(self, cloud: Cloud, weight: float, into: CloudTensors, seen: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu')], overwrite: bool = False, observed: ObservedTensors | None = None) -> None:
        """Add weight · dL/dθ to the six gradients and mark what was drawn."""

    def statistics(self, cloud: Cloud, target: TargetImage, error: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], weight: float, into: StatisticsTensors, overwrite: bool = False) -> None:
        """
        Add weight · the statistics of rows of the last view, with the dL/dimage at hand and errors (H, W).
        """

    def residuals(self, target: TargetImage, rule: LossRule, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order='C', device='cpu')]) -> None:
        """Residuals of the last view."""

    def image_jvp(self, cloud: Cloud, tangent: Cloud, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')]) -> None:
        """∂image/∂θ · tangent for the last view."""

    def jvp(self, cloud: Cloud, tangent: Cloud, target: TargetImage, rule: LossRule, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order='C', device='cpu')]) -> None:
        """J · tangent for the last view."""

    def set_cotangent(self, target: TargetImage, rule: LossRule, cotangent: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)]) -> None:
        """Keep J_imageᵀ · cotangent for backward."""

    def set_pixel_curvature(self, target: TargetImage, rule: LossRule) -> None:
        """
        Keep the curvature of the residuals in each pixel for diagonal and blocks.
        """

    def diagonal(self, cloud: Cloud, weight: float, into: CloudTensors, overwrite: bool = False) -> None:
        """Add weight · diag(JᵀJ) of the last view."""

    def blocks(self, cloud: Cloud, weight: float, blocks: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], sh_rest: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')], overwrite: bool = False) -> None:
        """
        Add weight · each Gaussian's own block of JᵀJ of the last view, lower triangles row by row.
        """

    def copy_image(self, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')]) -> None: ...

    def copy_depth(self, alpha: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], depth: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

    def copy_visible(self, out: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def relevant_pairs(self) -> int: ...

    def blended_pairs(self) -> int: ...

    @property
    def timings(self) -> dict:
        """Seconds that the passes of the last view took."""

    def block_pairs(self) -> int: ...

    @property
    def visible_count(self) -> int: ...

    @property
    def entry_count(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    def draw_rows(self, view: View, rows: BlendRows) -> None:
        """Make the lists of rows that are projected already."""

    def blend_channels(self, colors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], first: int, count: int, image: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')], alpha: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None = None) -> None:
        """Blend one to four channels of (N, D) colours into those of (H, W, D)."""

    def channels_backward(self, colors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], first: int, count: int, image_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)] | None, alpha_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, into: BlendRowGradients, color_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """Add to the rows' gradients and write those of these channels."""

class PlainRows:
    """
    Pointers to means, quaternions, scales and opacities, kept alive by the caller.
    """

    def __init__(self, means: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], quats: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], opacities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

class PlainSplats:
    """Pointers to where projected rows go, kept alive by the caller."""

    def __init__(self, centers: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], factors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], conics: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], depths: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], compensations: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], radii: Annotated[NDArray[numpy.int32], dict(shape=(None, 2), order='C', device='cpu')], tiles: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

class PlainSplatGradients:
    """Pointers to the gradients of projected rows, kept alive by the caller."""

    def __init__(self, centers: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, factors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, depths: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, compensations: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, radii: Annotated[NDArray[numpy.int32], dict(shape=(None, 2), order='C', device='cpu', writable=False)]) -> None: ...

class BlendRows:
    """Pointers to projected rows that are blended, kept alive by the caller."""

    def __init__(self, centers: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], factors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], opacities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], depths: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], radii: Annotated[NDArray[numpy.int32], dict(shape=(None, 2), order='C', device='cpu', writable=False)]) -> None: ...

class BlendRowGradients:
    """Pointers to where their gradients are added, kept alive by the caller."""

    def __init__(self, centers: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], factors: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], opacities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], absolute: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None) -> None: ...

class HarmonicRows:
    """
    Pointers to directions, coefficients and which rows count, kept alive likewise.
    """

    def __init__(self, degree: int, directions: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], coefficients: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu', writable=False)], counted: Annotated[NDArray[numpy.bool_], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, seen_from: Sequence[float] | None) -> None: ...

class TrustBounds:
    """The trust region of one step."""

    def __init__(self, *, epsilon: float, opacity_floor: float, max_relative_distance: float, max_mean: float, max_log_scale: float, max_quat: float, max_logit: float, max_color: float, color_floor: float, higher_bands: float, place: float, shape: float, look: float, conditional_variance: bool) -> None: ...

class LearnedPasses:
    """A learned step's network, packed, and the buffers of its passes."""

    def __init__(self, packed: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], *, width: int, blocks: int, latent: int, attention: int, scene: int, attends: bool, scales: bool) -> None: ...

class LearnedMemory:
    """Pointers to what a learned run keeps, which the caller keeps alive."""

    def __init__(self, exp_avg: CloudTensors, exp_avg_sq: CloudTensors, slow: CloudTensors, latent: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], age: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

def shared_constants() -> dict:
    """
    The numbers that were compiled in from the package's sources, a list under each name.
    """

def supported_isas() -> list:
    """
    Instruction sets that this build and this processor share, fastest first.
    """
