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
from splatopt.scene.photometric import ViewScore


@dataclass(frozen=True)
class EvalOptions:
    """Score the held-out views of a run and write its eval.json."""

    run: Path
    """Folder of the run."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""


def _eval(options: EvalOptions) -> int:
    run = open_with_warnings(options.run, options.renderer, options.device)
    scores = run.evaluate(run.open_capture())
    head = ("view", "PSNR, dB", "SSIM", *(("pixels",) if scores.over_pixels else ()))
    table = Table(*head, title=f"{scores.subset} views, split {scores.split}, step {run.steps}")
    for view in (*scores.views, ViewScore("mean", scores.psnr, scores.ssim, scores.counted)):
        row = (Text(shown(view.name)), f"{view.psnr:.2f}", f"{view.ssim:.4f}", f"{100 * view.counted:.1f} %")
        table.add_row(*row[: len(head)], end_section=view is scores.views[-1])
    Console().print(table)
    say(f"written to {run.folder.evaluation}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(EvalOptions), _eval, "eval", words)
