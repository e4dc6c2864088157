"""A least-squares objective of several views whose Jacobian is known, to hold matrix-free methods against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Oracle, Residuals, Tensors
from splatopt.core.row_statistics import ErrorMap, RowStatistics
from splatopt.curvature.blocks import apart, pack_blocks, side_by_side
from splatopt.curvature.flat import FlatLayout

ROWS, RESIDUALS, VIEWS = 4, 30, 6


class Views(Objective):
    """½ mean over views of ‖A_v θ - b_v‖²; a batch is a sequence of views, and no view sees the last row."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"means": (ROWS, 3), "weights": (ROWS,), "rest": (ROWS, 2, 2)}
        self.values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        self.layout = FlatLayout(self.values)
        size = self.layout.flatten(self.values).numel()
        seen = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
        for value in seen.values():
            value[-1] = 0
        scale = torch.rand(size, generator=generator, dtype=dtype) * self.layout.flatten(seen)
        self.matrices = torch.randn(VIEWS, RESIDUALS, size, generator=generator, dtype=dtype) * scale
        self.targets = torch.randn(VIEWS, RESIDUALS, generator=generator, dtype=dtype)
        self.multiplied: list[tuple[int, ...]] = []
        self.valued: list[tuple[int, ...]] = []

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.values

    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset(Oracle)

    @property
    def length_scale(self) -> float:
        return 1.0

    @property
    def backend(self) -> str:
        return "dense"

    @property
    def block_names(self) -> tuple[str, ...]:
        return ("means", "weights")

    def parts(self, batch: Sequence[int]) -> list[tuple[int, ...]]:
        return [(view,) for view in batch]

    def split(self, batch: Sequence[int], count: int) -> list[tuple[int, ...]]:
        return [tuple(batch[first::count]) for first in range(min(count, len(batch)))]

    def jacobian(self, batch: Sequence[int]) -> Tensor:
        """J, (views · residuals, parameters), so that JᵀJ is the mean over the views."""
        return self.matrices[list(batch)].flatten(0, 1) / len(batch) ** 0.5

    def residual(self, batch: Sequence[int]) -> Tensor:
        right = self.targets[list(batch)].flatten() / len(batch) ** 0.5
        return self.jacobian(batch) @ self.layout.flatten(self.values) - right

    def gradient(self, batch: Sequence[int]) -> Evaluation:
        residual = self.residual(batch)
        gradient = self.layout.unflatten(self.jacobian(batch).T @ residual)
        seen = torch.arange(ROWS) < ROWS - 1
        return Evaluation(float(0.5 * residual.square().sum()), gradient, seen, {"psnr": float(len(batch))})

    def value(self, batch: Sequence[int]) -> float:
        self.valued.append(tuple(batch))
        return float(0.5 * self.residual(batch).square().sum())

    def residuals(self, batch: Sequence[int]) -> Residuals:
        return self.residual(batch).split(RESIDUALS)

    def empty_residuals(self, batch: Sequence[int]) -> Residuals:
        return tuple(self.targets[view].clone() for view in batch)

    def jvp(self, batch: Sequence[int], tangent: Tensors) -> Residuals:
        return (self.jacobian(batch) @ self.layout.flatten(tangent)).split(RESIDUALS)

    def vjp(self, batch: Sequence[int], cotangent: Residuals) -> Tensors:
        return self.layout.unflatten(self.jacobian(batch).T @ torch.cat(cotangent))

    def gauss_newton_product(self, batch: Sequence[int], tangent: Tensors) -> Tensors:
        self.multiplied.append(tuple(batch))
        return super().gauss_newton_product(batch, tangent)

    def exact_gauss_newton_diagonal(self, batch: Sequence[int]) -> Tensors:
        return self.layout.unflatten(self.jacobian(batch).square().sum(dim=0))

    def gauss_newton_blocks(self, batch: Sequence[int]) -> GaussNewtonBlocks:
        names = self.block_names
        product = self.jacobian(batch).T @ self.jacobian(batch)
        where = self.layout.unflatten(torch.arange(product.shape[0], dtype=torch.float64))
        rows = side_by_side(where, names).long()
        blocks = product[rows[:, :, None], rows[:, None, :]]
        diagonal = self.layout.unflatten(product.diagonal().contiguous())
        squares = apart(blocks.diagonal(dim1=1, dim2=2), {name: self.layout.shapes[name] for name in names})
        assert all(torch.equal(squares[name], diagonal[name]) for name in names)
        return GaussNewtonBlocks(names, pack_blocks(blocks), {"rest": diagonal["rest"]})

    def statistics(self, batch: Sequence[int], error: ErrorMap, cross: bool = True) -> RowStatistics:
        """Rows of A_v read as images: their error against ones, their sums, and the greatest of their entries."""
        images = self.matrices[list(batch), : 3 * ROWS].reshape(len(batch), ROWS, 3, -1)
        errors = error(images.movedim(2, 3), torch.ones_like(images.movedim(2, 3))).mean(dim=(0, 2))
        sums = [(images + power).square().mean(dim=(0, 2, 3)) for power in range(5)]
        names = ("weight", "pixels", "error", "weighted_error", "weighted_squared_error")
        return RowStatistics(
            **dict(zip(names, sums, strict=True)) | {"error": errors},
            max_weight=images.amax(dim=(0, 2, 3)),
            color_cross=images[..., :3].mean(dim=0) if cross else None,
        )
