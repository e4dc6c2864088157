"""One page about one fit: numbers, curves and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from splatopt.core.optimizer import option_prefix
from splatopt.core.version import __version__
from splatopt.fit.config import FitConfig
from splatopt.fit.options import guess_task
from splatopt.fit.results import ResultPicture
from splatopt.optim.field_optimizers import field_options
from splatopt.report.charts import Mark, Series, line_chart
from splatopt.report.page import (
    chart_card,
    escape,
    is_number,
    number_card,
    pairs,
    scores_before,
    two_columns,
    write_page,
)
from splatopt.report.pictures import data_uri
from splatopt.report.scene_page import DIFFERENCE_GAIN
from splatopt.runs.folder import FIELD_FORMAT, RunFolder
from splatopt.runs.records import read_evaluation, read_metrics
from splatopt.runs.unread import UnreadOptions

_LABELS = {"psnr": ("PSNR", ".2f", "dB, higher is better"), "ssim": ("SSIM", ".3f", "1 is equality")}
_LABELS["iou"] = ("IoU", ".4f", "1 is equality")


def write_field_report(run_folder: Path, pictures: Sequence[ResultPicture] = ()) -> Path:
    """Write ``report.html`` into the folder of a fit, from the files that it left there.

    Args:
        run_folder: Folder of a fit: config.json, metrics.jsonl, eval.json.
        pictures: What to show beside what it should be.

    Returns:
        Path of the page.

    Raises:
        InputError: The folder is not one of a fit.
    """
    folder = RunFolder(run_folder, FIELD_FORMAT)
    config = FitConfig.from_json(folder.read_settings(), str(folder.config))
    scores, lines = read_evaluation(folder.evaluation), read_metrics(folder.metrics)
    heading = (
        f"{Path(config.data.target).name} as a {config.network.field} field, fitted with {config.schedule.optimizer}"
    )
    sections = [
        f"<h1>{escape(heading)}</h1>",
        _headline(scores),
        _curves(lines, scores),
        _gallery(pictures),
        f"<h2>Command</h2>\n<pre>{escape(fit_command(config, run_folder))}</pre>",
        f"<h2>Versions</h2>{two_columns({'splatopt': __version__, 'PyTorch': torch.__version__})}",
    ]
    return write_page(run_folder / "report.html", heading, sections)


def fit_command(config: FitConfig, run_folder: Path) -> str:
    """Return the command that makes a fit like this one: every option that is not what would be chosen anyway."""
    schedule, target = config.schedule, config.data.target
    words = ["splatopt", "fit", target]
    shown = {"field": config.network.field, "optimizer": schedule.optimizer}
    unread = schedule.optimizer_options if isinstance(schedule.optimizer_options, UnreadOptions) else None
    usual = FitConfig.of(target, task=config.data.task, optimizer_options=unread, **shown)
    defaults = usual.resolved().to_json() if Path(target).exists() else usual.to_json()
    if config.data.task is guess_task(Path(target)):
        defaults["task"] = config.data.task.value
    values = config.to_json()
    for name, value in {**shown, **values}.items():
        if name in ("target", "out", "optimizer_options", "plugins"):
            continue
        if value is not None and (name in shown or value != defaults[name]):
            words += [f"--{name.replace('_', '-')}", *_words(value)]
    words += [word for one in config.processes.plugins for word in ("--plugin", str(one))]
    if unread is not None:
        for name, value in unread.values.items():
            words += [f"--{schedule.optimizer}.{name.replace('_', '-')}", *_words(value)]
    elif schedule.optimizer_options is not None:
        plain = field_options(schedule.optimizer, config.network.field)
        for item in fields(schedule.optimizer_options):
            value = getattr(schedule.optimizer_options, item.name)
            if value != getattr(plain, item.name):
                flag = f"--{option_prefix(config.schedule.optimizer)}.{item.name.replace('_', '-')}"
                words += [flag, *_words(value)]
    return shlex.join([*words, "--out", str(run_folder)])


def _words(value: object) -> list[str]:
    """A setting as it is typed."""
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _headline(scores: Mapping[str, object]) -> str:
    before = scores_before(scores)
    cards = []
    for name, (label, form, note) in _LABELS.items():
        first, last = before.get(name), scores.get(name)
        if isinstance(last, float):
            start = f"{first:{form}} → " if isinstance(first, float) else ""
            cards.append(number_card(label, f"{start}{last:{form}}", note))
    known = [scores.get(name) for name in ("steps", "seconds")]
    steps, seconds = (value if is_number(value) else 0 for value in known)
    pace = f"{1000 * seconds / steps:.1f} ms a step" if steps else ""
    cards += [number_card("Training time", f"{seconds:.1f} s", pace), number_card("Steps", f"{steps:,}", "")]
    return f'<section class="numbers">{"".join(cards)}</section>'


def _curves(lines: Sequence[Mapping[str, object]], scores: Mapping[str, object]) -> str:
    """The score and the loss, against steps and against seconds."""
    charts = []
    headline = next((name for name in _LABELS if scores.get(name) is not None), None)
    for key, title in (
        (f"score_{headline}", _LABELS[headline][0] if headline else ""),
        ("loss", "Loss of the batches"),
    ):
        for axis, label in (("step", "steps"), ("seconds", "seconds of training")):
            points = [(line[axis], line[key]) for line in lines if key in line and axis in line]
            if key != "loss" and headline:
                end = scores.get("steps" if axis == "step" else "seconds")
                points = [(0, scores_before(scores).get(headline)), *points, (end, scores[headline])]
            known = pairs(points)
            if known:
                x, y = zip(*known, strict=True)
                series = [Series("", x, y)] if len(known) > 1 else [Series("", x, y, Mark.DOTS)]
                heading = f"{title}, against {label}"
                charts.append(chart_card(heading, line_chart(heading, label, series)))
    return f'<h2>Curves</h2>\n<section class="charts">{"".join(charts)}</section>'


def _gallery(pictures: Sequence[ResultPicture]) -> str:
    """Target, result and difference, side by side; the result alone where there is no target to be had."""
    if not pictures:
        return ""
    views = []
    for picture in pictures:
        columns = {"fitted": picture.fitted}
        if picture.target is not None:
            difference = (picture.fitted.int() - picture.target.int()).abs() * DIFFERENCE_GAIN
            columns = {"target": picture.target} | columns | {"difference": difference.clamp(0, 255).to(torch.uint8)}
        figures = "".join(
            f'<figure><img src="{data_uri(pixels)}" alt="{escape(f"{caption} of {picture.name}")}">'
            f"<figcaption>{caption}</figcaption></figure>"
            for caption, pixels in columns.items()
        )
        views.append(
            f'<div class="card view"><header><h3>{escape(picture.name)}</h3></header>'
            f'<div class="pictures">{figures}</div></div>'
        )
    note = f"The difference is |fitted - target|, {DIFFERENCE_GAIN} times as bright as it is."
    if all(picture.target is None for picture in pictures):
        note = "No target is drawn: the inside of an open mesh takes too long to find at every point of a picture."
    return f'<h2>Side by side</h2>\n<p class="quiet small">{note}</p>\n' + "\n".join(views)
