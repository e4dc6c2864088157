"""The spectrum of a Hessian: dense for small problems, by Lanczos for all; condition numbers, preconditioned or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.objective import Batch, HessianProduct, Objective, Tensors
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.hessian import ExactHessian

ZERO = 1e-10
"""Eigenvalues below this share of the largest count as zero; rounding leaves about the machine epsilon of it."""

_MAX_DENSE = 20_000


@dataclass(frozen=True)
class RitzPairs:
    """What Lanczos knows of a symmetric operator: the quadrature Σ wᵢ f(λᵢ) ≈ zᵀf(H)z/zᵀz of its spectral density.

    Attributes:
        values: λ, ascending, (K,). The outer ones are close to the outer eigenvalues.
        weights: w, non-negative, sum 1, (K,).
    """

    values: Float[Tensor, " count"]
    weights: Float[Tensor, " count"]


def gauss_newton_operator(
    objective: Objective, batch: Batch, units: Mapping[str, float] | None = None
) -> Callable[[Tensor], Tensor]:
    """Return x ↦ u ⊙ JᵀJ (u ⊙ x) on flat vectors.

    Args:
        objective: Whose Gauss-Newton matrix.
        batch: Where.
        units: u, a number for each parameter: x counts in these; 1 where none is given.
    """
    layout = FlatLayout(objective.parameters)

    def product(vector: Tensor) -> Tensor:
        found = objective.gauss_newton_product(batch, scaled(layout.unflatten(vector), units or {}))
        return layout.flatten(scaled(found, units or {}))

    return product


def scaled(tensors: Tensors, units: Mapping[str, float]) -> dict[str, Tensor]:
    """Return each tensor times its number; those without one as they are."""
    return {name: value * units[name] if name in units else value for name, value in tensors.items()}


def hessian_operator(
    objective: Objective, batch: Batch, method: HessianProduct | None = None
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return v ↦ ∇²L v on flat vectors, and their length.

    Args:
        objective: Whose Hessian.
        batch: Where.
        method: How products are had; the objective's own exact ones when None.
    """
    shapes = {name: value.shape for name, value in objective.parameters.items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def product(vector: Tensor) -> Tensor:
        parts = dict(zip(shapes, vector.split(sizes), strict=True))
        tangent = {name: part.reshape(shapes[name]) for name, part in parts.items()}
        found = objective.hvp(batch, tangent, method or ExactHessian())
        return torch.cat([found[name].reshape(-1) for name in shapes])

    return product, sum(sizes)


def dense_hessian(objective: Objective, batch: Batch, method: HessianProduct | None = None) -> Float[Tensor, "n n"]:
    """Return ∇²L in full, one product per parameter, made exactly symmetric.

    Args:
        objective: At most 20,000 parameters.
        batch: Where.
        method: As for :func:`hessian_operator`.

    Raises:
        InputError: There are more parameters.
    """
    product, size = hessian_operator(objective, batch, method)
    if size > _MAX_DENSE:
        raise InputError(f"a dense Hessian of {size} parameters does not fit; use Lanczos, or at most {_MAX_DENSE}")
    like = next(iter(objective.parameters.values()))
    columns = torch.stack([product(unit) for unit in torch.eye(size, dtype=like.dtype, device=like.device)])
    return (columns + columns.T) / 2


def equilibrated(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return D_E, the 2-norms of the rows: what ESGD's √D estimates."""
    return matrix.norm(dim=1)


def jacobi(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return D_J, the moduli of the diagonal."""
    return matrix.diagonal().abs()


def preconditioned(matrix: Float[Tensor, "n n"], diagonal: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Return D^-½HD^-½; rows and columns where D is zero are zero.

    Args:
        matrix: H, symmetric.
        diagonal: D, nowhere negative.
    """
    inverse_root = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()
    return inverse_root[:, None] * matrix * inverse_root[None]


def condition_number(matrix: Float[Tensor, "n n"], zero: float = ZERO) -> float:
    """Return κ = max|λ| / min|λ| over the eigenvalues with |λ| > zero · max|λ|; NaN of the zero matrix.

    Args:
        matrix: Symmetric.
        zero: Share of the largest below which an eigenvalue counts as zero.
    """
    sizes = torch.linalg.eigvalsh(matrix.double()).abs()
    largest = float(sizes.max())
    return largest / float(sizes[sizes > zero * largest].min()) if largest > 0 else float("nan")


def product_density(product: Float[Tensor, " n"], threshold: float = 1e-6) -> float:
    """Return the share of entries of Hv that are above ``threshold`` times the largest, in modulus."""
    sizes = product.abs()
    largest = sizes.max()
    return float((sizes > threshold * largest).double().mean()) if largest > 0 else 0.0


@dataclass(frozen=True)
class TopSpace:
    """The eigenspace of a symmetric operator's largest eigenvalues, as far as Lanczos has found it.

    Attributes:
        values: λ, descending, (k,).
        residuals: ‖Av - λv‖ of each, (k,): some eigenvalue lies within it of λ.
        vectors: v, orthonormal rows, (k, n).
        pairs: All Ritz pairs of the start.
    """

    values: Float[Tensor, " count"]
    residuals: Float[Tensor, " count"]
    vectors: Float[Tensor, "count n"]
    pairs: RitzPairs


def lanczos(product: Callable[[Tensor], Tensor], start: Float[Tensor, " n"], steps: int) -> RitzPairs:
    """Return the Ritz pairs of ``steps`` steps of Lanczos from ``start``, every vector orthogonalised against all.

    Args:
        product: v ↦ Hv, H symmetric.
        start: z, not zero.
        steps: At most as many are taken as there are dimensions that z reaches.
    """
    return top_space(product, start, steps, 0).pairs


def top_space(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, " n"],
    steps: int,
    count: int,
    goes_on: Callable[[], bool] = lambda: True,
) -> TopSpace:
    """Return the Ritz pairs of Lanczos from ``start``, and vectors of the ``count`` largest values.

    Args:
        product: v ↦ Av, A symmetric.
        start: z, not zero.
        steps: At most as many are taken as there are dimensions that z reaches; so many vectors are held.
        count: k; fewer where there are fewer steps.
        goes_on: Asked after each step; where it says no, that was the last.
    """
    steps = min(steps, start.numel())
    basis = start.new_empty(steps, start.numel())
    basis[0] = start / start.norm()
    diagonal, off = [], []
    length = 0.0
    for step in range(steps):
        vector = product(basis[step])
        diagonal.append(float(basis[step] @ vector))
        size = float(vector.norm())
        known = basis[: step + 1]
        for _ in range(2):  # once is not enough: rounding brings the found eigenvectors back
            vector = vector - known.T @ (known @ vector)
        length = float(vector.norm())
        is_whole = length <= 10 * torch.finfo(start.dtype).eps * max(size, abs(diagonal[0]))
        if is_whole or step + 1 == steps or not goes_on():
            break
        off.append(length)
        basis[step + 1] = vector / length
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off:
        beside = torch.tensor(off, dtype=torch.float64)
        matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    top = vectors.flip(1)[:, :count]
    ritz = top.T.to(basis) @ basis[: len(diagonal)]
    return TopSpace(values.flip(0)[:count], length * top[-1].abs(), ritz, RitzPairs(values, vectors[0].square()))


def spectral_pairs(
    objective: Objective, batch: Batch, *, steps: int, probes: int, generator: torch.Generator
) -> list[RitzPairs]:
    """Return the Ritz pairs of ``probes`` random starts: their mean estimates the density of ∇²L's eigenvalues.

    Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    Args:
        objective: Whose Hessian.
        batch: Where.
        steps: Of Lanczos for each start.
        probes: Number of starts, random signs.
        generator: Source of the signs.
    """
    product, size = hessian_operator(objective, batch)
    like = next(iter(objective.parameters.values()))
    starts = (rademacher(like.new_empty(size), generator) for _ in range(probes))
    return [lanczos(product, start, steps) for start in starts]
