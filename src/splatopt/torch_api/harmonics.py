"""Spherical harmonics of rows, as gsplat's function of that name gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.raster.spherical_harmonics import spherical_harmonics_basis
from splatopt.torch_api.workers import native_module, torch_workers, uses_native

MAX_DEGREE = 3

_ROUNDING = 1e-6
"""How far below black a colour may lie by rounding, that of a black point by its coefficient."""


def spherical_harmonics(degrees_to_use: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return Σ_k coefficient_k Y_k(direction), 0 where the mask is False; differentiable in both.

    Args:
        degrees_to_use: Highest degree, 0 to 3.
        dirs: Directions of any length, (..., 3).
        coeffs: Coefficients in the order of 3DGS, (..., K, 3), K at least (degree + 1)².
        masks: Which rows count, (...,); all where it is None.

    Returns:
        (..., 3), without gsplat's later +0.5 and clamp at 0.

    Raises:
        InputError: A degree that is not among 0 to 3, or shapes that do not fit.
    """
    check_degree(degrees_to_use, coeffs)
    rows = dirs.shape[:-1]
    if dirs.shape[-1:] != (3,) or coeffs.shape[:-2] != rows or (masks is not None and masks.shape != rows):
        raise InputError(
            f"spherical harmonics need directions (..., 3), coefficients (..., K, 3) and masks (...), got "
            f"{tuple(dirs.shape)}, {tuple(coeffs.shape)} and {None if masks is None else tuple(masks.shape)}"
        )
    counted = None if masks is None else masks.reshape(1, -1)
    flat = coeffs.reshape(1, -1, *coeffs.shape[-2:])
    return harmonics_of_views(degrees_to_use, dirs.reshape(1, -1, 3), flat, counted).reshape(*rows, 3)


def check_degree(degree: int, coefficients: Tensor) -> None:
    """Raise InputError unless the coefficients, (..., K, 3), have this degree and it is one that we have."""
    if not 0 <= degree <= MAX_DEGREE:
        raise InputError(f"the degree of spherical harmonics must be 0 to {MAX_DEGREE}, got {degree}")
    if coefficients.ndim < 2 or coefficients.shape[-1] != 3 or coefficients.shape[-2] < (degree + 1) ** 2:
        raise InputError(
            f"coefficients of degree {degree} must be (..., K, 3) with K at least {(degree + 1) ** 2}, "
            f"got {tuple(coefficients.shape)}"
        )


def harmonics_of_views(degree: int, directions: Tensor, coefficients: Tensor, counted: Tensor | None) -> Tensor:
    """Evaluate harmonics of N rows seen from C cameras.

    Args:
        degree: Highest degree.
        directions: (C, N, 3), of any length.
        coefficients: (N, K, 3) or, of each camera's own, (C, N, K, 3).
        counted: Which rows count, (C, N), or None for all.

    Returns:
        (C, N, 3).
    """
    coefficients, counted = coefficients.to(directions.dtype), None if counted is None else counted.bool()
    if uses_native(directions):
        return _NativeHarmonics.apply(degree, directions, coefficients, counted)
    squared = (directions * directions).sum(dim=-1, keepdim=True)
    unit = directions / torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt()
    count = (degree + 1) ** 2
    basis = spherical_harmonics_basis(unit.reshape(-1, 3), degree).reshape(*unit.shape[:-1], count - 1)
    rest = coefficients[..., 1:count, :]
    colors = SH_C0 * coefficients[..., 0, :] + (basis[..., None] * rest).sum(dim=-2)
    return colors if counted is None else torch.where(counted[..., None], colors, torch.zeros_like(colors))


def seen_colors(degree: int, coefficients: Tensor, directions: Tensor, counted: Tensor) -> Tensor:
    """Return the colours that Gaussians show along ``directions``, max(Σ_k coefficient_k Y_k + 0.5, 0), (C, N, 3).

    One that is black but for rounding passes its gradient, as in the native pass; what does not count is 0. Shapes are
    those of :func:`harmonics_of_views`.
    """
    colors = harmonics_of_views(degree, directions, coefficients, counted) + 0.5
    black = colors - colors.detach()
    colors = torch.where((colors < 0) & (colors >= -_ROUNDING), black, colors.clamp_min(0.0))
    return torch.where(counted[..., None], colors, torch.zeros_like(colors))


class _NativeHarmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, degree: int, directions: Tensor, coefficients: Tensor, counted: Tensor | None) -> Tensor:
        ctx.degree = degree
        counted = None if counted is None else counted.contiguous()
        ctx.save_for_backward(directions, coefficients, counted)
        colors = torch.empty_like(directions, memory_format=torch.contiguous_format)
        for rows, out in zip(_rows(ctx, directions, coefficients, counted), colors, strict=True):
            torch_workers().harmonics(rows, out)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        directions, coefficients, counted = ctx.saved_tensors
        along = torch.zeros_like(directions, memory_format=torch.contiguous_format)
        sums, gradient = empty_gradient(coefficients, len(directions)), gradient.contiguous()
        shared = coefficients.ndim == 3
        for view, rows in enumerate(_rows(ctx, directions, coefficients, counted)):
            into = sums if shared else sums[view]
            overwrite = not shared or view == 0
            torch_workers().harmonics_backward(rows, None, gradient[view], along[view], into, overwrite)
        return None, along, sums, None


def empty_gradient(coefficients: Tensor, views: int) -> Tensor:
    """Return where the gradient of coefficients goes, which the first view's pass overwrites."""
    make = torch.empty_like if views else torch.zeros_like
    return make(coefficients, memory_format=torch.contiguous_format)


def _rows(ctx: Any, directions: Tensor, coefficients: Tensor, counted: Tensor | None) -> list[native.Native]:
    """Return each camera's pointers; the tensors outlive the calls that read them."""
    directions, coefficients = directions.detach().contiguous(), coefficients.detach().contiguous()
    ctx.held = directions, coefficients  # pointers alone go to the native module
    return [
        native_module().HarmonicRows(
            ctx.degree,
            directions[view],
            coefficients if coefficients.ndim == 3 else coefficients[view],
            None if counted is None else counted[view],
            None,
        )
        for view in range(len(directions))
    ]
