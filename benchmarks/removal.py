"""How well the predicted cost of removing a Gaussian fits what the loss changes by: `python -m benchmarks.removal RUN`.

Of a run's scene a sample of Gaussians is removed one by one, and the loss over the training views measured each time,
for the squared error and for the run's own loss. The renderer is the run's, with the clamp of α, the skip below 1/255
and the end of rays at work. Prints one row of a Markdown table for each loss.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.scene_edit import SceneEdit
from splatopt.density.removal import removal_costs
from splatopt.raster.losses import Loss, SquaredError
from splatopt.raster.threads import quiet_torch
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.run import Run, open_run


@dataclass(frozen=True)
class Scatter:
    """Predictions beside measurements, of the same rows.

    Attributes:
        predicted: ΔL as :func:`removal_costs` has it, (K,).
        measured: What the loss changed by, (K,).
    """

    predicted: Tensor
    measured: Tensor

    @property
    def rank_correlation(self) -> float:
        """Spearman's."""
        ranks = [values.argsort().argsort().double() for values in (self.predicted, self.measured)]
        return float(torch.corrcoef(torch.stack(ranks))[0, 1])

    @property
    def correlation(self) -> float:
        """Pearson's."""
        return float(torch.corrcoef(torch.stack([self.predicted, self.measured]))[0, 1])

    @property
    def relative_errors(self) -> Tensor:
        """|predicted - measured| / |measured|, at 10, 50 and 90 in a hundred rows, (3,)."""
        errors = (self.predicted - self.measured).abs() / self.measured.abs()
        return errors.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=errors.dtype))

    @property
    def ratio(self) -> float:
        """The median of predicted / measured."""
        return float((self.predicted / self.measured).median())

    @property
    def same_sign(self) -> float:
        """Share of the rows where both are above zero, or neither."""
        return float(((self.predicted > 0) == (self.measured > 0)).double().mean())

    def row(self, name: str) -> str:
        """Return a row of the table."""
        low, middle, high = (f"{100 * value:.2g} %" for value in self.relative_errors.tolist())
        return (
            f"| {name} | {self.rank_correlation:.4f} | {self.correlation:.4f} | {self.ratio:.3f} | "
            f"{low} / {middle} / {high} | {100 * self.same_sign:.1f} % |"
        )


def measure(run: Run, loss: Loss | None, rows: int, seed: int) -> Scatter:
    """Remove ``rows`` Gaussians that are seen one by one; ``loss`` is the run's where None."""
    capture = run.open_capture()
    objective = run.objective(capture)
    objective.loss = loss or objective.loss
    batches = [(view,) for view in capture.split.train]
    costs = removal_costs(objective, batches)
    seen = (costs != 0).nonzero().squeeze(1)
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))
    chosen = seen[order[:rows]].sort().values
    whole = _mean_loss(objective, batches)
    changes = []
    for row in chosen.tolist():
        without = run.objective(capture)
        without.loss = objective.loss
        without.edit_rows(SceneEdit.keep(torch.arange(len(costs)) != row))
        changes.append(_mean_loss(without, batches) - whole)
    return Scatter(costs[chosen], torch.tensor(changes, dtype=torch.float64))


def _mean_loss(objective: PhotometricObjective, batches: list[tuple[int]]) -> float:
    return sum(objective.value(batch) for batch in batches) / len(batches)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--rows", type=int, default=200, help="Gaussians that are removed")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    asked = parser.parse_args()
    run = open_run(asked.run)
    print(f"{len(run.trained):,} Gaussians, {run.machine.renderer.name} renderer")
    print("| loss | rank correlation | correlation | predicted / measured, median | relative error | same sign |")
    print("|---|---|---|---|---|---|")
    for name, loss in (("squared error", SquaredError()), (run.config.scene.loss, None)):
        with quiet_torch(run.machine.renderer):
            print(measure(run, loss, asked.rows, asked.seed).row(name), flush=True)


if __name__ == "__main__":
    main()
