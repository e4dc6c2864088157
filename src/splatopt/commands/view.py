"""``splatopt view``: a run, a scene or a capture in the browser."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from splatopt.commands.open_run import open_with_warnings
from splatopt.commands.open_scene import is_scene_file
from splatopt.commands.parsing import load_given, positional, run_command
from splatopt.core.checks import say
from splatopt.runs.folder import RunFolder
from splatopt.runs.plugins import PluginFiles
from splatopt.scene.scene_files import load_scene
from splatopt.viewer.serving import ServingOptions


@dataclass(frozen=True)
class ViewOptions:
    """Look at a run, a scene or a capture in the browser, until Ctrl-C."""

    what: Annotated[Path, tyro.conf.arg(metavar="RUN|SCENE.ply|CAPTURE")]
    """Folder of a run, a scene such as scene.ply, or the folder of a capture."""

    serving: Annotated[ServingOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(
        default_factory=ServingOptions
    )

    plugins: PluginFiles = ()
    """A Python file that registers the reader of the capture; give it once for each file."""


def _view(options: ViewOptions) -> int:
    door = options.serving.open()
    from splatopt.viewer.still import show, still_capture, still_run, still_scene

    if is_scene_file(options.what):
        warnings: list[str] = []
        still = still_scene(load_scene(options.what, warnings), options.what.name)
        for warning in warnings:
            say(f"splatopt: warning: {warning}", file=sys.stderr)
    elif RunFolder(options.what).config.is_file():
        still = still_run(open_with_warnings(options.what))
    else:
        still = still_capture(options.what)
    say(f"open {door.link} in a browser; Ctrl-C ends it", flush=True)
    show(still, door, lambda sentence: say(f"splatopt: {sentence}", file=sys.stderr))
    return 0


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    load_given(words)
    return run_command(positional(ViewOptions), _view, "view", words)
