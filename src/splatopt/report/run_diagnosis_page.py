"""The page and the files about a run's sharpness, spectra and steps, see ``splatopt.report.run_diagnosis``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from splatopt.core.checkpoint import replace_file
from splatopt.core.files import make_folder
from splatopt.report.charts import Mark, Series, chart_file, line_chart
from splatopt.report.diagnosis import check_free, finite_values
from splatopt.report.page import chart_card, escape, two_columns, write_page
from splatopt.report.run_diagnosis import PointDiagnosis, RunDiagnosisPlan
from splatopt.runs.folder import write_json

_MARKS = (Mark.LINE, Mark.SECOND, Mark.THIRD, Mark.FOURTH, Mark.FIFTH)
_NOTHING = "–"
_PLACES = range(len(_MARKS))


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn into the page and as a file.

    Attributes:
        title: What the y axis shows.
        x_label: Name and unit of the x axis.
        series: What is drawn.
    """

    title: str
    x_label: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Diagnosed:
    """What was looked at.

    Attributes:
        run: The run's name.
        matrix: What A is.
        batch: In what it was looked at.
        plan: How closely.
        points: What was found, by steps.
    """

    run: str
    matrix: str
    batch: str
    plan: RunDiagnosisPlan
    points: Sequence[PointDiagnosis]


def write_run_diagnosis(folder: Path, about: Diagnosed) -> Path:
    """Write ``diagnosis.json``, ``diagnosis.html`` and a picture for each chart; returns the page.

    Args:
        folder: Made if absent; must hold no diagnosis.
        about: What was looked at, and found.

    Raises:
        InputError: The folder holds one already.
    """
    check_free(folder)
    make_folder(folder)
    points = [finite_values(one.to_json()) for one in about.points]
    head = {"run": about.run, "matrix": about.matrix, "batch": about.batch, "plan": asdict(about.plan)}
    write_json(folder / "diagnosis.json", {**head, "points": points})
    charts = charts_of(about.points)
    for name, chart in charts.items():
        replace_file(folder / f"{name}.svg", chart_file(chart.title, chart.x_label, chart.series).encode())
    cards = [chart_card(one.title, line_chart(one.title, one.x_label, one.series)) for one in charts.values()]
    tables = [
        f"<h2>Step {one.step:,}, {escape(one.optimizer)}</h2>{two_columns(_known(summary_of(one)))}"
        for one in about.points
    ]
    sections = [
        f"<h1>Around the steps of {escape(about.run)}</h1>",
        f'<p class="lead">A is {escape(about.matrix)}, of {about.points[-1].parameters:,} parameters, in '
        f"{escape(about.batch)}; d is the step that the optimizer would take there. A reach of 1 ends where the step's "
        "line has its minimum; from 2 on the quadratic model rises.</p>",
        f'<section class="charts">{"".join(cards)}</section>',
        *tables,
    ]
    return write_page(folder / "diagnosis.html", f"Around the steps of {about.run}", sections)


def summary_of(one: PointDiagnosis) -> dict[str, str]:
    """Return a point's measures by name, as they are shown."""

    def number(value: float | None) -> str:
        return _NOTHING if value is None or math.isnan(value) else f"{value:.3g}"

    return {
        "step": f"{one.step:,}",
        "loss": number(one.loss),
        "sharpness": number(one.sharpness),
        f"share of top {len(one.shares)}": f"{one.shares[-1]:.1%} ({one.found} known to 1 %)",
        "reach": number(one.reach),
        "reach, sharpest": number(one.sharpest_reach),
        "κ": number(one.overlap),
        "its own κ": number(one.kept_overlap),
    }


def _known(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text != _NOTHING}


# ---------------------------------------------------------------------- pictures


def charts_of(found: Sequence[PointDiagnosis]) -> dict[str, Chart]:
    """Return the charts of a diagnosis by the names of their files."""
    shown = found if len(found) <= len(_MARKS) else [found[i * (len(found) - 1) // (len(_MARKS) - 1)] for i in _PLACES]
    steps = [float(one.step) for one in found]
    spectra = [series for one, mark in zip(shown, _MARKS, strict=False) for series in _spectrum_series(one, mark)]
    if any(one.mark is Mark.FAINT for one in spectra):
        spectra.append(Series("negative ones, of at most -λ", [], [], Mark.FAINT))
    shares = [
        Series(f"step {one.step:,}", range(1, len(one.shares) + 1), one.shares, mark)
        for one, mark in zip(shown, _MARKS, strict=False)
    ]
    sharpness = [_log10(one.sharpness) for one in found]
    reaches = [
        Series("along the step", steps, [_log10(one.reach) for one in found]),
        Series("along the sharpest direction", steps, [_log10(one.sharpest_reach) for one in found], Mark.SECOND),
        Series("2", [steps[0], steps[-1]], [_log10(2.0)] * 2, Mark.FAINT),
    ]
    charts = {
        "spectrum": Chart("log₁₀ of the number of eigenvalues of at least λ", "log₁₀ λ", spectra),
        "shares": Chart("Share of the gradient in the top eigenspace", "eigenvectors", shares),
        "sharpness": Chart("log₁₀ of the sharpness λ₁", "step", [Series("", steps, sharpness)]),
        "reach": Chart("log₁₀ of curvature over slope, dᵀA d / -gᵀd", "step", reaches),
    }
    if any(one.overlap is not None for one in found):
        of_step = Series("of the step", steps, [one.overlap or math.nan for one in found])
        own = Series("as the optimizer keeps it", steps, [one.kept_overlap or math.nan for one in found], Mark.SECOND)
        charts["overlap"] = Chart("Overlap κ", "step", [of_step, own])
    return charts


def _spectrum_series(one: PointDiagnosis, mark: Mark) -> list[Series]:
    """N(λ), the number of eigenvalues of at least λ, and where there are some, of at most -λ."""
    values = torch.cat([pairs.values for pairs in one.spectrum])
    weights = torch.cat([pairs.weights for pairs in one.spectrum]) * (one.parameters / len(one.spectrum))
    noise = 1e-6 * values.abs().max()
    found = []
    for sign, kind in ((1, mark), (-1, Mark.FAINT)):
        chosen = sign * values > noise
        sizes, order = (sign * values[chosen]).sort(descending=True)
        if len(sizes):
            counts = weights[chosen][order].cumsum(dim=0).clamp_min(1)
            label = f"step {one.step:,}" if sign > 0 else ""
            found.append(Series(label, sizes.log10().tolist(), counts.log10().tolist(), kind))
    return found


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
