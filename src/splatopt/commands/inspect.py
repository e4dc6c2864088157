"""``splatopt inspect``: what a capture holds, what is missing, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import cut, say, shown
from splatopt.data import CaptureOptions, inspect_capture
from splatopt.metrics.image import SSIM_WINDOW
from splatopt.runs.plugins import PluginFiles
from splatopt.runs.program import program


@dataclass(frozen=True)
class InspectOptions:
    """Say what a capture holds, what is missing, and what to type next."""

    capture: Path
    """Folder of the capture, or the transforms.json in it: COLMAP, nerfstudio, instant-ngp, Blender, LLFF, Polycam or
    Record3D."""

    images: str | None = None
    """Photographs of this folder beside images, such as images_4, with the cameras rescaled to their size."""

    downscale: int = 1
    """Photographs this many times smaller. Unit: factor."""

    max_side: int | None = None
    """Shrink photographs until their longer side has at most so many pixels; 0 keeps all pixels. When None, 1600
    without --downscale, and all with it. Unit: pixels. Source: 3DGS."""

    test_every: int = 8
    """Every so many-th view by name is a test view. Unit: views."""

    plugins: PluginFiles = ()
    """A Python file that registers a reader of captures; give it once for each file."""


def _inspect(options: InspectOptions) -> int:
    found = inspect_capture(
        options.capture,
        CaptureOptions(
            images=options.images,
            downscale=options.downscale,
            max_side=options.max_side,
            test_every=options.test_every,
        ),
        min_side=SSIM_WINDOW,
    )
    sizes = ", ".join(f"{size.width}x{size.height} ({size.views})" for size in found.sizes) or "none"
    rows = {
        "capture": f"{found.path} ({found.kind})",
        "views": str(found.views),
        "sizes": sizes,
        "camera model": ", ".join(found.camera_models) or "none",
        "points": f"{found.points:,}" + (f" ({shown(found.points_file)})" if found.points_file else ""),
        "extent": f"{found.extent:.4g} world units",
        "split": f"{found.split}: {found.train} train, {found.test} test" if found.split else "none",
        "missing": _listed(found.missing),
        "truncated": _listed(found.truncated),
    }
    for name, value in rows.items():
        say(f"{name:<13}{value}")
    used = [str(one) for one in found.found]
    for label, sentences in (("found", used), ("warning", found.warnings), ("problem", found.problems)):
        for sentence in sentences:
            say(f"{label:<13}{sentence}")
    given = "".join(f" --plugin {shlex.quote(str(one))}" for one in options.plugins)
    command = f"{program()} {found.next_command.removeprefix('splatopt ')}{given}"
    say(f"{'once mended' if found.problems else 'next':<13}{command}")
    return 0


def _listed(names: Sequence[str], max_names: int = 10) -> str:
    """Names with their count, the first few spelt out."""
    if not names:
        return "none"
    more = f", and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"{len(names)}: {', '.join(cut(name) for name in names[:max_names])}{more}"


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(InspectOptions), _inspect, "inspect", words)
