"""``splatopt poses``: what the command line asks for and prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.commands.parsing import flat, positional, run_command
from splatopt.core.checks import cut, say
from splatopt.core.stop_signals import resume_hint
from splatopt.data.structure_from_motion.capture import PosedCapture, PoseOptions, pose_images, work_folder
from splatopt.runs.live_line import LiveLine
from splatopt.runs.program import program

_MAX_NAMES = 5


@dataclass(frozen=True)
class PosesOptions:
    """Find the camera poses of photographs, or of a video's frames, by COLMAP's structure from motion, on the CPU.

    Writes a capture that splatopt train reads. Ended at any moment, the same command goes on.
    """

    source: Annotated[Path, tyro.conf.arg(metavar="PHOTOS_OR_VIDEO")]
    """A folder of photographs, or a video."""

    out: Path | None = None
    """Folder of the capture; one below captures/ that is named after what is given, when None."""

    search: flat(PoseOptions) = field(default_factory=PoseOptions)  # type: ignore[valid-type] # an annotation


def poses(options: PosesOptions, typed: str = "the same command") -> int:
    """Find the poses and print what came of it.

    Args:
        options: What to do.
        typed: What to type to go on.

    Raises:
        InputError: Something that was given cannot be used, or no poses were found.
        KeyboardInterrupt: We were asked to stop; the message says what is kept, and how to go on.
    """
    out = options.out or Path("captures") / _name_of(options.source)
    line, stage = LiveLine(), ""

    def watch(name: str, done: int, total: int) -> None:
        nonlocal stage
        if name != stage:
            stage = name
            line.restart()
        line.update(f"{name} {done}/{total}", done, total)

    def hint() -> str:
        kept = "what was done is kept in " + str(work_folder(out)) if work_folder(out).is_dir() else "nothing was done"
        return f"{kept}; go on with: {typed}"

    try:
        with resume_hint(hint):
            line.open()
            found = pose_images(options.source, out, options.search, watch)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}; {hint()}") from None
    finally:
        line.close()
    say(*report_lines(found))
    return 0


def report_lines(found: PosedCapture) -> list[str]:
    """Return what people read: what has a pose, what has none and what helps, and what to type next."""
    model = found.model
    lines = [
        f"{len(model.names)} of {found.images} photographs have a pose: {model.points:,} points, mean reprojection "
        f"error {model.reprojection_error:.2f} pixels, {model.cameras} camera{'s' if model.cameras > 1 else ''}"
    ]
    if found.without_pose:
        lines += [
            f"without a pose: {_listed(found.without_pose)}",
            "what helps: more photographs in between (each should share two thirds with the next), sharper ones, no "
            "bare walls and nothing that moves; a pose is found from details that several photographs share",
        ]
    if found.other_models:
        counts = ", ".join(str(count) for count in found.other_models)
        lines.append(
            f"left aside: {len(found.other_models)} other models, of {counts} photographs, that share too little with "
            "the largest; photographs that show both places would join them"
        )
    if found.unreadable:
        lines.append(f"not read: {_listed(found.unreadable)}; convert them to JPEG, or replace them")
    if found.masks:
        lines.append(f"masks: {found.masks} files taken along; training leaves out what they cover, the search did not")
    run = Path("runs") / found.folder.resolve().name
    command = shlex.join(["train", str(found.folder), "--out", str(run)])
    return [*lines, f"capture: {found.folder}", f"next: {program()} {command}"]


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{len(names)}: {', '.join(cut(name) for name in names[:_MAX_NAMES])}{more}"


def _name_of(source: Path) -> str:
    """Return what a capture of ``source`` is called: the name of the folder, or of the video without its ending."""
    whole = source.resolve()
    return (whole.name if whole.is_dir() else whole.stem) or "capture"


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    typed = f"{program()} poses {shlex.join(words)}".rstrip()
    return run_command(positional(PosesOptions), lambda options: poses(options, typed), "poses", words)
