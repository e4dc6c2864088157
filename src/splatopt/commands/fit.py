"""The commands about neural fields: ``splatopt fit`` and ``splatopt diagnose``."""

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from splatopt.commands.optimizer_columns import chosen_options, optimizer_columns
from splatopt.commands.parsing import flat, run_command
from splatopt.core.checks import say
from splatopt.fit.config import FitConfig
from splatopt.fit.events import FitProgress, written_scores
from splatopt.fit.loop import fit_field, open_field
from splatopt.fit.results import result_pictures
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS
from splatopt.optim.zoo import ZooOptions
from splatopt.report.field_page import write_field_report

_OPTIONS: dict[str, type] = {name: one.entry.options for name, one in FIELD_OPTIMIZERS.items()} | {"zoo": ZooOptions}


def fit_options() -> Any:
    """Return FitConfig, with the options of every optimizer of fields under its name."""
    columns: list[Any] = [("fit", flat(FitConfig)), *optimizer_columns(_OPTIONS)]
    command = make_dataclass("Fit", columns, frozen=True)
    command.__doc__ = FitConfig.__doc__
    return command


def run_fit(parsed: Any) -> int:
    """Fit, and say what came of it."""
    config = parsed.fit
    optimizer = config.schedule.optimizer
    options = chosen_options(parsed, _OPTIONS, [optimizer], resuming=config.saving.resume).get(optimizer)
    result = fit_field(config.changed(optimizer_options=options), [FitProgress()])
    say(f"{result.steps} steps in {result.seconds:.1f} s; {written_scores(result.after)}", f"result: {result.folder}")
    return 0


def report_fit(folder: Path, views: int) -> Path:
    """Write the page about the fit in ``folder``, with at most ``views`` pictures; the target is read again."""
    pictures = []
    if views:
        config, task, _ = open_field(folder)
        pictures = result_pictures(config, task)[:views]
    return write_field_report(folder, pictures)


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(fit_options(), run_fit, "fit", words)
