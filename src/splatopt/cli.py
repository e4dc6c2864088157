"""The command line: parse, call, print.

Commands are functions with a dataclass of options each. What is heavy is imported by the command that
needs it, so that ``splatopt --help`` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatopt import __version__
from splatopt.core.checks import InputError, cut, say, shown
from splatopt.core.requests import answered

if TYPE_CHECKING:
    from splatopt.train.run import Run

_USAGE = """usage: splatopt COMMAND ...

Train 3D Gaussian scenes from photographs, and fit neural fields, with any optimizer.

commands:
{commands}

options:
  -h, --help   show this message
  --version    show the version

splatopt COMMAND --help explains a command.
"""


class Path3D(Enum):
    """Where a rendered camera goes: the test views, a circle, or a swaying one."""

    TEST = "test"
    ORBIT = "orbit"
    SPIRAL = "spiral"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The words after ``splatopt``; those of the process when None.

    Returns:
        0 when done, 2 on bad input, a full disk or a file that cannot be written, 130 on a request to stop: Ctrl-C,
        SIGTERM, or the end of the terminal. Where the request finds nothing to finish, the process ends here.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is escaped, and ends nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # A launcher sends Ctrl-C on to us, who have it already.
        with answered(patient="WORLD_SIZE" in os.environ, for_good=arguments is None):
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except InputError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing more may be written, not even at exit.
        sys.stdout = None
        return 0
    except OSError as error:
        _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 2
    except KeyboardInterrupt as error:
        _complain(str(error) or "stopped")
        return 130


def _dispatch(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0
    if command in ("--version", "version"):
        say(f"splatopt {__version__}")
        return 0
    if command not in _COMMANDS:
        from splatopt.core.checks import nearest_names

        if not command:
            raise InputError(f"a command is missing; {nearest_names('', _COMMANDS)}")
        raise InputError(f"there is no command {command!r}; {nearest_names(command, _COMMANDS)}")
    _check_launch(command)
    return _COMMANDS[command][0](rest)


def _check_launch(command: str) -> None:
    """Refuse a command that several processes would each do as a whole."""
    if command == "train" or "WORLD_SIZE" not in os.environ:
        return
    from splatopt.core.processes import find_launch

    if find_launch().count > 1:
        raise InputError(f"splatopt {command} does not share its work among processes; run it without torchrun")


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<11}{help}" for name, (_, help) in _COMMANDS.items()))


def _complain(message: str) -> None:
    say(f"splatopt: {message}", file=sys.stderr)


def _parse(options: Any, command: str, words: list[str]) -> Any:
    """Parse ``words`` into the dataclass ``options``."""
    import tyro

    from splatopt.train.parsing import parse_options

    forms = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.EnumChoicesFromValues)
    return parse_options(options, f"splatopt {command}", words, config=forms)


def _command(options: Callable[[], Any], run: Callable[[Any], int], name: str) -> Callable[[list[str]], int]:
    """Join the dataclass of a command's options and the function that carries it out."""

    def call(words: list[str]) -> int:
        from splatopt.train.parsing import Answered

        try:
            parsed = _parse(options(), name, words)
        except Answered:
            return 0
        return run(parsed)

    return call


# ---------------------------------------------------------------------- train


def _train(words: list[str]) -> int:
    from splatopt.core.processes import find_launch
    from splatopt.train.launched import quietly
    from splatopt.train.scene_command import run_train, train_options

    def command(begun: Callable[[], None]) -> int:
        def run(parsed: Any) -> int:
            begun()
            return run_train(parsed)

        return _command(lambda: train_options(words), run, "train")(words)

    return quietly(command, find_launch())


# ---------------------------------------------------------------------- eval, render, export, report


@dataclass(frozen=True)
class EvalOptions:
    """Score the held-out views of a run and write its eval.json."""

    run: Path
    """Folder of the run."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""


@dataclass(frozen=True)
class RenderRunOptions:
    """Render views of a run as PNGs; a camera path becomes a video as well where ffmpeg is present."""

    run: Path
    """Folder of the run."""

    path: Path3D = Path3D.TEST
    """test for the held-out views, orbit for a circle around the scene, spiral to sway before it."""

    frames: int = 120
    """Views on an orbit or a spiral. Unit: frames."""

    fps: int = 30
    """Speed of the video. Unit: frames per second."""

    out: Path | None = None
    """Folder of the pictures; renders/<path> in the run's folder, whose pictures are replaced, when None."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""


