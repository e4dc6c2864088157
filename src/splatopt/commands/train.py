"""The command ``splatopt train``: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.commands.optimizer_columns import chosen_options, optimizer_columns
from splatopt.commands.parsing import flat, run_command
from splatopt.core.checks import InputError, say
from splatopt.core.optimizer import find_optimizer, optimizer_names, option_prefix
from splatopt.core.processes import LostProcessError, Processes, find_launch, join
from splatopt.optim.zoo import ZooOptions
from splatopt.runs.launched import part_ways, quietly
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.progress import ProgressLine


def train_options(words: list[str]) -> Any:
    """Return TrainConfig, with the options of every registered optimizer under its name.

    Args:
        words: The command line; where it asks for help, options of the optimizers that it names alone are there.
    """
    options = _optimizer_options()
    if {"-h", "--help"} & set(words):
        named = {option_prefix(name) for name in _optimizers_named(words)}
        options = {name: kind for name, kind in options.items() if name in named}
    columns: list[Any] = [("training", flat(TrainConfig)), *optimizer_columns(options)]
    command = make_dataclass("Train", columns, frozen=True)
    listed = "\n\n".join(f"{name}: {find_optimizer(name).help}" for name in optimizer_names())
    where = "Optimizers, whose options `splatopt train --optimizer NAME --help` explains:"
    command.__doc__ = "\n\n".join([str(TrainConfig.__doc__), where, listed])
    return command


def run_train(parsed: Any) -> int:
    """Train, and say what came of it."""
    config = parsed.training
    given = chosen_options(parsed, _optimizer_options(), config.schedule.optimizers, resuming=False)
    staged = config.schedule.stages is not None
    config = config.changed(optimizer_options=given if staged else given.get(config.schedule.optimizer))
    processes = Processes()
    try:
        processes = join(find_launch(), config.processes.process_timeout)
        processes.check_versions()
        result = train(config, [ProgressLine()], processes=processes)
        processes.leave()
    except LostProcessError as error:
        raise InputError(f"another process of the run was lost outside its steps: {error}") from error
    except (InputError, KeyboardInterrupt) as error:
        code = part_ways(error, processes)
        if code is None:
            raise
        return code
    say(
        f"{result.steps} steps in {result.seconds:.1f} s, {len(result.cloud):,} Gaussians; "
        f"{result.after.subset} PSNR {result.after.psnr:.2f} dB, SSIM {result.after.ssim:.4f} "
        f"({len(result.after.views)} views, split {result.after.split})",
        f"scene: {result.folder / 'scene.ply'}",
    )
    return 0


def _optimizer_options() -> dict[str, type]:
    """The options of every registered optimizer, and of the families."""
    return {name: find_optimizer(name).options for name in optimizer_names()} | {"zoo": ZooOptions}


def _optimizers_named(words: list[str]) -> set[str]:
    """Optimizers that a command line names, before it has been parsed; the default one where it names none."""
    named: set[str] = set()
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag == "--optimizer":
            named.add(value or after)
        elif flag == "--stages":
            named |= {part.rpartition(":")[0].strip() for part in (value or after).split(",")}
    return named or {"adam"}


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""

    def command(begun: Callable[[], None]) -> int:
        def run(parsed: Any) -> int:
            begun()
            return run_train(parsed)

        return run_command(train_options(words), run, "train", words)

    return quietly(command, find_launch())
