"""A quadratic whose parameters, a few Gaussians', all depend on one another."""

from __future__ import annotations

import torch
from torch import Tensor

from splatopt.core.objective import Evaluation, GaussNewtonBlocks, Objective, Oracle
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.curvature.blocks import pack_blocks

WIDTHS = {"means": 3, "log_scales": 3, "quats": 4, "logit_opacities": 1, "sh_dc": 3}


class Coupled(Objective):
    """½‖J(θ - target)‖² with a dense J over all parameters of a few Gaussians; rows overlap in it."""

    def __init__(self, rows: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.rows = rows
        shapes = {name: (rows, width) for name, width in WIDTHS.items()} | {"logit_opacities": (rows,)}
        self.values = {name: 0.3 * normal(*shape) for name, shape in shapes.items()}
        self.values["quats"] = self.values["quats"] + torch.tensor([1.0, 0, 0, 0], dtype=dtype)
        self.values["sh_rest"] = 0.1 * normal(rows, 3, 3)
        self.targets = {name: value + 0.01 * normal(*value.shape) for name, value in self.values.items()}
        count = sum(value.numel() for value in self.values.values())
        self.jacobian = normal(2 * count, count)
        self.seen = torch.ones(rows, dtype=torch.bool)
        self.seen[-1] = False
        self.jacobian[:, self.flat({n: self._last(v) for n, v in self.values.items()}) != 0] = 0

    def _last(self, value: Tensor) -> Tensor:
        mask = torch.zeros_like(value)
        mask[-1] = 1
        return mask

    def flat(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].reshape(-1) for name in GAUSSIAN_TENSORS])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([self.values[name].numel() for name in GAUSSIAN_TENSORS])
        return {name: part.view(self.values[name].shape) for name, part in zip(GAUSSIAN_TENSORS, parts, strict=True)}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.values

    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.GAUSS_NEWTON_BLOCKS})

    @property
    def length_scale(self) -> float:
        return 1.0

    @property
    def backend(self) -> str:
        return "formula"

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(WIDTHS)

    def residual(self) -> Tensor:
        return self.jacobian @ (self.flat(self.values) - self.flat(self.targets))

    def gradient(self, batch: object) -> Evaluation:
        residual = self.residual()
        loss = float(0.5 * residual.square().sum())
        return Evaluation(loss, self.split(self.jacobian.T @ residual), self.seen, {})

    def jvp(self, batch: object, tangent: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (self.jacobian @ self.flat(tangent),)

    def gauss_newton_blocks(self, batch: object) -> GaussNewtonBlocks:
        whole = self.jacobian.T @ self.jacobian
        index = self.split(torch.arange(whole.shape[0]))
        blocks = []
        for row in range(self.rows):
            own = torch.cat([index[name][row].reshape(-1) for name in WIDTHS])
            blocks.append(whole[own][:, own])
        diagonal = self.split(whole.diagonal().clone())["sh_rest"]
        return GaussNewtonBlocks(tuple(WIDTHS), pack_blocks(torch.stack(blocks)), {"sh_rest": diagonal.clone()})
