"""A density strategy that does what a test says, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.core.state import Number
from splatopt.density.strategy import DensityStrategy
from train.density_runs import grown


@dataclass(frozen=True)
class TurnsOptions:
    """What a test's strategy does."""

    turns: tuple[str, ...] = ()
    """By step, from the first: add, remove or nothing. Unit: none. Source: a test."""

    count: int = 3
    """Rows an edit. Unit: Gaussians. Source: a test."""


class Turns(DensityStrategy[TurnsOptions]):
    """Adds copies of the first rows, or removes them, as its options say; remembers what it saw."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen = self.remember(Number("seen", 0))
        self.steps: list[tuple[int, int, float | None]] = []
        self.losses: list[float] = []

    def edit(self, step) -> SceneEdit | None:
        self.steps.append((step.progress.step, step.progress.horizon, step.position_rate))
        self.losses.append(step.loss)
        self.seen.value += 1
        rows, count, turns = len(self.objective.parameters["means"]), self.options.count, self.options.turns
        turn = turns[step.progress.step - 1] if step.progress.step <= len(turns) else ""
        place = torch.arange(rows)
        if turn == "all":
            return SceneEdit.keep(place < 0)
        if turn == "far":
            return SceneEdit(place + 1, place < 0)
        if turn in ("misplaced", "misnamed"):
            name, row = ("logit_opacities", rows) if turn == "misplaced" else ("opacity", 0)
            written = Written(torch.tensor([row]), torch.zeros(1))
            return SceneEdit(place, place < 0, {name: written})
        if turn == "odd":
            return self.options  # type: ignore[return-value]
        if turn == "add":
            source = torch.cat([place, place[:count]])
            return SceneEdit(source, torch.arange(rows + count) >= rows)
        return SceneEdit.keep(place >= count) if turn == "remove" else None


def turned(scene, folder, what: Sequence[str], callbacks=(), **changes):
    return grown(scene, "turns", folder, callbacks, own={"turns": tuple(what)}, **changes)
