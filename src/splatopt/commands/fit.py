"""The commands about neural fields: ``splatopt fit`` and ``splatopt diagnose``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from splatopt.commands.optimizer_fields import chosen_options, field_name, option_columns
from splatopt.commands.parsing import flat, load_given, run_command, values_in
from splatopt.commands.short_help import as_help, is_short_help, shortened
from splatopt.core.checks import say
from splatopt.core.optimizer import OPTIMIZERS, option_prefix
from splatopt.core.plugins import Origin
from splatopt.fit.config import FitConfig
from splatopt.fit.events import FitProgress, written_scores
from splatopt.fit.loop import fit_field, open_field
from splatopt.fit.options import AUTO
from splatopt.fit.results import result_pictures
from splatopt.optim.field_optimizers import FIELD_OPTIMIZERS, with_rate_of
from splatopt.optim.zoo import ZooOptions
from splatopt.report.field_page import write_field_report

SHOWN = (
    *("target", "task", "max_side", "points", "field", "width", "depth", "sigma", "omega"),
    *("seed", "optimizer", "epochs", "steps", "batch", "eval_every", "out", "resume", "threads", "plugins"),
)
"""Settings that ``--help`` shows, those that people use; ``--help-all`` shows all."""


def fit_options(words: Sequence[str]) -> Any:
    """Return FitConfig, with the options of every optimizer of fields under its name.

    Args:
        words: The command line; what installed packages offer is there where it is named.
    """
    options = _options(values_in(words, "--optimizer"))
    short = is_short_help(words)
    if short:
        named = {option_prefix(name) for name in values_in(words, "--optimizer")}
        options = {name: kind for name, kind in options.items() if name in named}
    columns: list[Any] = [("fit", flat(shortened(FitConfig, SHOWN) if short else FitConfig)), *option_columns(options)]
    command = make_dataclass("Fit", columns, frozen=True)
    rest = "These are the options that people use; `splatopt fit --help-all` shows all, and "
    rest += "`splatopt fit --optimizer NAME --help` those of an optimizer."
    command.__doc__ = f"{FitConfig.__doc__}\n\n{rest}" if short else FitConfig.__doc__
    return command


def _options(named: Sequence[str]) -> dict[str, type]:
    """The options of splatopt's optimizers of fields, and of those that others registered, or offer among ``named``."""
    OPTIMIZERS.load_offered(named)
    others = OPTIMIZERS.names(Origin.GIVEN, Origin.INSTALLED)
    own = {name: one.entry.options for name, one in FIELD_OPTIMIZERS.items()} | {"zoo": ZooOptions}
    return {name: OPTIMIZERS.find(name).options for name in others if name not in own} | own


def run_fit(parsed: Any) -> int:
    """Fit, and say what came of it."""
    config = parsed.fit if parsed.fit.saving.resume else parsed.fit.with_optimizer()
    optimizer = config.schedule.optimizer
    kinds = _options([optimizer])
    options = chosen_options(parsed, kinds, [optimizer], resuming=config.saving.resume)
    if optimizer == AUTO:  # a run that is gone on with knows its own; what was given must agree with it
        given = (getattr(parsed, field_name(name)) for name in kinds)
        chosen = next((one for one in given if one != type(one)()), None)
    else:
        chosen = options.get(optimizer)
    chosen = with_rate_of(chosen, config.schedule.optimizer_options)  # the field's own rate, where it has one
    result = fit_field(config.changed(optimizer_options=chosen), [FitProgress()])
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
    load_given(words)
    return run_command(fit_options(words), run_fit, "fit", as_help(words))
