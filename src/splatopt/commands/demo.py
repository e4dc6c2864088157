"""``splatopt demo``: a small procedural capture, trained on the CPU, with a page to look at.

``splatopt demo`` leaves a run's folder with three things more: the
capture it was trained on, ``metrics.json`` with the numbers, and ``report.html``. A folder that exists
is never touched: the next demo goes to ``runs/demo-2``, and says so.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from splatopt.commands.after_training import next_commands
from splatopt.commands.parsing import run_command
from splatopt.core.checks import InputError, shown
from splatopt.core.files import make_folder, own_folder, whole_folder
from splatopt.core.version import __version__
from splatopt.data import Capture
from splatopt.data.procedural import make_capture
from splatopt.raster.renderer import Renderer
from splatopt.report.finished import report_finished
from splatopt.runs.folder import write_json
from splatopt.runs.program import program
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import PROTOCOL
from splatopt.train.events import Event, Started
from splatopt.train.loop import train
from splatopt.train.machine import Machine, open_machine
from splatopt.train.progress import ProgressLine
from splatopt.train.result import TrainResult
from splatopt.train.setup import make_objective, open_capture, starting_cloud

_TIMED_VIEWS = 5
_SLOWDOWN = 1.8
"""A step near the end takes longer than a first gradient: Gaussians grow, bands are added, Adam acts."""


@dataclass(frozen=True)
class DemoOptions:
    """Make a small capture, train it on the CPU and write a page about it."""

    out: Path = Path("runs/demo")
    """Folder of the demo; where it exists, the next free of -2, -3, … is taken."""

    steps: int = 2000
    """Optimizer steps, fewer where the machine is too slow for ``seconds``. Unit: steps."""

    seconds: float = 45.0
    """Time that training may take by the estimate of the first gradients. Unit: seconds."""

    seed: int = 0
    """Seed of the capture and of the run."""

    views: int = 40
    """Photographs of the capture. Unit: views."""

    width: int = 240
    """Width of a photograph. Unit: pixels."""

    height: int = 180
    """Height of a photograph. Unit: pixels."""

    points: int = 8000
    """Points that the capture offers to start from. Unit: points."""

    renderer: str = "auto"
    """What renders: auto, native or reference."""

    def __post_init__(self) -> None:
        """Refuse what no demo can do."""
        for name in ("steps", "seconds", "views", "width", "height", "points"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"--{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoResult:
    """What a demo leaves.

    Attributes:
        folder: The demo's folder.
        run: The run's result.
        report: The page.
    """

    folder: Path
    run: TrainResult
    report: Path


def run_demo(options: DemoOptions, console: Console | None = None) -> DemoResult:
    """Make a capture, train it and leave a folder with scene, numbers, curves and pictures.

    Args:
        options: What to do.
        console: Where progress is told; nowhere when None.

    Raises:
        InputError: The folder cannot be made.
        InterruptedRunError: Ctrl-C; the run can be resumed.
    """
    console = console or Console(quiet=True)
    out = free_folder(options.out)
    if out != options.out:
        _tell(console, f"{options.out} is kept as it is; this demo goes to {out}")
    config = TrainConfig.of(
        out / "capture",
        out=out,
        seed=options.seed,
        steps=options.steps,
        renderer=options.renderer,
        device="cpu",
    )
    machine = open_machine(config)
    make_folder(out.parent)
    # A run starts in an empty folder only, so the capture is made beside it and copied in when the run begins.
    workshop = _workshop(out)
    with own_folder(workshop, f"the demo {out}"):
        made = workshop / "capture"
        _tell(console, f"making {options.views} photographs of {options.width}x{options.height} pixels")
        make_capture(made, options.seed, options.views, options.width, options.height, options.points)
        capture = open_capture(config.changed(capture=str(made)))
        config = _within_budget(config, capture, machine.renderer, options.seconds)

        def keep_capture(event: Event) -> None:
            if isinstance(event, Started):
                with whole_folder(out / "capture", f"the demo {out}") as copy:
                    shutil.copytree(made, copy, dirs_exist_ok=True)

        result = train(config, [keep_capture, ProgressLine(console)], capture=capture, renderer=machine.renderer)
        return _leave(out, result, machine)


def _workshop(out: Path) -> Path:
    """Where a demo's capture is made."""
    return out.with_name(f".{out.name}.making")


