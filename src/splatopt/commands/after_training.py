"""What ``splatopt train`` leaves and says at its end: a page, and what to type next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from splatopt.core.checks import InputError, say
from splatopt.report.finished import report_finished
from splatopt.runs.program import program
from splatopt.train.result import TrainResult


def say_finished(result: TrainResult) -> None:
    """Print what a run came to, write its page, and say where all lies and what can be done with it."""
    say(
        f"{result.steps} steps in {result.seconds:.1f} s, {len(result.cloud):,} Gaussians; "
        f"{result.after.subset} PSNR {result.after.psnr:.2f} dB, SSIM {result.after.ssim:.4f} "
        f"({len(result.after.views)} views, split {result.after.split}){result.after.over_pixels}",
        *([result.after.fitted_sentence] if result.after.fitted else []),
        *([result.cameras_moved.sentence] if result.cameras_moved else []),
        f"scene: {result.folder / 'scene.ply'}",
        f"page: {_written_page(result)}",
        *next_commands(result.folder),
    )


def next_commands(run: Path) -> list[str]:
    """Return lines that say what to type for a run in folder ``run``."""
    typed, folder = program(), shlex.quote(str(run))
    return [
        "next:",
        f"  {typed} view {folder}   look around in it, in a browser",
        f"  {typed} render {folder}   pictures or a video of a round trip",
        f"  {typed} export {folder} scene.ply   for other viewers and editors",
    ]


def _written_page(result: TrainResult) -> Path | str:
    """The page, or why there is none: the run is whole without it."""
    command = f"{program()} report {shlex.quote(str(result.folder))}"
    try:
        return report_finished(result)
    except KeyboardInterrupt:
        return f"not written, as asked to stop; {command} writes it"
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        say(f"splatopt: the run is whole, and its page could not be written: {error}", file=sys.stderr)
        return f"not written; {command} writes it"
