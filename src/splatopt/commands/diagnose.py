"""``splatopt diagnose``: the curvature of small fields at their start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from splatopt.commands.parsing import run_command
from splatopt.core.checks import say
from splatopt.report.diagnosis import DiagnosePlan, check_free, diagnose_field, summary, write_diagnosis


@dataclass(frozen=True)
class DiagnoseOptions:
    """Measure conditioning, density of Hessian products and spectra of small fields at their start."""

    what: Annotated[Literal["field"], tyro.conf.Positional]
    """What is diagnosed."""

    plan: tyro.conf.OmitArgPrefixes[Annotated[DiagnosePlan, tyro.conf.arg(name="")]] = field(
        default_factory=DiagnosePlan
    )

    out: Path = Path("runs/diagnosis")
    """Folder of diagnosis.json and diagnosis.html."""


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


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(DiagnoseOptions, run_diagnose, "diagnose", words)
