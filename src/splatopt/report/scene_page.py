"""One page about one run: numbers, curves and pictures, in a single file that asks the network for nothing."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from splatopt.core.checks import InputError
from splatopt.core.optimizer import find_optimizer, option_prefix
from splatopt.core.typed import field_names
from splatopt.core.version import __version__
from splatopt.data.images import USUAL_MAX_SIDE
from splatopt.density.strategy import find_density
from splatopt.raster.loss_registry import find_loss
from splatopt.report.charts import Mark, Series, line_chart, running_mean
from splatopt.report.edits import told_edits
from splatopt.report.growth import growth_section
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
from splatopt.report.pictures import ViewPictures, data_uri, greyed
from splatopt.report.pruning_curve import pruning_section
from splatopt.runs.folder import TRAINED_ON, RunFolder, read_json
from splatopt.runs.records import read_evaluation, read_metrics
from splatopt.runs.renamed import renamed
from splatopt.train.choices import usual_choices
from splatopt.train.config import TrainConfig
from splatopt.train.density_options import NO_DENSITY

DIFFERENCE_GAIN = 4
"""Factor on the absolute difference of two pictures, so that small ones can be seen."""

_SMOOTHING_PARTS = 60
"""The bold curve is a running mean over one of so many parts of the run."""


def write_report(
    run_folder: Path,
    pictures: Sequence[ViewPictures] = (),
    *,
    title: str | None = None,
    command: str | None = None,
) -> Path:
    """Write ``report.html`` into a run's folder, from the files that the run left there.

    Args:
        run_folder: Folder of a run: config.json, metrics.jsonl, eval.json.
        pictures: Views to show side by side.
        title: Heading; the capture's name when None.
        command: What was typed; put together from the configuration when None.

    Returns:
        Path of the page.

    Raises:
        InputError: The folder is not a run's.
    """
    folder = RunFolder(run_folder)
    if not folder.is_run:
        raise InputError(f"{run_folder} is not a run of splatopt: it has no config.json of one; give a run's folder")
    config = renamed(read_json(folder.config), TrainConfig.setting_names())
    scores = read_evaluation(folder.evaluation)
    lines = read_metrics(folder.metrics)
    capture = Path(str(config.get("capture", "a capture"))).name
    heading = title or f"{capture}, trained with {_trained_with(config)}"
    sections = [
        _header(heading, scores, has_scene=folder.scene.exists()),
        _headline(scores, lines, staged=bool(config.get("stages"))),
        _curves(lines, scores),
        growth_section(told_edits(folder.density), lines, pictures),
        pruning_section(folder),
        _gallery(pictures, scores),
        _provenance(config, command or _command(config, run_folder)),
    ]
    return write_page(run_folder / "report.html", heading, [section for section in sections if section])


# ---------------------------------------------------------------------- numbers


def _written(value: object, form: str = ",.0f") -> str:
    """Write a number in ``form``, with thin spaces between thousands; a dash where it is none."""
    return format(value, form).replace(",", "\u2009") if is_number(value) else "–"


def _from_to(before: object, after: object, form: str) -> str:
    """Write a score before and after, or the one that is known."""
    if not is_number(before):
        return _written(after, form)
    return f"{_written(before, form)} → {_written(after, form)}"


def _header(heading: str, scores: Mapping[str, object], *, has_scene: bool) -> str:
    """Title, what was scored, and the scene."""
    subset = {"test": "held-out test views", "train": "training views (there are no others)"}.get(
        str(scores.get("subset")), "views"
    )
    counted = _counted(scores)
    over = f", over the {100 * counted:.1f} % of their pixels that masks leave" if counted < 1 else ""
    lead = (
        f"Scores are means over the {escape(subset)}{over}."
        if "psnr" in scores
        else "This run was not scored at its end."
    )
    scene = ' The scene is <a href="scene.ply">scene.ply</a>, for any 3DGS viewer.' if has_scene else ""
    return f'<h1>{escape(heading)}</h1>\n<p class="lead">{lead}{scene}</p>'


def _counted(scores: Mapping[str, object]) -> float:
    """Mean share of the views' pixels that the scores are of."""
    shares = [value if is_number(value := view.get("counted")) else 1.0 for view in _by_view(scores).values()]
    return sum(shares) / len(shares) if shares else 1.0


