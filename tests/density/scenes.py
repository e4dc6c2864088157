"""Small scenes for strategies, and the published rules in plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optim.quadratic import Quadratic
from splatopt.core.optimizer import Progress
from splatopt.density.strategy import StepTaken

EXTENT = 10.0
"""That of the quadratic objective."""


def step_taken(step: int, horizon: int = 30_000, rate: float | None = None, loss: float = 0.1) -> StepTaken:
    return StepTaken(Progress(step, horizon), rate, loss)


def scene(rows: int = 40, seed: int = 0, dtype: torch.dtype = torch.float32) -> Quadratic:
    """Gaussians of all sizes and opacities."""
    objective = Quadratic(rows, dtype, seed=seed, gaussians=True)
    generator = torch.Generator().manual_seed(seed + 1)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)

    objective.values["log_scales"] = uniform(math.log(0.02), math.log(2.0), rows, 3)
    objective.values["logit_opacities"] = uniform(-7.0, 3.0, rows)
    return objective


def rotation(quat: list[float]) -> list[list[float]]:
    """R of a quaternion wxyz of any length."""
    w, x, y, z = (entry / math.sqrt(sum(one * one for one in quat)) for entry in quat)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(entry * one for entry, one in zip(row, vector, strict=True)) for row in matrix]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def rows_of(objective: Quadratic) -> list[dict[str, object]]:
    """The scene as a list of Gaussians in Python's numbers."""
    parameters = {name: value.double().tolist() for name, value in objective.parameters.items()}
    return [
        {name: parameters[name][row] for name in parameters} | {"fresh": False, "source": row}
        for row in range(len(parameters["means"]))
    ]
