"""``splatopt eval``: score the held-out views of a run, or of a capture by a scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.open_scene import SceneOptions, check_no_scene_options, is_scene_file, open_scene
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import InputError, say, shown
from splatopt.metrics.image import ViewScore
from splatopt.runs.plugins import PluginFiles
from splatopt.train.evaluate import Scores, check_scorable, evaluate


@dataclass(frozen=True)
class EvalOptions:
    """Score the held-out views of a run and write its eval.json; or those of a capture by a scene file."""

    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; or a scene such as scene.ply, in the frame of the capture."""

    capture: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="CAPTURE")] = None
    """Folder of the capture that a scene file is scored on; nothing is written."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    fitted: bool = False
    """Score, beside the views as they are rendered, their right halves after a colour map fitted to the left ones, as
    is done anyway for runs with --exposure affine. Source: NeRF in the Wild (Martin-Brualla et al. 2021)."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""

    scene: Annotated[SceneOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(
        default_factory=SceneOptions
    )


def _eval(options: EvalOptions) -> int:
    if not is_scene_file(options.run):
        check_no_scene_options(options.scene, options.capture, "a capture")
        run = open_with_warnings(options.run, options.renderer, options.device)
        _show(run.evaluate(run.open_capture(), fitted=options.fitted), f"step {run.steps}")
        say(f"written to {run.folder.evaluation}")
        return 0
    if options.capture is None:
        raise InputError(
            f"{options.run} is a scene without photographs; give the folder of its capture behind it, or the folder "
            "of a run"
        )
    opened = open_scene(options.run, options.capture, options.scene, options.renderer, options.device)
    check_scorable(opened.capture)
    cloud = opened.objective.cloud
    scores = evaluate(opened.objective, opened.capture, fitted=options.fitted)
    _show(scores, f"{len(cloud):,} Gaussians of degree {cloud.sh_degree}")
    say(scores.protocol)
    return 0


def _show(scores: Scores, what: str) -> None:
    head = ("view", "PSNR, dB", "SSIM", *(("pixels",) if scores.over_pixels else ()))
    table = Table(*head, title=f"{scores.subset} views, split {scores.split}, {what}")
    for view in (*scores.views, ViewScore("mean", scores.psnr, scores.ssim, scores.counted)):
        row = (Text(shown(view.name)), f"{view.psnr:.2f}", f"{view.ssim:.4f}", f"{100 * view.counted:.1f} %")
        table.add_row(*row[: len(head)], end_section=view is scores.views[-1])
    Console().print(table)
    if scores.fitted:
        say(scores.fitted_sentence)


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(EvalOptions), _eval, "eval", words)
