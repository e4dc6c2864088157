"""A small objective with a known minimum, for every optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.objective import Evaluation, Objective, Oracle
from splatopt.core.rows import RowEdit


class Quadratic(Objective):
    """½ Σ c·(θ - target)² over tensors with N rows each; gives gradients alone."""

    def __init__(self, rows: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"means": (rows, 3), "logit_opacities": (rows,), "weights": (rows, 2)}
        self.values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        self.targets = {
            name: value + 0.2 * torch.randn(value.shape, generator=generator, dtype=dtype)
            for name, value in self.values.items()
        }
        self.curvature = {
            name: torch.rand(value.shape, generator=generator, dtype=dtype) + 0.5 for name, value in self.values.items()
        }

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.values

    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset({Oracle.GRADIENT})

    @property
    def length_scale(self) -> float:
        return 10.0

    @property
    def backend(self) -> str:
        return "formula"

    def loss(self) -> float:
        return sum(
            float((0.5 * self.curvature[name] * (value - self.targets[name]) ** 2).sum())
            for name, value in self.values.items()
        )

    def gradient(self, batch: object) -> Evaluation:
        gradient = {name: self.curvature[name] * (value - self.targets[name]) for name, value in self.values.items()}
        return Evaluation(loss=self.loss(), gradient=gradient, seen=None, facts={})

    def edit_rows(self, edit: RowEdit) -> None:
        self.values = {name: edit.gather(value) for name, value in self.values.items()}
        self.targets = {name: edit.gather(value) for name, value in self.targets.items()}
        self.curvature = {name: edit.gather(value) for name, value in self.curvature.items()}
