"""``splatopt diagnose``: the curvature of small fields at their start, and of a run at its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import InputError, nearest_names, say
from splatopt.core.objective import Batch
from splatopt.fields.task import Task
from splatopt.fit.reopened import field_points
from splatopt.report.diagnosis import DiagnosePlan, check_free, diagnose_field, summary, write_diagnosis
from splatopt.report.run_diagnosis import PointDiagnosis, RunDiagnosisPlan, diagnose_points
from splatopt.report.run_diagnosis_page import Diagnosed, summary_of, write_run_diagnosis
from splatopt.runs.folder import FIELD_FORMAT, RunFolder
from splatopt.runs.live_line import LiveLine
from splatopt.runs.plugins import PluginFiles
from splatopt.runs.points import RunPoint
from splatopt.train.reopened import scene_points


@dataclass(frozen=True)
class DiagnoseOptions:
    """Measure conditioning, density of Hessian products and spectra of small fields at their start."""

    plan: tyro.conf.OmitArgPrefixes[Annotated[DiagnosePlan, tyro.conf.arg(name="")]] = field(
        default_factory=DiagnosePlan
    )

    out: Path = Path("runs/diagnosis")
    """Folder of diagnosis.json and diagnosis.html."""


@dataclass(frozen=True)
class DiagnoseRunOptions:
    """Measure sharpness, spectra and how far steps reach at a run's start and checkpoints; the run stays as it is."""

    run: Path
    """Folder of a run of train or fit."""

    plan: tyro.conf.OmitArgPrefixes[Annotated[RunDiagnosisPlan, tyro.conf.arg(name="")]] = field(
        default_factory=RunDiagnosisPlan
    )

    out: Path | None = None
    """Folder of diagnosis.json, diagnosis.html and its pictures; runs/diagnosis-NAME when None."""

    renderer: str | None = None
    """What renders: auto, native, reference or triton; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    plugins: PluginFiles = ()
    """A Python file that registers what the run was made with; give it once for each file."""


def run_diagnose(options: DiagnoseOptions) -> int:
    """Measure, print a table, write the page."""
    from rich.console import Console
    from rich.table import Table

    plan = options.plan
    check_free(options.out)
    found = [diagnose_field(plan, name) for name in plan.fields]
    table = Table("field", "parameters", *summary(found[0]), title=f"medians of {plan.draws} starts")
    for one in found:
        table.add_row(one.field, f"{one.parameters:,}", *summary(one).values())
    Console().print(table)
    say(f"written to {write_diagnosis(options.out, plan, found)}")
    return 0


def diagnose_run(options: DiagnoseRunOptions) -> int:
    """Measure every checkpoint, print a table, write the page and its pictures."""
    from rich.console import Console
    from rich.table import Table

    out = options.out or Path("runs") / f"diagnosis-{options.run.resolve().name}"
    if out.resolve().is_relative_to(options.run.resolve()):
        raise InputError(f"{out} lies in the run's folder, which stays as it is; give another folder with --out")
    check_free(out)
    line, warnings = LiveLine(), list[str]()
    is_field = RunFolder(options.run, FIELD_FORMAT).is_run
    line.open()
    try:
        about = (_fit if is_field else _scene)(options, warnings, line.note)
    finally:
        line.close()
        for warning in warnings:
            say(f"splatopt: warning: {warning}", file=sys.stderr)
    if not about.points:
        raise InputError(f"{options.run} holds no whole checkpoint; train it first")
    table = Table(*summary_of(about.points[0]), title=f"{about.matrix}, {about.batch}")
    for one in about.points:
        table.add_row(*summary_of(one).values())
    Console().print(table)
    say(f"written to {write_run_diagnosis(out, about)}")
    return 0


def _scene(options: DiagnoseRunOptions, warnings: list[str], watch: Callable[[str], None]) -> Diagnosed:
    run, plan = open_with_warnings(options.run, options.renderer, options.device), options.plan
    capture = run.open_capture()
    run.check_capture(capture, "its diagnosis")
    train = capture.split.train
    count = min(plan.views, len(train))
    views = tuple(train[place * len(train) // count] for place in range(count))
    points = diagnose_points(scene_points(run, capture, warnings), lambda point: views, plan, watch)
    matrix = "Gauss-Newton's matrix in units of the rates of 3DGS"
    return Diagnosed(options.run.resolve().name, matrix, f"{count} training views", plan, points)


def _fit(options: DiagnoseRunOptions, warnings: list[str], watch: Callable[[str], None]) -> Diagnosed:
    plan = options.plan
    for name in ("renderer", "device"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for runs of train, and {options.run} is one of fit; leave it out")

    def examples(point: RunPoint) -> Batch:
        assert isinstance(point.objective, Task)
        generator = torch.Generator().manual_seed(plan.seed)
        size = point.objective.size
        drawn = torch.randperm(size, generator=generator)[: plan.examples].sort().values
        return point.objective.draw(drawn, generator)

    points: list[PointDiagnosis] = diagnose_points(field_points(options.run, warnings), examples, plan, watch)
    return Diagnosed(options.run.resolve().name, "the Hessian", f"at most {plan.examples:,} examples", plan, points)


FORMS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "field": (DiagnoseOptions, run_diagnose),
    "run": (positional(DiagnoseRunOptions), diagnose_run),
}
"""Forms of ``splatopt diagnose`` by their word."""

_USAGE = """usage: splatopt diagnose FORM ...

  field   measure the curvature of small fields at their start
  run     measure sharpness, spectra and how far steps reach at a run's checkpoints

splatopt diagnose FORM --help explains a form.
"""


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    form, rest = (words[0], words[1:]) if words else ("", [])
    if form in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    if form not in FORMS:
        raise InputError(f"after diagnose comes one of its forms, got {form!r}; {nearest_names(form, FORMS)}")
    load_given(rest)
    options, run = FORMS[form]
    return run_command(options, run, f"diagnose {form}", rest)
