"""``splatopt diagnose``: the curvature of small fields at their start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from splatopt.commands.parsing import run_command
from splatopt.core.checks import say
from splatopt.fields.registry import field_names
from splatopt.fit.config import CONSTANTS
from splatopt.report.diagnosis import DiagnosePlan, check_free, diagnose_field, summary, write_diagnosis


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


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(DiagnoseOptions, run_diagnose, "diagnose", words)
