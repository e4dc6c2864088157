"""``splatopt render``: pictures of a run, and a video where ffmpeg is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import InputError, say
from splatopt.data.camera_paths import orbit, spiral
from splatopt.report.views import check_free, remove_other_frames, video_path, write_video, write_views
from splatopt.runs.plugins import PluginFiles


class Path3D(Enum):
    """Where a rendered camera goes: the test views, the training views, a circle, or a swaying one."""

    TEST = "test"
    TRAIN = "train"
    ORBIT = "orbit"
    SPIRAL = "spiral"


@dataclass(frozen=True)
class RenderRunOptions:
    """Render views of a run as PNGs; a camera path becomes a video as well where ffmpeg is present."""

    run: Path
    """Folder of the run."""

    path: Path3D = Path3D.TEST
    """test for the held-out views, train for those that were trained on, orbit for a circle around the scene, spiral to
    sway before it."""

    with_exposure: bool = False
    """Give each picture the exposure of its photograph, of a run with --exposure affine; for --path train, as no map is
    known of other views."""

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

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""


def _render(options: RenderRunOptions) -> int:
    if options.fps < 1:
        raise InputError(f"--fps must be at least 1, got {options.fps}")
    run = open_with_warnings(options.run, options.renderer, options.device)
    capture = run.open_capture()
    differs = run.difference_from(capture)
    if differs:
        where = f"{capture.path} is no longer what the run was trained on"
        say(f"splatopt: warning: {where}: {differs}; it is rendered from there all the same", file=sys.stderr)
    objective = run.objective(capture)
    if options.with_exposure and (options.path is not Path3D.TRAIN or objective.exposure is None):
        raise InputError(
            "--with-exposure is for --path train of a run that was trained with --exposure affine, the maps being "
            "those of its photographs; leave it out"
        )
    train_cameras = [capture.cameras[view] for view in capture.split.train]
    match options.path:
        case Path3D.ORBIT:
            cameras = orbit(train_cameras, options.frames)
        case Path3D.SPIRAL:
            cameras = spiral(train_cameras, options.frames)
        case Path3D.TEST:
            cameras = [capture.cameras[view] for view in capture.split.test]
        case Path3D.TRAIN:
            cameras = train_cameras
    folder = options.out or run.folder.path / "renders" / options.path.value
    if options.out:
        check_free(folder, cameras)
    else:
        remove_other_frames(folder, cameras, options.path.value)
    maps = objective.exposure.maps[list(capture.split.train)] if options.with_exposure and objective.exposure else None
    pictures = write_views(folder, objective.cloud, cameras, objective.renderer, objective.options, maps=maps)
    say(f"{len(pictures)} pictures in {folder}")
    if options.path not in (Path3D.TEST, Path3D.TRAIN):
        video = write_video(folder, pictures, video_path(folder), options.fps)
        say(f"video: {video}" if video else "no video: ffmpeg is not on the search path")
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(RenderRunOptions), _render, "render", words)
