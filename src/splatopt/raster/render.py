"""Picking a renderer, and rendering with autograd."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, nearest_names, quoted
from splatopt.core.devices import check_device_name, cuda_problem, find_device, is_installed
from splatopt.core.schema import GAUSSIAN_TENSORS, GaussianTensors
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Gaussians, Rendering, RenderOptions


@dataclass(frozen=True)
class _Kind:
    """A renderer that may be asked for.

    Attributes:
        devices: Kinds of device that it computes on, the usual one first.
        problem: Returns why it cannot be used here, None where it can.
        why: Why it is chosen by itself.
    """

    devices: tuple[str, ...]
    problem: Callable[[], str | None]
    why: str = "it was asked for"


def _native_problem() -> str | None:
    absent = "the native renderer is not installed: run `make install` (it needs a C++20 compiler)"
    return None if native.available() else absent


def _triton_problem() -> str | None:
    if is_installed("triton") and is_installed(_TRITON):
        return None
    return "the triton renderer is not installed: `pip install 'splatopt[gpu]'`"


def _gsplat_problem() -> str | None:
    absent = "the gsplat renderer is not installed: `pip install 'splatopt[gsplat]'`"
    return None if is_installed("gsplat") else absent


_TRITON = "splatopt.raster.gpu"
_KINDS = {
    "native": _Kind(("cpu",), _native_problem, "the native module is installed and is the fastest here"),
    "triton": _Kind(("cuda",), _triton_problem, "there is a GPU, and triton is installed"),
    "gsplat": _Kind(("cuda",), _gsplat_problem),
    "reference": _Kind(
        ("cpu", "cuda"), lambda: None, "the native module is not installed; this is the slow PyTorch reference"
    ),
}
RENDERERS = tuple(_KINDS)
_BY_ITSELF = {"cpu": ("native", "reference"), "cuda": ("triton",)}
"""What may be chosen by itself for a kind of device, the fastest first."""


@dataclass(frozen=True)
class Backend:
    """What renders, and where.

    Attributes:
        renderer: One of RENDERERS.
        device: Where Gaussians, images and the optimizer's state lie.
        why: Why this renderer, in one sentence.
    """

    renderer: str
    device: torch.device
    why: str


def check_renderer_name(name: str) -> None:
    """Raise InputError unless ``name`` is auto or one of RENDERERS."""
    if name not in ("auto", *RENDERERS):
        raise InputError(f"no renderer is named {quoted(name)}; {nearest_names(name, ('auto', *RENDERERS))}")


def find_backend(renderer: str = "auto", device: str = "auto") -> Backend:
    """Return what ``renderer`` and ``device`` stand for here.

    Left to itself, the device is CUDA where there is a GPU that Triton compiles for and triton is installed, and the
    CPU otherwise; a renderer that was asked for takes the device that it is made for.

    Args:
        renderer: auto, or one of RENDERERS.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        InputError: There is no such renderer or device, it is not installed, or they do not go together.
    """
    check_renderer_name(renderer)
    check_device_name(device)
    if device == "auto":
        device = _usual_device(renderer)
    place = find_device(device)
    if renderer == "auto":
        return _by_itself(place)
    kind = _KINDS[renderer]
    if place.type not in kind.devices:
        raise InputError(
            f"the {renderer} renderer does not compute on {device}, only on {' and '.join(kind.devices)}; leave "
            "--renderer or --device out"
        )
    problem = kind.problem()
    if problem:
        raise InputError(problem)
    return Backend(renderer, place, _Kind.why)


def _usual_device(renderer: str) -> str:
    """Return the device that a renderer takes where none was asked for."""
    if renderer != "auto":
        return _KINDS[renderer].devices[0]
    return "cpu" if _triton_problem() or cuda_problem() else "cuda"


def _by_itself(device: torch.device) -> Backend:
    """Return the fastest renderer that is installed for ``device``."""
    for name in _BY_ITSELF[device.type]:
        if _KINDS[name].problem() is None:
            return Backend(name, device, _KINDS[name].why)
    raise InputError(
        f"nothing that is installed renders on {device}: install triton with `pip install 'splatopt[gpu]'`, or choose "
        "--renderer gsplat, or the slow --renderer reference"
    )


def renderer_in_use(name: str = "auto", device: str = "auto") -> tuple[str, str]:
    """Return which renderer ``name`` stands for here, and why, in one sentence; see :func:`find_backend`."""
    backend = find_backend(name, device)
    return backend.renderer, backend.why


def make_renderer(name: str = "auto", threads: int = 0, device: str = "auto", isa: str = "auto") -> Renderer:
    """Return a renderer.

    Args:
        name: "auto" (the fastest that this machine has), "native", "reference", "triton" or "gsplat".
        threads: Threads of the native renderer; 0 for one per processor.
        device: "auto", "cpu", "cuda" or "cuda:N"; what is rendered must lie there.
        isa: Instruction set of the native renderer, "auto" for the fastest.

    Raises:
        InputError: There is no such renderer or device, it is not installed, or they do not go together.
    """
    return open_backend(find_backend(name, device), threads, isa)


def open_backend(backend: Backend, threads: int = 0, isa: str = "auto") -> Renderer:
    """Return the renderer of ``backend``.

    Args:
        backend: What :func:`find_backend` gave.
        threads: Threads of the native renderer; 0 for one per processor.
        isa: Instruction set of the native renderer, "auto" for the fastest.
    """
    match backend.renderer:
        case "native":
            return NativeRenderer(threads, isa)
        case "triton":
            return importlib.import_module(_TRITON).TritonRenderer()
        case "gsplat":
            from splatopt.raster.gsplat_peer import GsplatRenderer

            return GsplatRenderer()
        case _:
            return ReferenceRenderer()


class _NativeRender(torch.autograd.Function):
    """The native renderer as a differentiable function of the six tensors."""

    @staticmethod
    def forward(ctx: Any, camera: Camera, options: RenderOptions, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        renderer = NativeRenderer()
        rendering = renderer.render(GaussianTensors(*tensors), camera, options)
        ctx.renderer, ctx.options = renderer, options
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(rendering.alpha, rendering.depth)
        return rendering.image, rendering.alpha, rendering.depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, image_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradient = {name: torch.zeros_like(tensor) for name, tensor in zip(GAUSSIAN_TENSORS, tensors, strict=True)}
        ctx.renderer.backpropagate(GaussianTensors(*tensors), ctx.options, image_gradient, gradient)
        return None, None, *gradient.values()


def render(gaussians: Gaussians, camera: Camera, options: RenderOptions | None = None) -> Rendering:
    """Render one view with the native renderer; ``image`` is differentiable by autograd.

    Gradients of ``alpha`` and ``depth`` are not given; the reference renderer has them.

    Args:
        gaussians: Contiguous float32 tensors on the CPU.
        camera: From where.
        options: Background, footprint and degree.

    Returns:
        Image (H, W, 3), alpha (H, W) and depth (H, W).
    """
    tensors = [getattr(gaussians, name) for name in GAUSSIAN_TENSORS]
    return Rendering(*_NativeRender.apply(camera, options or RenderOptions(), *tensors))
