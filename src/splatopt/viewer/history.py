"""Curves of a run in bounded memory: means over spans of steps that double when there are too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from splatopt.core.typed import Json

_MAX_POINTS = 400


@dataclass
class _Span:
    """Sums over some steps."""

    step: int
    loss: float
    psnr: float
    count: int
    gaussians: int


@dataclass
class History:
    """What a run was like, for its curves.

    Attributes:
        width: Steps of a point.
        scores: Step and PSNR of the held-out views, dB, each time that they were scored.
        added: Gaussians that were added in all.
        removed: Gaussians that were removed in all.
    """

    width: int = 1
    scores: list[tuple[int, float]] = field(default_factory=list)
    added: int = 0
    removed: int = 0
    _spans: list[_Span] = field(default_factory=list)

    def read(self, metrics: Sequence[Mapping[str, Json]], edits: Sequence[Mapping[str, Json]]) -> None:
        """Note what a run's files tell.

        Args:
            metrics: Lines of ``metrics.jsonl``.
            edits: Lines of ``density.jsonl``.
        """
        for line in metrics:
            if {"step", "loss", "psnr", "gaussians"} <= line.keys():
                self.add(int(line["step"]), float(line["loss"]), float(line["psnr"]), int(line["gaussians"]))
            if "test_psnr" in line:
                self.scored(int(line["step"]), float(line["test_psnr"]))
        for edit in edits:
            self.edited(int(edit["added"]), int(edit["removed"]))

    def add(self, step: int, loss: float, psnr: float, gaussians: int) -> None:
        """Note a step, or the means since the one before; a step from before those that are known drops these."""
        spans = self._spans
        while spans and spans[-1].step >= step:
            spans.pop()
        if spans and spans[-1].count < self.width:
            last = spans[-1]
            last.step, last.gaussians = step, gaussians
            last.loss, last.psnr, last.count = last.loss + loss, last.psnr + psnr, last.count + 1
            return
        spans.append(_Span(step, loss, psnr, 1, gaussians))
        if len(spans) > _MAX_POINTS:
            self._halve()

    def _halve(self) -> None:
        """Join spans in pairs."""
        pairs = zip(self._spans[::2], self._spans[1::2], strict=False)
        last = self._spans[-1:] if len(self._spans) % 2 else []
        self._spans = [
            _Span(b.step, a.loss + b.loss, a.psnr + b.psnr, a.count + b.count, b.gaussians) for a, b in pairs
        ] + last
        self.width *= 2

    def scored(self, step: int, psnr: float) -> None:
        """Note a score of the held-out views."""
        self.scores = [*(one for one in self.scores if one[0] < step), (step, psnr)]

    def edited(self, added: int, removed: int) -> None:
        """Note an edit of the scene's rows."""
        self.added += added
        self.removed += removed

    @property
    def curves(self) -> dict[str, tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
        """Steps and values by name: loss, psnr, gaussians and held_out; those of which there is nothing are empty."""
        spans = list(self._spans)
        steps = np.array([span.step for span in spans], dtype=np.float64)
        values = {
            "loss": [span.loss / span.count for span in spans],
            "psnr": [span.psnr / span.count for span in spans],
            "gaussians": [span.gaussians for span in spans],
        }
        scores = np.array(self.scores, dtype=np.float64).reshape(-1, 2)
        curves = {name: (steps, np.array(some, dtype=np.float64)) for name, some in values.items()}
        return curves | {"held_out": (scores[:, 0].copy(), scores[:, 1].copy())}
