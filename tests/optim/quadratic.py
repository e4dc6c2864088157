"""A small objective with a known minimum that answers every question, for every optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Oracle, Residuals, Tensors
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.curvature.blocks import pack_blocks


class Quadratic(Objective):
    """½ Σ c·(θ - target)² over tensors with N rows each; residuals √c·(θ - target), JᵀJ = Hessian = diag(c)."""

    def __init__(
        self,
        rows: int = 8,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        spread: float = 0.2,
        gaussians: bool = False,
    ) -> None:
        """``spread`` is how far minima lie; ``gaussians`` takes the tensors of a cloud instead of any three."""
        generator = torch.Generator().manual_seed(seed)
        shapes = {"means": (rows, 3), "logit_opacities": (rows,), "weights": (rows, 2)}
        if gaussians:
            del shapes["weights"]
            shapes |= {"log_scales": (rows, 3), "quats": (rows, 4), "sh_dc": (rows, 3), "sh_rest": (rows, 3, 3)}
        self.values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        self.targets = {
            name: value + spread * torch.randn(value.shape, generator=generator, dtype=dtype)
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
        return frozenset(Oracle)

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
        return Evaluation(loss=self.loss(), gradient=gradient, seen=None, metrics={})

    def residuals(self, batch: object) -> Residuals:
        return tuple(self.curvature[name].sqrt() * (value - self.targets[name]) for name, value in self.values.items())

    def empty_residuals(self, batch: object) -> Residuals:
        return tuple(torch.empty_like(value) for value in self.values.values())

    def jvp(self, batch: object, tangent: Tensors) -> Residuals:
        return tuple(
            self.curvature[name].sqrt() * tangent[name] if name in tangent else torch.zeros_like(value)
            for name, value in self.values.items()
        )

    def vjp(self, batch: object, cotangent: Residuals) -> Tensors:
        return {name: self.curvature[name].sqrt() * part for name, part in zip(self.values, cotangent, strict=True)}

    def exact_gauss_newton_diagonal(self, batch: object) -> Tensors:
        return self.curvature

    @property
    def block_names(self) -> tuple[str, ...]:
        return BLOCK_TENSORS if "sh_dc" in self.values else tuple(self.values)

    def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
        names = self.block_names
        columns = torch.cat([self.curvature[name][:, None].flatten(1) for name in names], dim=1)
        rest = {name: value for name, value in self.curvature.items() if name not in names}
        return GaussNewtonBlocks(names, pack_blocks(torch.diag_embed(columns)), rest)

    def exact_hvp(self, batch: object, tangent: Tensors) -> Tensors:
        return {
            name: self.curvature[name] * tangent[name] if name in tangent else torch.zeros_like(value)
            for name, value in self.values.items()
        }

    def edit_rows(self, edit: SceneEdit) -> None:
        self.values = {name: edit.parameter(name, value) for name, value in self.values.items()}
        self.targets = {name: edit.gather(value) for name, value in self.targets.items()}
        self.curvature = {name: edit.gather(value) for name, value in self.curvature.items()}
