"""The command ``splatopt train``: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import make_dataclass
from typing import Any

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.commands.after_training import say_finished
from splatopt.commands.optimizer_fields import chosen_options, one_of_options, option_columns
from splatopt.commands.parsing import flat, load_given, run_command, values_in
from splatopt.commands.short_help import as_help, is_help, is_short_help, shortened, shortened_group
from splatopt.core.checks import InputError
from splatopt.core.optimizer import OPTIMIZERS, find_optimizer, optimizer_names, option_prefix
from splatopt.core.processes import LostProcessError, Processes, find_launch, join
from splatopt.density.strategy import STRATEGIES, find_density
from splatopt.optim.zoo import ZooOptions
from splatopt.raster.loss_registry import LOSSES, find_loss
from splatopt.runs.distributed_command import part_ways, quietly
from splatopt.train.chosen_loss import USUAL_LOSS
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.options import USUAL_OPTIMIZER
from splatopt.train.planning import Clock, clock_of_process
from splatopt.train.progress import ProgressLine
from splatopt.viewer.serving import LiveOptions, watching

SHOWN = (
    *("capture", "max_side", "mask", "init", "exposure", "refine_poses"),
    *("minutes", "seed", "optimizer", "stages", "steps", "view_batch", "density", "max_gaussians", "eval_every"),
    *("out", "resume", "threads", "plugins", "device", "view"),
)
"""Settings that ``--help`` shows, those that people use; ``--help-all`` shows all."""


def train_options(words: list[str]) -> Any:
    """Return TrainConfig, with the options of every registered optimizer, loss and strategy under its name.

    Args:
        words: The command line; where it asks for help, options of what it names alone are there. What installed
            packages offer is there where it is named.
    """
    optimizers, losses = _optimizer_options(_optimizers_named(words)), _loss_options(_losses_named(words))
    strategies = _density_options(_strategies_named(words))
    if is_help(words):
        usual = set() if is_short_help(words) else {USUAL_OPTIMIZER}
        named = {option_prefix(name) for name in _optimizers_named(words) or usual}
        optimizers = {name: kind for name, kind in optimizers.items() if name in named}
        losses = {name: kind for name, kind in losses.items() if name in _losses_named(words)}
        strategies = {name: kind for name, kind in strategies.items() if name in _strategies_named(words)}
    columns: list[Any] = [("training", flat(shortened(TrainConfig, SHOWN) if is_short_help(words) else TrainConfig))]
    columns.append(("page", flat(shortened_group(LiveOptions, SHOWN) if is_short_help(words) else LiveOptions)))
    columns += [*option_columns(optimizers), *option_columns(losses, "loss")]
    columns += option_columns(strategies, "density")
    command = make_dataclass("Train", columns, frozen=True)
    command.__doc__ = "\n\n".join([str(TrainConfig.__doc__), *_lists(words)])
    return command


def _lists(words: list[str]) -> list[str]:
    """Paragraphs of the help: how to see all of it, and what can be named, one a line."""
    rest = "These are the options that people use; `splatopt train --help-all` shows all."
    optimizers = {name: find_optimizer(name).help for name in optimizer_names()}
    losses = {name: find_loss(name).help for name in LOSSES.names()}
    strategies = {name: find_density(name).help for name in STRATEGIES.names()}
    return [
        *([rest] if is_short_help(words) else []),
        _list("Optimizers", "optimizer", optimizers, OPTIMIZERS.offered()),
        _list("Losses", "loss", losses, LOSSES.offered()),
        _list("Density strategies", "density", strategies, STRATEGIES.offered()),
    ]


def _list(what: str, flag: str, helps: Mapping[str, str], offered: Mapping[str, str]) -> str:
    """Names with what each is, those that installed packages offer last."""
    lines = [f"- {name}: {help}" for name, help in helps.items()]
    lines += [f"- {name}: of the package {package}" for name, package in offered.items()]
    return "\n".join([f"{what}, whose options `splatopt train --{flag} NAME --help` explains:", *lines])


def run_train(parsed: Any, clock: Clock | None = None) -> int:
    """Train, and say what came of it.

    Args:
        parsed: The command line.
        clock: Seconds since the command was given.
    """
    config = parsed.training
    schedule, loss, density = config.schedule, config.scene.loss, config.density.density
    names = schedule.optimizers
    given = chosen_options(parsed, _optimizer_options(names), names, resuming=False)
    single = schedule.stages is None and len(names) == 1
    config = config.changed(
        optimizer_options=given.get(names[0]) if single else given,
        loss_options=one_of_options(parsed, _loss_options({loss}), loss, "loss"),
        density_options=one_of_options(parsed, _density_options({density}), density, "density"),
    )
    processes = Processes()
    try:
        processes = join(find_launch(), config.processes.process_timeout)
        processes.check_versions()
        progress = ProgressLine()
        with watching(parsed.page, progress.say, processes.world_size) as watchers:
            result = train(config, [progress, *watchers], processes=processes, clock=clock)
        processes.leave()
    except LostProcessError as error:
        raise InputError(f"another process of the run was lost outside its steps: {error}") from error
    except (InputError, KeyboardInterrupt) as error:
        code = part_ways(error, processes)
        if code is None:
            raise
        return code
    if processes.is_first:
        say_finished(result)
    return 0


def _optimizer_options(named: Collection[str]) -> dict[str, type]:
    """The options of every registered optimizer and family, and of those in ``named`` that installed packages offer."""
    OPTIMIZERS.load_offered(named)
    return {name: find_optimizer(name).options for name in optimizer_names()} | {"zoo": ZooOptions}


def _loss_options(named: Collection[str]) -> dict[str, type]:
    """The registered losses with options under their names, and those in ``named`` that installed packages offer."""
    LOSSES.load_offered(named)
    return {name: find_loss(name).loss for name in LOSSES.names() if name != USUAL_LOSS}


def _density_options(named: Collection[str]) -> dict[str, type]:
    """The options of every registered density strategy, and of those in ``named`` that installed packages offer."""
    STRATEGIES.load_offered(named)
    return {name: find_density(name).options for name in STRATEGIES.names()}


def _optimizers_named(words: list[str]) -> set[str]:
    """Optimizers that a command line names, before it has been parsed."""
    staged = {part.rpartition(":")[0].strip() for text in values_in(words, "--stages") for part in text.split(",")}
    return {*values_in(words, "--optimizer"), *staged}


def _losses_named(words: list[str]) -> set[str]:
    """Losses that a command line names, before it has been parsed."""
    return set(values_in(words, "--loss"))


def _strategies_named(words: list[str]) -> set[str]:
    """Density strategies that a command line names, before it has been parsed."""
    return set(values_in(words, "--density"))


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    clock = clock_of_process(words)

    def command(begun: Callable[[], None]) -> int:
        def run(parsed: Any) -> int:
            begun()
            return run_train(parsed, clock)

        load_given(words)
        return run_command(train_options(words), run, "train", as_help(words))

    return quietly(command, find_launch())
