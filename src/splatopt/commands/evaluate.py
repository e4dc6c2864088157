"""``splatopt eval``: score the held-out views of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import say, shown
from splatopt.runs.plugins import PluginFiles


@dataclass(frozen=True)
class EvalOptions:
    """Score the held-out views of a run and write its eval.json."""

    run: Path
    """Folder of the run."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    fitted: bool = False
    """Score, beside the views as they are rendered, their right halves after a colour map fitted to the left ones, as
    is done anyway for runs with --exposure affine. Source: NeRF in the Wild (Martin-Brualla et al. 2021)."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""


def _eval(options: EvalOptions) -> int:
    run = open_with_warnings(options.run, options.renderer, options.device)
    scores = run.evaluate(run.open_capture(), fitted=options.fitted)
    table = Table("view", "PSNR, dB", "SSIM", title=f"{scores.subset} views, split {scores.split}, step {run.steps}")
    for view in scores.views:
        table.add_row(Text(shown(view.name)), f"{view.psnr:.2f}", f"{view.ssim:.4f}")
    table.add_section()
    table.add_row("mean", f"{scores.psnr:.2f}", f"{scores.ssim:.4f}")
    Console().print(table)
    if scores.fitted:
        say(scores.fitted_sentence)
    say(f"written to {run.folder.evaluation}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(EvalOptions), _eval, "eval", words)
