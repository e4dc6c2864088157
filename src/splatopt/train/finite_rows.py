"""One row (Gaussian) whose numbers break down does not end a run: it begins anew, and all others go on.

What a row's gradient or curvature has of NaN or infinity reaches no optimizer, since some weigh all rows together: that
row counts as not seen in that step. After the step every such row, and every row with such a parameter, becomes a faint
copy of the nearest sound one, with an empty optimizer state; where a density strategy is at work it is removed. What
the optimizer keeps is looked at every twentieth step. Where more rows break down at once than a few, it is the run that
broke down, and the run goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from splatopt.core.combining import take_apart
from splatopt.core.objective import Batch, Objective, Tensors
from splatopt.core.optimizer import Optimizer
from splatopt.core.scene_edit import SceneEdit, Written, apply_edit
from splatopt.core.wrapped import WrappedObjective
from splatopt.runs.finite_checks import non_finite
from splatopt.scene.photometric import PhotometricObjective

MAX_SHARE = 0.01
"""Of more rows than this share, at least one, that break down in one step, it is said that the run broke down."""

MAX_STEPS = 100
"""Of rows that break down in each of so many steps, one after the other, likewise."""

STATE_EVERY = 20
"""Steps from one look at what the optimizer keeps to the next."""

FAINT = math.log(0.01 / 0.99)
"""Logit opacity of a row that begins anew, at most: 3DGS' own after a reset."""

_BECOMES = {
    True: "begins anew as a faint copy of its nearest neighbour, and how many do is in metrics.jsonl (reset_rows)",
    False: "is removed, and how many are is in metrics.jsonl (broken_rows)",
}
"""By whether rows begin anew."""

_NOUNS = {"gradient": "gradient of", "vjp": "product with", "gauss_newton_product": "product with"}
"""What a message calls the tensors that answer a question; those of all others are curvature."""


def broken_rows(tensors: Tensors) -> Tensor | None:
    """Return which rows of any of ``tensors`` hold a NaN or infinity, (N,) bool; None for none, by a sum of each."""
    sums = torch.stack([tensor.sum() for tensor in tensors.values()]).tolist() if tensors else []
    found: Tensor | None = None
    for tensor, total in zip(tensors.values(), sums, strict=True):
        if math.isfinite(total) or not tensor.numel():
            continue
        rows = (~torch.isfinite(tensor.reshape(len(tensor), -1))).any(dim=1)
        if rows.any():
            found = rows if found is None else found | rows
    return found


def are_too_many(rows: Tensor) -> bool:
    """Whether so many rows are broken that it is the run."""
    return int(rows.count_nonzero()) > max(1, MAX_SHARE * len(rows))


class FiniteRows(WrappedObjective):
    """The inner objective, whose answers hold zeros for rows that broke down; which ones it notes.

    Attributes:
        broken: Rows that broke down since the last :meth:`forget`; None for none.
        problem: What broke down as a whole since then, as the beginning of a sentence.
    """

    def __init__(self, inner: Objective) -> None:
        """Look at the answers of ``inner``."""
        super().__init__(inner)
        self.forget()

    def forget(self) -> None:
        """Begin with nothing noted."""
        self.broken: Tensor | None = None
        self.problem: str | None = None

    def _make_sound(self, what: str, tensors: Tensors, masks: Sequence[Tensor]) -> None:
        rows = broken_rows(tensors)
        if rows is None:
            return
        if are_too_many(rows):
            self.problem = self.problem or non_finite(what, tensors)
            return
        for part in (*tensors.values(), *masks):
            part[rows] = 0
        self.broken = rows if self.broken is None else self.broken | rows

    @torch.no_grad()
    def answer(self, name: str, batch: Batch, *arguments: object) -> object:
        """Return the inner one's, without the rows that broke down."""
        found = getattr(self.inner, name)(batch, *arguments)
        summands = take_apart(self.questions[name], found)
        masks = list(summands.masks.values())
        tensors = {entry or field: tensor for (field, entry), tensor in summands.tensors.items()}
        self._make_sound(_NOUNS.get(name, "curvature of"), tensors, masks)
        return found


