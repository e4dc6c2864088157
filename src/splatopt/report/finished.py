"""The page of a run that has just come to its end."""

from __future__ import annotations

from pathlib import Path

from splatopt.report.pictures import run_pictures
from splatopt.report.scene_page import write_report
from splatopt.train.machine import Machine, open_machine
from splatopt.train.result import TrainResult


def report_finished(result: TrainResult, machine: Machine | None = None, *, title: str | None = None) -> Path:
    """Write ``report.html`` into the folder of a run, with pictures of a few held-out views.

    Args:
        result: What the run came to; its capture is not read again.
        machine: What renders; the one that the configuration names when None.
        title: Heading; the capture's name when None.

    Returns:
        Path of the page.
    """
    capture, cloud = result.capture.localised(result.frame), result.cloud.in_local(result.frame)
    pictures = run_pictures(result.config, capture, cloud, result.steps, machine or open_machine(result.config))
    return write_report(result.folder, pictures, title=title)
