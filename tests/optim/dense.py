"""A least-squares objective with a dense Jacobian, so that every curvature is a matrix that one can look at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splatopt.core.objective import Evaluation, Objective, Oracle, Residuals, Tensors
from splatopt.core.scene_edit import SceneEdit

SHAPES = {"means": (4, 3), "logit_opacities": (4,), "weights": (4, 2)}


class Dense(Objective):
    """½‖J θ - b‖² over tensors of four rows; gradient and Hessian of a row that is unseen or flat are zero.

    Gradients are returned in one buffer that the next evaluation overwrites, as a renderer's are.
    """

    def __init__(
        self,
        *,
        oracles: frozenset[Oracle] = frozenset(Oracle),
        seen: Tensor | None = None,
        flat: tuple[int, ...] = (),
        scales: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.given = oracles
        self.seen = seen
        self.calls: list[str] = []
        scales = scales or {}
        columns = []
        self.values: dict[str, Tensor] = {}
        for name, shape in SHAPES.items():
            block = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
            block[:, list(flat)] = 0
            columns.append(block.flatten(1) / scales.get(name, 1.0))
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.values[name] = value * scales.get(name, 1.0)
        self.jacobian = torch.cat(columns, dim=1)
        self.offset = torch.randn(12, generator=generator, dtype=torch.float64)
        self._buffer = {name: torch.zeros_like(value) for name, value in self.values.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.values

    @property
    def oracles(self) -> frozenset[Oracle]:
        return self.given

    @property
    def length_scale(self) -> float:
        return 10.0

    @property
    def backend(self) -> str:
        return "dense"

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([value.numel() for value in self.values.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self.values.items(), parts, strict=True)}

    def join(self, tensors: Tensors) -> Tensor:
        return torch.cat([tensors[name].flatten() for name in self.values])

    def masked(self) -> Tensor:
        """J, without the columns of what is unseen."""
        if self.seen is None:
            return self.jacobian
        shown = {name: self.seen.view(-1, *[1] * (v.dim() - 1)).expand(v.shape) for name, v in self.values.items()}
        return self.jacobian * self.join(shown)

    def gradient(self, batch: object) -> Evaluation:
        self.calls.append("gradient")
        residual = self.masked() @ self.join(self.values) - self.offset
        for name, part in self.split(self.masked().T @ residual).items():
            self._buffer[name].copy_(part)
        return Evaluation(float(0.5 * residual @ residual), self._buffer, self.seen, {})

    def residuals(self, batch: object) -> Residuals:
        return (self.masked() @ self.join(self.values) - self.offset,)

    def empty_residuals(self, batch: object) -> Residuals:
        return (torch.empty_like(self.offset),)

    def vjp(self, batch: object, cotangent: Residuals) -> Tensors:
        self.calls.append("vjp")
        return self.split(self.masked().T @ cotangent[0])

    def exact_gauss_newton_diagonal(self, batch: object) -> Tensors:
        self.calls.append("diagonal")
        return self.split(self.masked().square().sum(dim=0))

    def exact_hvp(self, batch: object, tangent: Tensors) -> Tensors:
        self.calls.append("hvp")
        return self.split(self.masked().T @ (self.masked() @ self.join(tangent)))

    def edit_rows(self, edit: SceneEdit) -> None:
        index = self.split(torch.arange(self.jacobian.shape[1]))
        self.jacobian = self.jacobian[:, torch.cat([edit.gather(part).flatten() for part in index.values()])]
        self.values = {name: edit.parameter(name, value) for name, value in self.values.items()}
        self._buffer = {name: torch.zeros_like(value) for name, value in self.values.items()}
