"""``splatopt prune``: fewer Gaussians, a new run, and the curve of quality against their number."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import load_given, run_command
from splatopt.core.checks import say
from splatopt.runs.events import Warned
from splatopt.runs.plugins import PluginFiles
from splatopt.train.prune import prune
from splatopt.train.pruning import PruneOptions, PruneRound

_COLUMNS = ("Gaussians", "steps", "training loss", "training PSNR", "PSNR", "SSIM", "seconds")


@dataclass(frozen=True)
class PruneCommand:
    """Remove Gaussians from a run's scene, in rounds with steps of repair in between, and leave a new run."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; nothing in it is changed."""

    pruning: Annotated[PruneOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]

    out: Path | None = None
    """Folder of the new run; beside the run's, with its name and how far it was pruned, when None."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture, the loss or an optimizer; give it once for each file."""

    @property
    def folder(self) -> Path:
        """Folder of the new run."""
        pruning, run = self.pruning, self.run.absolute()
        how_far = f"{pruning.max_loss:g}dB" if pruning.to is None else str(pruning.to)
        return self.out or run.with_name(f"{run.name}-pruned-{how_far}")


def _cells(values: Sequence[str]) -> str:
    """Write a row under the columns' names, all to the right."""
    return "  ".join(f"{value:>{max(len(name), 6)}}" for name, value in zip(_COLUMNS, values, strict=True))


def _row(one: PruneRound) -> str:
    values = (
        f"{one.gaussians:,}",
        str(one.steps),
        f"{one.loss:.4f}",
        f"{one.train_psnr:.2f}",
        f"{one.psnr:.2f}",
        f"{one.ssim:.4f}",
        f"{one.seconds:.1f}",
    )
    cells = _cells(values)
    return cells if one.kept else f"{cells}  undone: beyond --max-loss"


class _Table:
    """Prints rounds as they end, the columns' names before the first."""

    def __init__(self) -> None:
        self._begun = False

    def tell(self, what: PruneRound | Warned) -> None:
        """Print a round, or a warning."""
        if isinstance(what, Warned):
            say(f"splatopt: warning: {what.message}", file=sys.stderr)
            return
        if not self._begun:
            say(_cells(_COLUMNS))
        self._begun = True
        say(_row(what), flush=True)


def _prune(options: PruneCommand) -> int:
    run = open_with_warnings(options.run, options.renderer, options.device)
    result = prune(run, options.pruning, options.folder, tell=_Table().tell)
    before, left, scores = result.rounds[0], result.left, result.scores
    views = f"{len(scores.views)} views, split {scores.split}"
    say(
        f"{before.gaussians:,} Gaussians to {left.gaussians:,}: {scores.subset} PSNR {before.psnr:.2f} -> "
        f"{left.psnr:.2f} dB, SSIM {before.ssim:.4f} -> {left.ssim:.4f} ({views})",
        f"new run: {result.folder}",
    )
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(PruneCommand, _prune, "prune", words)
