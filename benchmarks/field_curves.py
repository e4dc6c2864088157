"""Curves of finished fits, and the tables that ``benchmarks.fields`` makes of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.runs.folder import read_json
from splatopt.runs.records import read_metrics

FIELDS = ("gaussian", "sine", "wavelet", "sinc", "relu-pe", "relu")
LEVELS = {"psnr": (30.0, 35.0), "iou": (0.9, 0.95)}
EPOCHS = (25, 50, 200)


@dataclass(frozen=True)
class Curve:
    """Scores of one run against epochs and seconds.

    Attributes:
        cell: Field, optimizer and rate, which the seeds share.
        seed: Of the run.
        score: What it is judged by.
        epochs: At each score.
        seconds: At each score.
        values: The scores.
    """

    cell: tuple[str, str, str, float | None]
    seed: int
    score: str
    epochs: tuple[float, ...]
    seconds: tuple[float, ...]
    values: tuple[float, ...]

    def late_mean(self, until: float | None = None) -> float:
        """Return the mean of the scores in the last quarter of the run, or of its first ``until`` epochs."""
        until = self.epochs[-1] if until is None else until
        placed = zip(self.epochs, self.values, strict=True)
        return statistics.mean(value for place, value in placed if 0.75 * until <= place <= until)

    def at(self, epoch: float) -> float | None:
        """Return the score after ``epoch`` epochs; None where the run was shorter."""
        found = [value for place, value in zip(self.epochs, self.values, strict=True) if place <= epoch + 1e-6]
        return found[-1] if found and self.epochs[-1] >= epoch - 1e-6 else None

    def reaches(self, level: float, *, stays: bool) -> int | None:
        """Return the index of the first score at ``level``; with ``stays``, after which none is below it."""
        above = [value >= level for value in self.values]
        if stays:
            below = [index for index, one in enumerate(above) if not one]
            index = below[-1] + 1 if below else 0
            return index if index < len(above) else None
        return above.index(True) if any(above) else None


def read_curve(folder: Path) -> Curve:
    """Return the curve of the finished run in ``folder``."""
    config, end = read_json(folder / "config.json"), read_json(folder / "eval.json")
    score = next(name for name in LEVELS if name in end)
    # A sweep that is on its way to a whole run has more lines than its end.
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] <= end["steps"]]
    scored = [(line["epoch"], line["seconds"], line[f"score_{score}"]) for line in lines if f"score_{score}" in line]
    scored.append((lines[-1]["epoch"], end["seconds"], end[score]))
    epochs, seconds, values = zip(*scored, strict=True)
    cell = (Path(config["target"]).stem, config["field"], config["optimizer"], config["optimizer_options"]["rate"])
    return Curve(cell, config["seed"], score, epochs, seconds, values)


def read_curves(out: Path) -> list[Curve]:
    """Return the curves of all finished runs below ``out``."""
    folders = sorted(path.parent for path in out.glob("*/eval.json") if not path.parent.name.startswith("start-"))
    return [read_curve(folder) for folder in folders if any(name in read_json(folder / "eval.json") for name in LEVELS)]


def table_of(score: str, curves: Sequence[Curve]) -> str:
    """Return the table, in Markdown, of the runs that are judged by ``score``; empty where there are none."""
    if not curves:
        return ""
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.cell, []).append(curve)
    head = [
        "target",
        "field",
        "optimizer",
        "rate",
        "seeds",
        *(f"after {epoch} epochs" for epoch in EPOCHS),
        "at the end",
    ]
    head += [f"{verb} {level:g}" for level in LEVELS[score] for verb in ("first reaches", "stays above")]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    order = sorted(groups, key=lambda cell: (cell[0], FIELDS.index(cell[1]), cell[2], cell[3] or 0))
    rows += [_row(score, cell, groups[cell]) for cell in order]
    return "\n".join(rows)


def _row(score: str, cell: tuple[str, str, str, float | None], curves: Sequence[Curve]) -> str:
    form = ".2f" if score == "psnr" else ".4f"
    row = [*cell[:3], f"{cell[3]:g}" if cell[3] else "own", str(len(curves))]
    row += [mean_sd([curve.at(epoch) for curve in curves], form) for epoch in EPOCHS]
    row.append(mean_sd([curve.values[-1] for curve in curves], form))
    row += [_reached(curves, level, stays=stays) for level in LEVELS[score] for stays in (False, True)]
    return f"| {' | '.join(row)} |"


def _reached(curves: Sequence[Curve], level: float, *, stays: bool) -> str:
    """Epochs and seconds until a level, over the seeds that came there."""
    places = [(curve, curve.reaches(level, stays=stays)) for curve in curves]
    found = [(curve.epochs[index], curve.seconds[index]) for curve, index in places if index is not None]
    if not found:
        return "never"
    epochs, seconds = zip(*found, strict=True)
    some = "" if len(found) == len(curves) else f" ({len(found)} of {len(curves)})"
    return f"{mean_sd(epochs, '.0f')}, {mean_sd(seconds, '.0f')} s{some}"


def mean_sd(values: Iterable[float | None], form: str) -> str:
    """Return mean ± standard deviation of the values that are known, each written in ``form``."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):{form}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{form}}{spread}"
