"""``splatopt data make``: what the command line asks for and prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatopt.commands.parsing import run_command
from splatopt.core.checks import InputError, nearest_names, say, shown
from splatopt.data.synthetic.folder import write_scenes
from splatopt.data.synthetic.scene import SceneOptions


@dataclass(frozen=True)
class MakeOptions(SceneOptions):
    """Make captures of random objects, rooms and terrains, for meta-training; finished scenes are kept."""

    scenes: int = 200
    """Scenes in all, those already there included. Unit: scenes. Source: see docs/data.md."""

    out: Path = Path("synthetic")
    """Folder to write scene-0000, scene-0001, … into."""

    seed: int = 0
    """Decides on everything; scene k does not depend on how many are made."""

    def __post_init__(self) -> None:
        """Leave the checks to the scene's own options, so that a mistake is one sentence and not the parser's box."""


def make(options: MakeOptions) -> int:
    """Write the scenes and say where and how fast."""
    started, made = time.perf_counter(), 0
    for index, (folder, kept) in enumerate(write_scenes(options.out, options.scenes, options.seed, _scene(options))):
        made += not kept
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{index + 1} of {options.scenes}: {shown(folder)}")
            sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    pace = f", {(time.perf_counter() - started) / made:.1f} s a scene" if made else ""
    say(f"{made} scenes made and {options.scenes - made} kept in {options.out}{pace}")
    return 0


def _scene(options: MakeOptions) -> SceneOptions:
    return SceneOptions(options.side, options.views, options.points, options.samples, options.kinds)


FORMS: dict[str, tuple[type, Callable[[Any], int]]] = {"make": (MakeOptions, make)}
"""Forms of ``splatopt data`` by their word."""


def chosen(words: Sequence[str]) -> tuple[str, type, Callable[[Any], int], list[str]]:
    """Return the name, options, function and remaining words of the form that ``words`` ask for.

    Raises:
        InputError: There is no such form.
    """
    word = words[0] if words else ""
    if word in ("-h", "--help"):
        word, words = "make", ["make", *words]
    if word not in FORMS:
        raise InputError(f"after data comes one of its forms, got {word!r}; {nearest_names(word, FORMS)}")
    options, call = FORMS[word]
    return f"data {word}", options, call, list(words[1:])


def main(words: list[str]) -> int:
    """Run the command on the words after its name; returns its exit code."""
    name, options, run, rest = chosen(words)
    return run_command(options, run, name, rest)
