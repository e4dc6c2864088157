"""``splatopt report``: a page with scores, curves and pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splatopt.commands.fit import report_fit
from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import InputError, say
from splatopt.report.pictures import run_pictures
from splatopt.report.scene_page import write_report
from splatopt.runs.folder import FIELD_FORMAT, RunFolder
from splatopt.runs.plugins import PluginFiles


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html into a run's folder: scores, curves and pictures on one self-contained page."""

    run: Path
    """Folder of the run."""

    views: int = 4
    """Views shown side by side at most, spread over the held-out ones; with 0 the capture is not needed.
    Unit: views."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""


def _report(options: ReportOptions) -> int:
    if options.views < 0:
        raise InputError(f"--views must be at least 0, got {options.views}")
    if RunFolder(options.run, FIELD_FORMAT).is_run:
        RunFolder(options.run, FIELD_FORMAT).sweep_if_idle()
        say(f"written to {report_fit(options.run, options.views)}")
        return 0
    run = open_with_warnings(options.run, options.renderer, options.device)
    pictures = []
    if options.views:
        machine, capture = run.machine, run.open_capture()
        run.check_capture(capture, "the pictures (which --views 0 leaves out)")
        pictures = run_pictures(run.config, capture, run.trained, run.steps, machine, options.views)
    say(f"written to {write_report(run.folder.path, pictures)}")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(ReportOptions), _report, "report", words)
