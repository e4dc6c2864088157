"""``splatopt render``: pictures of a run or of a scene, and a video where ffmpeg is."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.open_scene import OpenedScene, SceneOptions, check_no_scene_options, is_scene_file, open_scene
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, say
from splatopt.data import Capture
from splatopt.data.camera_paths import orbit, spiral, surround
from splatopt.data.camera_tour import tour
from splatopt.report.views import check_free, remove_other_frames, video_path, write_video, write_views
from splatopt.runs.plugins import PluginFiles


class Path3D(Enum):
    """Where a rendered camera goes: what suits the capture, the test or training views, or a path of one kind."""

    AUTO = "auto"
    TEST = "test"
    TRAIN = "train"
    TOUR = "tour"
    ORBIT = "orbit"
    SPIRAL = "spiral"


@dataclass(frozen=True)
class RenderRunOptions:
    """Render a run, or a scene file, as PNGs; a camera path becomes a video as well where ffmpeg is present."""

    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; or a scene such as scene.ply, with --cameras."""

    cameras: Path | None = None
    """Folder of the capture whose cameras a scene file is rendered by, in whose frame it is."""

    path: Path3D = Path3D.AUTO
    """auto for an orbit where the cameras surround the scene and a tour elsewhere; tour for a round trip by where the
    cameras stood, orbit for a circle, spiral to sway before the scene, test for the held-out views, train for those
    that were trained on."""

    with_exposure: bool = False
    """Give each picture the exposure of its photograph, of a run with --exposure affine; for --path train, as no map is
    known of other views."""

    frames: int = 120
    """Views on a path. Unit: frames."""

    fps: int = 30
    """Speed of the video. Unit: frames per second."""

    out: Path | None = None
    """Folder of the pictures; when None, renders/<path> in the run's folder, whose pictures are replaced, and
    renders/<scene>/<path> here for a scene file."""

    renderer: str | None = None
    """What renders: auto, native, reference, triton or gsplat; the run's own when None."""

    device: str | None = None
    """Where: auto, cpu, cuda or cuda:N; where the run was made when None."""

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""

    scene: Annotated[SceneOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(
        default_factory=SceneOptions
    )


def _render(options: RenderRunOptions) -> int:
    if options.fps < 1:
        raise InputError(f"--fps must be at least 1, got {options.fps}")
    if not is_scene_file(options.run):
        check_no_scene_options(options.scene, options.cameras, "--cameras")
        opened, renders = _opened_run(options)
    elif options.cameras is None:
        raise InputError(
            f"{options.run} is a scene without cameras; give the folder of its capture with --cameras, or the folder "
            "of a run"
        )
    else:
        opened = open_scene(options.run, options.cameras, options.scene, options.renderer, options.device)
        renders = None
    objective, maps = opened.objective, None
    if options.with_exposure:
        if options.path is not Path3D.TRAIN or objective.exposure is None:
            raise InputError(
                "--with-exposure is for --path train of a run that was trained with --exposure affine, the maps being "
                "those of its photographs; leave it out"
            )
        maps = objective.exposure.maps[list(opened.capture.split.train)]
    path, cameras = _path(options, opened.capture)
    folder = options.out or (renders or Path("renders") / options.run.stem) / path.value
    if options.out or renders is None:
        check_free(folder, cameras)
    else:
        remove_other_frames(folder, cameras, path.value)
    pictures = write_views(folder, objective.cloud, cameras, objective.renderer, objective.options, maps=maps)
    say(f"{len(pictures)} pictures in {folder}")
    if path not in (Path3D.TEST, Path3D.TRAIN):
        video = write_video(folder, pictures, video_path(folder), options.fps)
        say(f"video: {video}" if video else "no video: ffmpeg is not on the search path")
    return 0


def _opened_run(options: RenderRunOptions) -> tuple[OpenedScene, Path]:
    """Open a run; return its scene beside its capture, and where its pictures go."""
    run = open_with_warnings(options.run, options.renderer, options.device)
    capture = run.open_capture()
    differs = run.difference_from(capture)
    if differs:
        where = f"{capture.path} is no longer what the run was trained on"
        say(f"splatopt: warning: {where}: {differs}; it is rendered from there all the same", file=sys.stderr)
    return OpenedScene(run.objective(capture), run.refined(capture)), run.folder.path / "renders"


def _path(options: RenderRunOptions, capture: Capture) -> tuple[Path3D, list[Camera]]:
    """Return the path that was asked for, or that suits the capture, and its cameras."""
    cameras, path, frames = [capture.cameras[view] for view in capture.split.train], options.path, options.frames
    if path is Path3D.AUTO:
        path = Path3D.ORBIT if surround(cameras) else Path3D.TOUR
        why = {
            Path3D.ORBIT: "an orbit, as the cameras surround the scene",
            Path3D.TOUR: "a tour by where the cameras stood, as they do not surround the scene",
        }
        say(f"path: {why[path]}")
    match path:
        case Path3D.ORBIT:
            return path, orbit(cameras, frames)
        case Path3D.SPIRAL:
            return path, spiral(cameras, frames)
        case Path3D.TOUR:
            return path, tour(cameras, frames)
        case Path3D.TRAIN:
            return path, cameras
        case _:
            return path, [capture.cameras[view] for view in capture.split.test]


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(RenderRunOptions), _render, "render", words)