def free_folder(wanted: Path) -> Path:
    """Return ``wanted``, or the first of ``wanted-2``, ``wanted-3``, … that does not exist."""
    candidate, number = wanted, 1
    while candidate.exists():
        if _workshop(candidate).is_dir():
            # A demo that was killed could not clear this away; one that is at work still needs it.
            with contextlib.suppress(InputError), own_folder(_workshop(candidate), ""):
                pass
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate


def _within_budget(config: TrainConfig, capture: Capture, renderer: Renderer, seconds: float) -> TrainConfig:
    """Lower the steps to what ``seconds`` allow by the time of a few gradients; a fast machine keeps them all."""
    generator = torch.Generator().manual_seed(config.schedule.seed)
    objective = make_objective(config, capture, starting_cloud(config, capture, generator), renderer)
    times = []
    for view in capture.split.train[:_TIMED_VIEWS]:
        objective.gradient([view])  # decodes the photograph and warms the buffers
        began = time.perf_counter()
        objective.gradient([view])
        times.append(time.perf_counter() - began)
    affordable = int(seconds / (_SLOWDOWN * statistics.median(times)))
    return config.changed(steps=max(1, min(config.schedule.total_steps, affordable)))


def _leave(out: Path, result: TrainResult, machine: Machine) -> DemoResult:
    """Write metrics.json and the page."""
    before, after = result.before, result.after
    write_json(
        out / "metrics.json",
        {
            "before": {"psnr": before.psnr, "ssim": before.ssim} if before else None,
            "after": {"psnr": after.psnr, "ssim": after.ssim},
            "seconds": result.seconds,
            "steps": result.steps,
            "gaussians": len(result.cloud),
            "views": {"train": len(result.capture.split.train), "test": len(result.capture.split.test)},
            "split": after.split,
            "subset": after.subset,
            "protocol": PROTOCOL,
            "optimizer": result.config.schedule.optimizer,
            "renderer": machine.renderer.name,
            "seed": result.config.schedule.seed,
            "version": __version__,
        },
    )
    report = report_finished(result, machine, title="A procedural scene, trained on the CPU")
    return DemoResult(out, result, report)


def _say(result: DemoResult, console: Console) -> None:
    """Print what came out, where it lies and what to type next."""
    run, folder = result.run, result.folder
    before = f"{run.before.psnr:.2f} → " if run.before else ""
    before_ssim = f"{run.before.ssim:.3f} → " if run.before else ""
    typed = program()
    lines = [
        "",
        f"held-out views: PSNR {before}{run.after.psnr:.2f} dB, SSIM {before_ssim}{run.after.ssim:.3f}; "
        f"{run.steps} steps in {run.seconds:.1f} s, {len(run.cloud)} Gaussians",
        "",
        "look at",
        f"  {folder / 'report.html'}   numbers, curves and pictures on one page",
        f"  {folder / 'scene.ply'}   the scene, for any viewer of 3D Gaussians",
        f"  {folder / 'metrics.json'}   the numbers",
        "",
        *next_commands(folder),
        "",
        "with your own photographs (a folder from COLMAP, nerfstudio, instant-ngp or Blender)",
        f"  {typed} inspect path/to/capture",
        f"  {typed} train path/to/capture --out runs/mine",
    ]
    for line in lines:
        _tell(console, line)


def _tell(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""

    def run(options: DemoOptions) -> int:
        console = Console()
        _say(run_demo(options, console), console)
        return 0

    return run_command(DemoOptions, run, "demo", words)
