"""``splatopt export``: the scene of a run as PLY."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import positional, run_command
from splatopt.core.checks import InputError, say


@dataclass(frozen=True)
class ExportOptions:
    """Write the scene of a run as a PLY that 3DGS viewers read."""

    run: Path
    """Folder of the run."""

    scene: Path
    """The file to write; one that exists is left alone."""


def _export(options: ExportOptions) -> int:
    if options.scene.exists():
        raise InputError(f"{options.scene} exists already; give another path")
    run = open_with_warnings(options.run)
    run.export(options.scene)
    far = f", where float32 holds positions to {run.frame.spacing:.2g}" if run.frame.is_far else ""
    say(f"{len(run.cloud):,} Gaussians of step {run.steps} written to {options.scene}, in the capture's own frame{far}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    return run_command(positional(ExportOptions), _export, "export", words)