@dataclass(frozen=True)
class ExportOptions:
    """Write the scene of a run as a PLY that 3DGS viewers read."""

    run: Path
    """Folder of the run."""

    scene: Path
    """The file to write; one that exists is left alone."""


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


def _open(folder: Path, renderer: str | None = None, device: str | None = None) -> Run:
    from splatopt.train.run import open_run

    run = open_run(folder, renderer, device)
    for warning in run.warnings:
        say(f"splatopt: warning: {warning}", file=sys.stderr)
    return run


def _eval(options: EvalOptions) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    run = _open(options.run, options.renderer, options.device)
    scores = run.evaluate(run.open_capture())
    table = Table("view", "PSNR, dB", "SSIM", title=f"{scores.subset} views, split {scores.split}, step {run.steps}")
    for view in scores.views:
        table.add_row(Text(shown(view.name)), f"{view.psnr:.2f}", f"{view.ssim:.4f}")
    table.add_section()
    table.add_row("mean", f"{scores.psnr:.2f}", f"{scores.ssim:.4f}")
    Console().print(table)
    say(f"written to {run.folder.evaluation}")
    return 0


def _render(options: RenderRunOptions) -> int:
    from splatopt.train.trajectory import orbit, spiral
    from splatopt.train.views import check_free, remove_other_frames, video_path, write_video, write_views

    if options.fps < 1:
        raise InputError(f"--fps must be at least 1, got {options.fps}")
    run = _open(options.run, options.renderer, options.device)
    capture = run.open_capture()
    differs = run.difference_from(capture)
    if differs:
        where = f"{capture.path} is no longer what the run was trained on"
        say(f"splatopt: warning: {where}: {differs}; it is rendered from there all the same", file=sys.stderr)
    objective = run.objective(capture)
    train_cameras = [capture.cameras[view] for view in capture.split.train]
    match options.path:
        case Path3D.ORBIT:
            cameras = orbit(train_cameras, options.frames)
        case Path3D.SPIRAL:
            cameras = spiral(train_cameras, options.frames)
        case Path3D.TEST:
            cameras = [capture.cameras[view] for view in capture.split.test]
    folder = options.out or run.folder.path / "renders" / options.path.value
    if options.out:
        check_free(folder, cameras)
    else:
        remove_other_frames(folder, cameras, options.path.value)
    pictures = write_views(folder, objective.cloud, cameras, objective.renderer, objective.options)
    say(f"{len(pictures)} pictures in {folder}")
    if options.path is not Path3D.TEST:
        video = write_video(folder, pictures, video_path(folder), options.fps)
        say(f"video: {video}" if video else "no video: ffmpeg is not on the search path")
    return 0


def _export(options: ExportOptions) -> int:
    if options.scene.exists():
        raise InputError(f"{options.scene} exists already; give another path")
    run = _open(options.run)
    run.export(options.scene)
    say(f"{len(run.cloud):,} Gaussians of step {run.steps} written to {options.scene}")
    return 0


def _report(options: ReportOptions) -> int:
    from splatopt.train.folder import FIELD_FORMAT, RunFolder
    from splatopt.train.pictures import run_pictures
    from splatopt.train.report import write_report
    from splatopt.train.setup import open_renderer

    if options.views < 0:
        raise InputError(f"--views must be at least 0, got {options.views}")
    if RunFolder(options.run, FIELD_FORMAT).is_run:
        RunFolder(options.run, FIELD_FORMAT).sweep_if_idle()
        say(f"written to {_of_fields('report_fit', options.run, options.views)}")
        return 0
    run = _open(options.run, options.renderer, options.device)
    pictures = []
    if options.views:
        renderer, capture = open_renderer(run.config), run.open_capture()
        run.check_capture(capture, "the pictures (which --views 0 leaves out)")
        pictures = run_pictures(run.config, capture, run.cloud, run.steps, renderer, options.views)
    say(f"written to {write_report(run.folder.path, pictures)}")
    return 0


# ---------------------------------------------------------------------- neural fields


def _of_fields(name: str, *arguments: Any) -> Any:
    """Call what lies in the module of the commands about fields, which is loaded only then."""
    from splatopt.train import field_command

    return getattr(field_command, name)(*arguments)


# ---------------------------------------------------------------------- inspect, doctor


