"""The part of a run's page that shows quality against the number of Gaussians, where the run was pruned."""

from __future__ import annotations

import shlex

from splatopt.report.charts import Mark, Series, line_chart
from splatopt.report.page import chart_card, escape
from splatopt.runs.folder import RunFolder
from splatopt.train.pruning import PruneCurve


def pruning_section(folder: RunFolder) -> str:
    """Return the section, as HTML; empty where the run was not pruned.

    Raises:
        InputError: The file that holds the curve is damaged.
    """
    curve = PruneCurve.read(folder.pruning)
    if curve is None:
        return ""
    charts = []
    held_out = "held-out views" if curve.subset == "test" else "scored views"
    for heading, scored, trained in (("PSNR, dB", "psnr", "train_psnr"), ("SSIM", "ssim", None)):
        series = [_series(curve, held_out, scored, Mark.LINE), _series(curve, "", scored, Mark.DOTS)]
        if trained:
            series.append(_series(curve, "training views", trained, Mark.FAINT))
        title = f"{heading}, against Gaussians"
        charts.append(chart_card(title, line_chart(title, "Gaussians", series)))
    return (
        f'<h2>Pruning</h2>\n<pre>{escape(_command(curve, folder))}</pre>\n<section class="charts">{"".join(charts)}'
        "</section>"
    )


def _series(curve: PruneCurve, label: str, name: str, mark: Mark) -> Series:
    """One score of the rounds that were kept."""
    kept = [one for one in curve.rounds if one.kept]
    return Series(label, [float(one.gaussians) for one in kept], [float(getattr(one, name)) for one in kept], mark)


def _command(curve: PruneCurve, folder: RunFolder) -> str:
    """The command that prunes like this."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in curve.options.items()]
    return shlex.join(["splatopt", "prune", curve.run, *words, f"--out={folder.path}"])
