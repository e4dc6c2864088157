"""Rendered views as picture files, and a video of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder, new_file, partial_path, sweep
from splatopt.raster.renderer import Renderer
from splatopt.raster.threads import quiet_torch
from splatopt.raster.types import Gaussians, RenderOptions
from splatopt.runs.pictures import file_names, write_picture
from splatopt.scene.exposure import apply_map

_LISTING = ".frames.txt.partial"
"""What ffmpeg is told; it goes away with ffmpeg."""


def write_views(
    folder: Path,
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    renderer: Renderer,
    options: RenderOptions,
    watch: Callable[[int], None] | None = None,
    *,
    maps: Float64[Tensor, "views 3 4"] | None = None,
) -> list[Path]:
    """Render ``cameras`` and write one PNG each.

    Args:
        folder: Where to; made if absent.
        gaussians: What is rendered.
        cameras: Their names give the files' names.
        renderer: What renders.
        options: How it is rendered.
        watch: Called after each view with the number of views done.
        maps: Colour maps that the pictures are given, one per camera; none when None.

    Returns:
        The files, in the order of ``cameras``.
    """
    make_folder(folder)
    written = []
    names = file_names(cameras)
    for done, (camera, name) in enumerate(zip(cameras, names, strict=True), start=1):
        with quiet_torch(renderer):
            image = renderer.render(gaussians, camera, options).image
        if maps is not None:
            image = apply_map(maps[done - 1], image)
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy()
        write_picture(folder / name, pixels)
        written.append(folder / name)
        if watch:
            watch(done)
    return written


def check_free(folder: Path, cameras: Sequence[Camera]) -> None:
    """Raise InputError where a picture of ``cameras``, or their video, would replace a file; parts of them go away."""
    files = [*(folder / name for name in file_names(cameras)), video_path(folder)]
    sweep([*(partial_path(path) for path in files), folder / _LISTING])
    for path in files:
        if path.exists():
            raise InputError(f"{path} exists already; give another folder with --out")


def remove_other_frames(folder: Path, cameras: Sequence[Camera], path: str) -> None:
    """Remove what a longer orbit or spiral left in ``folder``, a run's own: numbered frames of none of ``cameras``."""
    kept = set(file_names(cameras))
    for file in folder.glob(f"{path}-*.png"):
        if file.name not in kept and re.fullmatch(rf"{path}-\d{{4,}}\.png", file.name):
            file.unlink()


def video_path(folder: Path) -> Path:
    """Return where the video of the pictures in ``folder`` lies: beside the folder, under its name."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.parent / f"{named.name or 'video'}.mp4"


def write_video(folder: Path, pictures: Sequence[Path], path: Path, frames_per_second: int = 30) -> Path | None:
    """Join ``pictures`` to an MP4 with ffmpeg.

    Args:
        folder: Where the pictures lie.
        pictures: In order, all of one size.
        path: The video.
        frames_per_second: Speed.

    Returns:
        The video, or None where ffmpeg is not on the search path.

    Raises:
        InputError: ffmpeg failed; its last line is passed on.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    # ffmpeg would read a name such as "-a.mp4" as an option.
    path = path.absolute()
    listing, partial = folder / _LISTING, partial_path(path)
    frames = "".join(f"file '{picture.name}'\nduration {1 / frames_per_second}\n" for picture in pictures)
    # H.264 in its common form needs even sides.
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    command = [program, "-y", "-loglevel", "error", "-f", "concat", "-safe", "0", "-i", str(listing)]
    command += ["-r", str(frames_per_second), "-vf", even, "-pix_fmt", "yuv420p", "-f", "mp4", str(partial)]
    sweep([listing, partial])
    try:
        with new_file(listing) as file:
            file.write(frames.encode())
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"ffmpeg could not make {path} ({reason}); the pictures are in {folder}")
        partial.replace(path)
    finally:
        sweep([listing, partial])
    return path