@dataclass(frozen=True)
class InspectOptions:
    """Say what a capture holds, what is missing, and what to type next."""

    capture: Path
    """Folder of the capture: COLMAP, Blender, nerfstudio or instant-ngp."""

    downscale: int = 1
    """Photographs this many times smaller. Unit: factor."""

    max_side: int | None = None
    """Shrink photographs until their longer side has at most so many pixels. Unit: pixels."""

    test_every: int = 8
    """Every so many-th view by name is a test view. Unit: views."""


def _inspect(options: InspectOptions) -> int:
    from splatopt.data import CaptureOptions, inspect_capture
    from splatopt.train.program import program

    found = inspect_capture(
        options.capture,
        CaptureOptions(downscale=options.downscale, max_side=options.max_side, test_every=options.test_every),
    )
    sizes = ", ".join(f"{size.width}x{size.height} ({size.views})" for size in found.sizes) or "none"
    rows = {
        "capture": f"{found.path} ({found.kind})",
        "views": str(found.views),
        "sizes": sizes,
        "camera model": ", ".join(found.camera_models) or "none",
        "points": f"{found.points:,}",
        "extent": f"{found.extent:.4g} world units",
        "split": f"{found.split}: {found.train} train, {found.test} test" if found.split else "none",
        "missing": _listed(found.missing),
        "truncated": _listed(found.truncated),
    }
    for name, value in rows.items():
        say(f"{name:<13}{value}")
    for label, sentences in (("warning", found.warnings), ("problem", found.problems)):
        for sentence in sentences:
            say(f"{label:<13}{sentence}")
    command = f"{program()} {found.next_command.removeprefix('splatopt ')}"
    say(f"{'once mended' if found.problems else 'next':<13}{command}")
    return 0


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Names with their count, the first few spelt out."""
    if not names:
        return "none"
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)}: {', '.join(cut(name) for name in names[:most])}{more}"


@dataclass(frozen=True)
class DoctorOptions:
    """Say what this machine has, and which renderer will be used and why."""


def _doctor(_: DoctorOptions) -> int:
    from splatopt.train.doctor import findings

    for name, value in findings().items():
        say(f"{name:<10}{value}")
    return 0


def _bench(words: list[str]) -> int:
    from splatopt.bench.command import chosen

    name, options, run, rest = chosen(words)
    return _command(lambda: options, run, name)(rest)


def _data(words: list[str]) -> int:
    from splatopt.data.made.command import chosen

    name, options, run, rest = chosen(words)
    return _command(lambda: options, run, name)(rest)


def _meta_train(words: list[str]) -> int:
    import shlex

    from splatopt.meta.command import MetaTrainOptions, meta_train
    from splatopt.train.program import program

    typed = f"{program()} meta-train {shlex.join(words)}".rstrip()
    return _command(lambda: MetaTrainOptions, lambda options: meta_train(options, typed), "meta-train")(words)


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train a scene from a capture"),
    "eval": (_command(lambda: _positional(EvalOptions), _eval, "eval"), "score the held-out views of a run"),
    "render": (
        _command(lambda: _positional(RenderRunOptions), _render, "render"),
        "render a run's views, an orbit or a spiral",
    ),
    "export": (_command(lambda: _positional(ExportOptions), _export, "export"), "write the scene of a run as PLY"),
    "report": (
        _command(lambda: _positional(ReportOptions), _report, "report"),
        "write a page with a run's scores, curves and pictures",
    ),
    "bench": (_bench, "compare optimizers on scenes: a suite of runs, tables and one page"),
    "data": (_data, "make captures of random scenes: data make --scenes 200 --out DIR"),
    "meta-train": (_meta_train, "train the network of the learned optimizer on made scenes"),
    "fit": (
        _command(lambda: _of_fields("fit_options"), lambda parsed: _of_fields("run_fit", parsed), "fit"),
        "fit a neural field to an image, a mesh or a capture",
    ),
    "diagnose": (
        _command(lambda: _of_fields("diagnose_options"), lambda parsed: _of_fields("run_diagnose", parsed), "diagnose"),
        "measure the curvature of neural fields",
    ),
    "inspect": (_command(lambda: _positional(InspectOptions), _inspect, "inspect"), "say what a capture holds"),
    "doctor": (_command(lambda: DoctorOptions, _doctor, "doctor"), "say what this machine has"),
}


def _positional(options: Any) -> Any:
    import tyro

    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(options)