def _trained_with(config: Mapping[str, object]) -> str:
    """The optimizers' names, in the order of the stages."""
    stages = config.get("stages")
    if isinstance(stages, str):
        return ", then ".join(part.partition(":")[0].strip() for part in stages.split(","))
    return str(config.get("optimizer", "an unknown optimizer"))


def _headline(scores: Mapping[str, object], lines: Sequence[Mapping[str, object]], *, staged: bool) -> str:
    """The numbers that one looks for first; stages' steps are too unlike for a mean."""
    last = lines[-1] if lines else {}
    before = scores_before(scores)
    steps, seconds = scores.get("steps", last.get("step")), scores.get("seconds", last.get("seconds"))
    pace = ""
    if is_number(steps) and steps and is_number(seconds) and not staged:
        pace = f"{1000 * seconds / steps:.1f} ms a step"
    memory = [value for line in lines if is_number(value := line.get("memory_mb"))]
    cards = [
        ("PSNR", _from_to(before.get("psnr"), scores.get("psnr"), ".2f"), "dB, higher is better"),
        ("SSIM", _from_to(before.get("ssim"), scores.get("ssim"), ".3f"), "1 is equality"),
        *_fitted_card(scores),
        ("Training time", f"{_written(seconds, ',.1f')} s", pace),
        ("Steps", _written(steps), ""),
        ("Gaussians", _written(scores.get("gaussians", last.get("gaussians"))), ""),
        ("Memory", f"{_written(max(memory, default=None))} MB", "the whole process, at most"),
    ]
    return '<section class="numbers">' + "".join(number_card(*card) for card in cards) + "</section>"


