"""How good one random probe of the Gauss-Newton diagonal is, on a real scene: fox after some steps of Adam, one view.

The residuals are those of L1, for which the exact pass leaves nothing out. Entries with a curvature of 0 (Gaussians
that the view does not see) are left out. Parameter probes are drawn twice: as they are, and in units u in which the
types have the rates of 3DGS, (z/u) ⊙ Jᵀ(J(u ⊙ z)), which has the same mean. Prints Markdown::

    python -m benchmarks.estimators --data ../shared/data
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatopt.core.objective import DiagonalEstimator, Objective, Oracle, Tensors
from splatopt.core.optimizer import Progress
from splatopt.curvature.estimators import Exact, ParameterProbes, ResidualProbes, rademacher
from splatopt.data import CaptureOptions, load_capture
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.raster.losses import L1Ssim
from splatopt.raster.render import make_renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.initialization import start_from_points
from splatopt.scene.photometric import PhotometricObjective

COUNTS = (1, 4, 16, 64, 256)
"""Numbers of probes whose mean is compared with the exact diagonal."""


@dataclass(frozen=True)
class ScaledParameterProbes:
    """One parameter probe (z/u) ⊙ Jᵀ(J(u ⊙ z)) for one view.

    Attributes:
        units: u, one for each type.
    """

    units: Mapping[str, float]
    needs: ClassVar[frozenset[Oracle]] = ParameterProbes.needs

    def estimate(self, objective: Objective, batch: Any, generator: torch.Generator | None) -> Tensors:
        """Return the estimate."""
        assert generator is not None
        signs = {name: rademacher(value, generator) for name, value in objective.parameters.items()}
        forward = objective.jvp(batch, {name: self.units[name] * part for name, part in signs.items()})
        vjp_value = objective.vjp(batch, forward)
        return {name: part.mul_(vjp_value[name]).div_(self.units[name]) for name, part in signs.items()}


@dataclass(frozen=True)
class Quality:
    """One estimator on one parameter, against the exact diagonal D; medians are over its entries with D > 0.

    Attributes:
        deviation: Median of the standard deviation of one probe over D.
        negative: Share of negative entries in one probe.
        errors: Median of |mean of m probes - D| / D, for m of ``COUNTS``.
    """

    deviation: float
    negative: float
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Exponent p of error ∝ m^p between the first and the last number of probes; -0.5 is the theory."""
        return math.log(self.errors[-1] / self.errors[0]) / math.log(COUNTS[-1] / COUNTS[0])


def trained_fox(data: Path, steps: int, max_side: int | None, points: int | None = None) -> PhotometricObjective:
    """Train fox from its points, or from so many random ones of them, with Adam, one view a step in turn."""
    capture = load_capture(data / "fox", CaptureOptions(max_side=max_side))
    assert capture.points is not None
    order = torch.randperm(len(capture.points.positions), generator=torch.Generator().manual_seed(0))[:points]
    objective = PhotometricObjective(
        start_from_points(capture.points.positions[order], capture.points.colors[order], sh_degree=3),
        capture.cameras,
        capture.images,
        make_renderer("native"),
        RenderOptions(capture.background),
        loss=L1Ssim(0.0),
        length_scale=capture.extent,
    )
    adam = Adam(objective, AdamOptions())
    for step in range(steps):
        adam.step([capture.split.train[step % len(capture.split.train)]], Progress(step, steps))
    return objective


def qualities(
    objective: PhotometricObjective,
    view: int,
    estimator: DiagonalEstimator,
    exact: Tensors,
    generator: torch.Generator,
) -> Iterator[tuple[str, Quality]]:
    """Yield each parameter's name and how its probes do."""
    seen = {name: part > 0 for name, part in exact.items()}
    sums = {name: part.new_zeros(int(seen[name].sum()), dtype=torch.float64) for name, part in exact.items()}
    squares = {name: torch.zeros_like(part) for name, part in sums.items()}
    negative = dict.fromkeys(exact, 0.0)
    errors: dict[str, list[float]] = {name: [] for name in exact}
    for done in range(1, COUNTS[-1] + 1):
        probe = objective.gauss_newton_diagonal([view], estimator, generator)
        for name, part in probe.items():
            ratio = part[seen[name]].double() / exact[name][seen[name]].double()
            sums[name] += ratio
            squares[name] += ratio.square()
            negative[name] += float((ratio < 0).double().mean()) / COUNTS[-1]
            if done in COUNTS:
                errors[name].append(float((sums[name] / done - 1).abs().median()))
    for name in exact:
        yield name, Quality(_deviation(sums[name], squares[name]), negative[name], tuple(errors[name]))


def _deviation(total: Tensor, squares: Tensor) -> float:
    count = COUNTS[-1]
    # What one pixel alone sees is the same in every probe, and rounds to a variance below 0.
    return float(((squares - total.square() / count) / (count - 1)).clamp_min(0).sqrt().median())


def main() -> int:
    """Train, probe, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with fox")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam before")
    parser.add_argument("--max-side", type=int, help="longest side of the photographs, pixels; their own by default")
    parser.add_argument("--view", type=int, default=10, help="the view that is probed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    objective = trained_fox(arguments.data, arguments.steps, arguments.max_side)
    exact = {n: part.clone() for n, part in objective.gauss_newton_diagonal([arguments.view], Exact()).items()}
    print("| parameter | entries | probe | sd of one | negative | " + " | ".join(f"m = {m}" for m in COUNTS), end="")
    print(" | slope |\n" + "|---" * (len(COUNTS) + 6) + "|")
    units = AdamOptions().rates(objective.length_scale, Progress(0, 1))
    kinds = {"residual": ResidualProbes(), "parameter": ParameterProbes(), "in units": ScaledParameterProbes(units)}
    for label, kind in kinds.items():
        for name, row in qualities(objective, arguments.view, kind, exact, torch.Generator().manual_seed(0)):
            cells = [f"`{name}`", f"{int((exact[name] > 0).sum()):,}", label, f"{row.deviation:.3g}"]
            cells += [f"{100 * row.negative:.0f} %", *(f"{error:.2g}" for error in row.errors), f"{row.slope:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
