"""A first-order optimizer in one short file, run beside Adam on a synthetic capture.

Run it with ``python examples/first_order.py``; it takes a few seconds.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import splatopt
from splatopt.core.state import PerParameter
from splatopt.data import make_capture


@dataclass(frozen=True)
class LionOptions:
    """Lion (Chen et al. 2023): the sign of a momentum."""

    rate: float = 1e-2
    """Step of every parameter but the means. Unit: per step. Source: tried out."""

    means_rate: float = 1e-4
    """Step of the means. Unit: scene extents per step. Source: tried out."""

    beta1: float = 0.9
    """Share of the momentum in the direction. Unit: fraction. Source: Chen et al. 2023."""

    beta2: float = 0.99
    """Decay of the momentum. Unit: fraction. Source: Chen et al. 2023."""


class Lion(splatopt.Optimizer):
    """θ ← θ - rate · sign(β₁ m + (1-β₁) g), then m ← β₂ m + (1-β₂) g."""

    needs = frozenset({splatopt.Oracle.GRADIENT})

    def __init__(self, objective: splatopt.Objective, options: LionOptions, generator: torch.Generator | None) -> None:
        """Start without momentum."""
        super().__init__(objective, options, generator)
        self.momentum = self.remember(PerParameter("momentum", objective.parameters, degree=1))

    @torch.no_grad()
    def step(self, batch: Any, progress: splatopt.Progress) -> splatopt.Evaluation:
        """Move every parameter once; the rates fall linearly to zero at the end."""
        evaluation = self.objective.gradient(batch)
        for name, parameter in self.objective.parameters.items():
            rate = self.options.means_rate * self.objective.length_scale if name == "means" else self.options.rate
            gradient, momentum = evaluation.gradient[name], self.momentum[name]
            direction = momentum.lerp(gradient, 1 - self.options.beta1).sign_()
            parameter.sub_(direction, alpha=rate * (1 - progress.fraction))
            momentum.lerp_(gradient, 1 - self.options.beta2)
        return evaluation


def main() -> None:
    splatopt.register("lion", Lion, LionOptions, help="sign of a momentum")
    with tempfile.TemporaryDirectory() as folder:
        capture = make_capture(Path(folder) / "capture", views=16, width=96, height=72, points=1000)
        for name in ("adam", "lion"):
            result = splatopt.train(capture, optimizer=name, steps=150, out=Path(folder) / name, callbacks=[])
            print(f"{name}: {result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