def _fitted_card(scores: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """The score of right halves, where it was taken."""
    fitted = scores.get("fitted")
    if not isinstance(fitted, dict):
        return []
    note = (
        f"dB, right halves, with a colour map fitted to the left; {_written(fitted.get('plain_psnr'), '.2f')} without"
    )
    return [("Fitted PSNR", _written(fitted.get("psnr"), ".2f"), note)]


# ---------------------------------------------------------------------- curves


def _curves(lines: Sequence[Mapping[str, object]], scores: Mapping[str, object]) -> str:
    """PSNR and loss, against steps and against seconds."""
    charts = []
    for key, name in (("psnr", "PSNR, dB"), ("loss", "Loss")):
        for axis, label in (("step", "steps"), ("seconds", "seconds of training")):
            series = _training_series(lines, axis, key)
            if key == "psnr":
                series.append(_held_out_series(lines, scores, axis))
            heading = f"{name}, against {label}"
            charts.append(chart_card(heading, line_chart(heading, label, series)))
    return f'<h2>Curves</h2>\n<section class="charts">{"".join(charts)}</section>'


def _training_series(lines: Sequence[Mapping[str, object]], axis: str, key: str) -> list[Series]:
    """What was logged while training, and its running mean."""
    rows = pairs([(line.get(axis), line.get(key)) for line in lines])
    x, y = [x for x, _ in rows], [y for _, y in rows]
    smooth = running_mean(y, max(1, len(y) // _SMOOTHING_PARTS))
    return [Series("as logged", x, y, Mark.FAINT), Series("running mean, training views", x, smooth)]


def _held_out_series(lines: Sequence[Mapping[str, object]], scores: Mapping[str, object], axis: str) -> Series:
    """PSNR of the scored views: before, on the way, at the end."""
    found: list[tuple[object, object]] = [(0, scores_before(scores).get("psnr"))]
    found += [(line.get(axis), line.get("test_psnr")) for line in lines]
    found += [(scores.get("steps" if axis == "step" else "seconds"), scores.get("psnr"))]
    rows = pairs(found)
    label = "held-out views" if scores.get("subset") == "test" else "scored views"
    return Series(label, [x for x, _ in rows], [y for _, y in rows], Mark.DOTS)


# ---------------------------------------------------------------------- pictures


def _gallery(pictures: Sequence[ViewPictures], scores: Mapping[str, object]) -> str:
    """Photograph, start, result and difference of each view, side by side."""
    if not pictures:
        return ""
    after, before = _by_view(scores), _by_view(scores_before(scores))
    views = [_view(one, before.get(one.name, {}), after.get(one.name, {})) for one in pictures]
    note = f"The difference is |trained - photograph|, {DIFFERENCE_GAIN} times as bright as it is."
    if any(one.seen is not None for one in pictures):
        note += " Masked pixels of photograph and difference are grey."
    return f'<h2>Side by side</h2>\n<p class="quiet small">{note}</p>\n' + "\n".join(views)


def _by_view(scores: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Scores of each view by its name."""
    views = scores.get("views")
    return {str(view.get("name")): view for view in views if isinstance(view, dict)} if isinstance(views, list) else {}


def _view(pictures: ViewPictures, before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """One row of pictures with its scores."""
    difference = (pictures.trained.int() - pictures.image.int()).abs() * DIFFERENCE_GAIN
    shown = greyed(difference.clamp(0, 255).to(torch.uint8).cpu(), pictures.seen)
    columns = [
        ("photograph", pictures.image),
        ("start", pictures.start),
        ("trained", pictures.trained),
        ("difference", shown),
    ]
    figures = "".join(
        f'<figure><img src="{data_uri(picture)}" alt="{escape(f"{caption} of view {pictures.name}")}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, picture in columns
        if picture is not None
    )
    numbers = ""
    if after:
        psnr = _from_to(before.get("psnr"), after.get("psnr"), ".2f")
        ssim = _from_to(before.get("ssim"), after.get("ssim"), ".3f")
        numbers = f"<span>PSNR {psnr} dB</span><span>SSIM {ssim}</span>"
    return (
        f'<div class="card view"><header><h3>{escape(pictures.name)}</h3>{numbers}</header>'
        f'<div class="pictures">{figures}</div></div>'
    )


# ---------------------------------------------------------------------- where it comes from


def _provenance(config: Mapping[str, object], command: str) -> str:
    """The command, the configuration and the versions."""
    settings = {name: value for name, value in config.items() if name not in ("format", "version", TRAINED_ON)}
    settings.pop("optimizer_options", None)
    for optimizer, options in _options(config).items():
        settings |= {f"{optimizer}.{name}": value for name, value in options.items()}
    versions = {
        "splatopt": config.get("version", __version__),
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
    }
    return (
        f"<h2>Command</h2>\n<pre>{escape(command)}</pre>\n"
        f"<details><summary>Configuration</summary>{_table(settings)}</details>\n"
        f"<h2>Versions</h2>{_table(versions)}"
    )


def _table(values: Mapping[str, object]) -> str:
    """Names and values in two columns."""
    texts = {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return two_columns(texts)


def _command(config: Mapping[str, object], run_folder: Path) -> str:
    """The command that makes a run like this one: the usual options, and every other that is not at its default."""
    words = ["splatopt", "train", str(config.get("capture", ""))]
    implied = _implied(config)
    places = TrainConfig.setting_places()
    for name in dict.fromkeys((*_FIRST_OPTIONS, *places)):
        value = config.get(name)
        if name in implied or name in _NO_OPTIONS or name not in config:
            continue
        if name in _USUAL_OPTIONS or value not in (None, _plain_default(places[name].field.default)):
            words += _option(name, value)
    words += [word for path in _plugin_paths(config) for word in ("--plugin", path)]
    for kind, find in (("loss", _loss), ("density", _density)):
        chosen, given = config.get(kind), config.get(f"{kind}_options")
        if isinstance(chosen, str) and isinstance(given, dict):
            usual = _defaults(chosen, find)
            for name, value in given.items():
                if value != usual.get(name):
                    words += _option(f"{chosen}.{name}", value)
    for optimizer, options in _options(config).items():
        defaults = _optimizer_defaults(optimizer) or {}
        for name, value in options.items():
            if value != defaults.get(name):
                words += _option(f"{option_prefix(optimizer)}.{name}", value)
    return shlex.join([*words, "--out", str(run_folder)])


def _implied(config: Mapping[str, object]) -> tuple[str, ...]:
    """Settings that follow from others, and need not be typed."""
    stages, optimizer, density = config.get("stages"), str(config.get("optimizer")), config.get("density", NO_DENSITY)
    if config.get("minutes") or config.get("plan"):  # what the run has decided itself
        planned = ("steps", "stages", "levels", "sh_interval", "max_gaussians")
        return (*planned, *_usual_size(config), *(("optimizer",) if stages else ()))
    usual = {"density": NO_DENSITY, **usual_choices("" if stages else optimizer, str(density))}
    same = tuple(name for name, value in usual.items() if config.get(name) == value)
    return (*same, *_usual_size(config), *(("optimizer", "steps") if stages else ()))


def _usual_size(config: Mapping[str, object]) -> tuple[str, ...]:
    """The bound on the photographs' size, where it is the one that nobody asked for."""
    usual = USUAL_MAX_SIDE if config.get("downscale", 1) == 1 else 0
    return ("max_side",) if config.get("max_side") == usual else ()


def _options(config: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The options by the optimizer's name, of one optimizer or of stages."""
    options = config.get("optimizer_options")
    if not isinstance(options, dict):
        return {}
    by_name = options if config.get("stages") else {str(config.get("optimizer")): options}
    return {name: _of_today(name, each) for name, each in by_name.items() if isinstance(each, dict)}


def _of_today(optimizer: str, options: dict[str, object]) -> dict[str, object]:
    """Options under the names of today, of an optimizer that is known here."""
    try:
        return renamed(options, field_names(find_optimizer(optimizer).options))
    except InputError:
        return options


def _optimizer_defaults(name: str) -> dict[str, object] | None:
    """The default options of an optimizer as JSON holds them; None where it is unknown here."""
    try:
        defaults = asdict(find_optimizer(name).options())
    except InputError:
        return None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def _loss(name: str) -> Any:
    return find_loss(name).loss


def _density(name: str) -> Any:
    return find_density(name).options


def _defaults(name: str, find: Callable[[str], Any]) -> dict[str, object]:
    """The default options of a loss or a strategy as JSON holds them; none where it is unknown here."""
    try:
        defaults = asdict(find(name)())
    except InputError:
        return {}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def _plugin_paths(config: Mapping[str, object]) -> list[str]:
    """The plug-in files that a run's configuration names."""
    plugins = config.get("plugins")
    return (
        [str(one["path"]) for one in plugins if isinstance(one, dict) and "path" in one]
        if isinstance(plugins, list)
        else []
    )


_FIRST_OPTIONS = ("minutes", "optimizer", "stages", "steps", "seed", "init")
_USUAL_OPTIONS = ("optimizer", "steps", "seed", "init")
_NO_OPTIONS = ("capture", "out", "resume", "optimizer_options", "loss_options", "density_options", "plugins")


def _plain_default(value: object) -> object:
    """A default as JSON holds it."""
    if isinstance(value, tuple):
        return list(value)
    return value.value if isinstance(value, Enum) else value


def _option(name: str, value: object) -> list[str]:
    """An option and its value as they are typed; a flag stands alone."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag]
    return [flag, *(str(part) for part in (value if isinstance(value, list) else [value]))]
