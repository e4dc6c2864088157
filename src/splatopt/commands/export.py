"""``splatopt export``: the scene of a run as PLY."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import positional, run_command
from splatopt.core.checks import InputError, say
from splatopt.runs.folder import write_json


class SceneFrame(Enum):
    """In which frame a scene is written."""

    CAPTURE = "capture"
    LOCAL = "local"


@dataclass(frozen=True)
class ExportOptions:
    """Write the scene of a run as a PLY that 3DGS viewers read."""

    run: Path
    """Folder of the run."""

    scene: Path
    """The file to write; one that exists is left alone."""

    frame: SceneFrame = SceneFrame.CAPTURE
    """capture for the capture's own frame; local for the one that it was trained in, around the cameras, where float32
    loses nothing, with a JSON file beside the scene that says where that frame lies in the capture's."""


def _export(options: ExportOptions) -> int:
    transform = options.scene.with_suffix(".frame.json")
    is_local = options.frame is SceneFrame.LOCAL
    for file in (options.scene, transform) if is_local else (options.scene,):
        if file.exists():
            raise InputError(f"{file} exists already; give another path")
    run = open_with_warnings(options.run)
    run.export(options.scene, local=is_local)
    what = f"{len(run.trained):,} Gaussians of step {run.steps} written to {options.scene}"
    if is_local:
        write_json(transform, {"origin": run.frame.origin, "unit": run.frame.unit})
        say(f"{what}, in the training frame: x = origin + unit * x_local, with both in {transform}")
        return 0
    far = f", where float32 holds positions to {run.frame.spacing:.2g}" if run.frame.is_far else ""
    instead = "; --frame local loses nothing" if run.frame.is_far else ""
    say(f"{what}, in the capture's own frame{far}{instead}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(positional(ExportOptions), _export, "export", words)
