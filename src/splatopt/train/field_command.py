"""The commands about neural fields: ``splatopt fit`` and ``splatopt diagnose``."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from splatopt.core.checks import say
from splatopt.fields.registry import field_names
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS
from splatopt.optim.zoo import ZooOptions
from splatopt.train.diagnose import DiagnosePlan, check_free, diagnose_field, summary, write_diagnosis
from splatopt.train.field_config import CONSTANTS, FitConfig
from splatopt.train.field_events import FitProgress, written_scores
from splatopt.train.field_loop import fit_field, open_field
from splatopt.train.field_report import write_field_report
from splatopt.train.field_results import result_pictures
from splatopt.train.optimizer_columns import chosen_options, optimizer_columns

_OPTIONS: dict[str, type] = {name: one.entry.options for name, one in FIELD_OPTIMIZERS.items()} | {"zoo": ZooOptions}


def fit_options() -> Any:
    """Return FitConfig, with the options of every optimizer of fields under its name."""
    columns: list[Any] = [("fit", tyro.conf.OmitArgPrefixes[FitConfig]), *optimizer_columns(_OPTIONS)]
    command = make_dataclass("Fit", columns, frozen=True)
    command.__doc__ = FitConfig.__doc__
    return command


def run_fit(parsed: Any) -> int:
    """Fit, and say what came of it."""
    config = parsed.fit
    options = chosen_options(parsed, _OPTIONS, [config.optimizer], resuming=config.resume).get(config.optimizer)
    result = fit_field(replace(config, optimizer_options=options), [FitProgress()])
    say(f"{result.steps} steps in {result.seconds:.1f} s; {written_scores(result.after)}", f"result: {result.folder}")
    return 0


def report_fit(folder: Path, views: int) -> Path:
    """Write the page about the fit in ``folder``, with at most ``views`` pictures; the target is read again."""
    pictures = []
    if views:
        config, task, _ = open_field(folder)
        pictures = result_pictures(config, task)[:views]
    return write_field_report(folder, pictures)


@dataclass(frozen=True)
class DiagnoseOptions:
    """Measure conditioning, density of Hessian products and spectra of small fields at their start."""

    what: Annotated[Literal["field"], tyro.conf.Positional]
    """What is diagnosed."""

    fields: tuple[str, ...] = field_names()
    """Names of fields."""

    width: int = 16
    """Features of each layer. Unit: features."""

    depth: int = 1
    """Hidden layers. Unit: layers."""

    side: int = 16
    """The made-up image that is fitted has so many pixels along each edge. Unit: pixels."""

    draws: int = 10
    """Starts, each with an image of its own. Unit: starts."""

    pixels: int = 1
    """Pixels of the minibatch whose Hv is looked at. Unit: pixels."""

    lanczos_steps: int = 60
    """Steps of Lanczos for the spectrum. Unit: steps."""

    seed: int = 0
    """Seed of the first start."""

    sigma: float | None = None
    """σ of gaussian; 0.05 when None."""

    omega: float | None = None
    """ω of sine, wavelet and sinc; 30, 10 and 20 when None."""

    scale: float | None = None
    """Inverse width of wavelet's envelope; 10 when None."""

    frequencies: int | None = None
    """Octaves of relu-pe's encoding; 8 when None."""

    out: Path = Path("runs/diagnosis")
    """Folder of diagnosis.json and diagnosis.html."""


def diagnose_options() -> Any:
    """Return DiagnoseOptions."""
    return DiagnoseOptions


def run_diagnose(options: DiagnoseOptions) -> int:
    """Measure, print a table, write the page."""
    from rich.console import Console
    from rich.table import Table

    constants = {name: getattr(options, name) for name in CONSTANTS if getattr(options, name) is not None}
    plan = DiagnosePlan(
        fields=options.fields,
        width=options.width,
        depth=options.depth,
        side=options.side,
        draws=options.draws,
        pixels=options.pixels,
        lanczos_steps=options.lanczos_steps,
        seed=options.seed,
        constants=constants,
    )
    check_free(options.out)
    found = [diagnose_field(plan, name) for name in plan.fields]
    table = Table("field", "parameters", *summary(found[0]), title=f"medians of {plan.draws} starts")
    for one in found:
        table.add_row(one.field, f"{one.parameters:,}", *summary(one).values())
    Console().print(table)
    say(f"written to {write_diagnosis(options.out, plan, found)}")
    return 0