class RowResets:
    """Lets rows begin anew or has them removed, and counts them.

    Attributes:
        total: Rows so far.
        steps: Steps in a row, up to now, with any.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Begin with none; ``tell`` takes the sentence of the first."""
        self.total = self.steps = 0
        self._tell = tell

    def to_json(self) -> dict[str, int]:
        """Return the counts as a checkpoint holds them."""
        return {"total": self.total, "steps": self.steps}

    def load(self, counts: dict[str, int] | None) -> None:
        """Go on from ``counts``; older checkpoints have none."""
        self.total, self.steps = (counts["total"], counts["steps"]) if counts else (0, 0)

    @torch.no_grad()
    def reset_broken(
        self,
        objective: PhotometricObjective,
        optimizer: Optimizer,
        noted: FiniteRows,
        step: int,
        remove: Callable[[Tensor], None] | None = None,
    ) -> tuple[int, str | None]:
        """Let the rows that broke down in a step begin anew, or remove them.

        Args:
            objective: Whose rows.
            optimizer: Follows.
            noted: What broke down of the objective's answers.
            step: Steps done, this one included.
            remove: Removes rows, (N,) bool; they begin anew when None.

        Returns:
            How many rows, and what broke down as a whole, as the beginning of a sentence.
        """
        looked: dict[str, Tensors] = {"parameter": objective.parameters}
        if step % STATE_EVERY == 0:
            looked["state"] = _by_row(optimizer, len(objective.cloud))
        broken = {what: rows for what, tensors in looked.items() if (rows := broken_rows(tensors)) is not None}
        if "parameter" in broken and are_too_many(broken["parameter"]):
            return 0, f"{non_finite('parameter', objective.parameters)} after step {step}"
        if "state" in broken and are_too_many(broken["state"]):
            del broken["state"]  # either it is meant so, or the parameters tell with the next step
        if noted.broken is not None:
            broken["gradient"] = noted.broken
        if not broken:
            self.steps = 0
            return 0, None
        rows = torch.stack(list(broken.values())).any(dim=0)
        count = int(rows.count_nonzero())
        where = f"the {' and the '.join(broken)} of {count} of {len(rows):,} Gaussians"
        if are_too_many(rows) or count == len(rows):
            return 0, f"{where} became NaN or infinite in step {step}"
        self.steps += 1
        if self.steps > MAX_STEPS:
            return 0, f"Gaussians became NaN or infinite in {self.steps} steps, one after the other, up to step {step}"
        if not self.total:
            self._tell(f"{where} became NaN or infinite in step {step}; such a Gaussian {_BECOMES[remove is None]}")
        self.total += count
        if remove is None:
            reinitialize_rows(objective, optimizer, rows)
        else:
            remove(rows)
        return count, None


def reinitialize_rows(objective: PhotometricObjective, optimizer: Optimizer, rows: Tensor) -> None:
    """Make each of ``rows`` (N,) a faint copy of the nearest other one, or of the next where it has no place."""
    means = objective.parameters["means"]
    finite = (~rows).nonzero().squeeze(1)
    source = torch.arange(len(rows), device=rows.device)
    for row in rows.nonzero().squeeze(1).tolist():
        if bool(torch.isfinite(means[row]).all()):
            nearest = (means[finite].double() - means[row].double()).square().sum(dim=1).argmin()
        else:
            nearest = torch.searchsorted(finite, row) % len(finite)
        source[row] = finite[nearest]
    broken = rows.nonzero().squeeze(1)
    faint = objective.parameters["logit_opacities"][source[broken]].clamp(max=FAINT)
    apply_edit(SceneEdit(source, rows, {"logit_opacities": Written(broken, faint)}), objective, optimizer)


def _by_row(optimizer: Optimizer, count: int) -> Tensors:
    """What an optimizer keeps of each row."""
    return {
        name: value
        for name, value in optimizer.state().tensors.items()
        if value.is_floating_point() and value.dim() and len(value) == count
    }
