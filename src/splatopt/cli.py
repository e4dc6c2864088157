"""The command line: parse, call, print.

Each command is a file of ``splatopt.commands``, imported when it is asked for, so that ``splatopt --help`` is quick.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from splatopt.core.checks import InputError, nearest_names, say
from splatopt.core.stop_signals import handled_stop_signals
from splatopt.core.version import __version__

_COMMANDS = {
    "train": ("train", "train a scene from a capture"),
    "eval": ("evaluate", "score the held-out views of a run, or of a capture by a scene"),
    "render": ("render", "render a run or a scene along a path of cameras, or its views"),
    "prune": ("prune", "remove Gaussians from a run: a new run with fewer, and quality against their number"),
    "export": ("export", "write the scene of a run for viewers: PLY, SPZ, SOG, a web page"),
    "convert": ("convert", "write a scene file in another format, or as a web page"),
    "report": ("report", "write a page with a run's scores, curves and pictures"),
    "view": ("view", "look at a run, a scene or a capture in the browser"),
    "bench": ("bench", "compare optimizers on scenes: a suite of runs, tables and one page"),
    "data": ("data", "make captures of random scenes: data make --scenes 200 --out DIR"),
    "meta-train": ("meta_train", "train the network of the learned optimizer on synthetic scenes"),
    "fit": ("fit", "fit a neural field to an image, a mesh or a capture"),
    "diagnose": ("diagnose", "measure the curvature of neural fields, and around a run's steps"),
    "poses": ("poses", "find the camera poses of photographs or a video: a capture to train on"),
    "inspect": ("inspect", "say what a capture holds"),
    "demo": ("demo", "make a small capture, train it and write a page: half a minute to see what this is"),
    "doctor": ("doctor", "say what this machine has"),
}
"""The file of each command in ``splatopt.commands``, and a line of help."""

_USAGE = """usage: splatopt COMMAND ...

Train 3D Gaussian scenes from photographs, and fit neural fields, with any optimizer.

commands:
{commands}

options:
  -h, --help   show this message
  --version    show the version

splatopt COMMAND --help explains a command.
"""


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
        with handled_stop_signals(patient="WORLD_SIZE" in os.environ, for_good=arguments is None):
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
        if not command:
            raise InputError(f"a command is missing; {nearest_names('', _COMMANDS)}")
        raise InputError(f"there is no command {command!r}; {nearest_names(command, _COMMANDS)}")
    _check_launch(command)
    return importlib.import_module(f"splatopt.commands.{_COMMANDS[command][0]}").main(rest)


def _check_launch(command: str) -> None:
    """Refuse a command that several processes would each do as a whole."""
    if command == "train" or "WORLD_SIZE" not in os.environ:
        return
    from splatopt.core.processes import find_launch

    if find_launch().world_size > 1:
        raise InputError(f"splatopt {command} does not share its work among processes; run it without torchrun")


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<11}{help}" for name, (_, help) in _COMMANDS.items()))


def _complain(message: str) -> None:
    say(f"splatopt: {message}", file=sys.stderr)
