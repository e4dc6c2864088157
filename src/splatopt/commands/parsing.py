"""Words of a command become its options, and a mistake in them one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from splatopt.core.checks import InputError, nearest_names
from splatopt.core.plugins import as_plugins

_RULE = re.compile(r"[─-]{3,}")
_INDENT = " " * 4


class HelpShown(Exception):  # noqa: N818 - no error: the parser has said all there is to say
    """Help was asked for, and has been printed."""


def parse_options(options: Any, program: str, words: Sequence[str], **settings: Any) -> Any:
    """Return ``words`` as an instance of ``options``.

    Args:
        options: A dataclass, or what tyro takes for one.
        program: The command as typed, for help.
        words: What follows it.
        settings: Further ones of ``tyro.cli``.

    Raises:
        InputError: The words are wrong: one sentence of what tyro shows as a box.
        HelpShown: Help was asked for.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(options, prog=program, args=list(words), **settings)
    except SystemExit as end:
        if end.code:
            sentence = _sentence(said.getvalue(), words)
            raise InputError(f"{sentence}{' See' if sentence.endswith('?') else '; see'} {program} --help") from None
        raise HelpShown from None
    sys.stderr.write(said.getvalue())
    return parsed


def _sentence(box: str, words: Sequence[str]) -> str:
    """Say in one sentence what tyro's ``box`` says of ``words``."""
    parts = _parts(box)
    text = " ".join(" ".join(parts[0]).split())
    explained = _options(parts[1]) if len(parts) > 1 else []
    said = text.rstrip(".")
    if text.startswith("Unrecognized options: "):
        said = _unknown(text.removeprefix("Unrecognized options: ").split(", "), [name for name, _ in explained])
    elif text.startswith("Missing from "):
        missing = [name for name, _ in _options(parts[0])]
        said = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    elif found := re.match(r"Missing value for argument '([^']+)'", text):
        said = f"{_long(found[1])} needs a value"
    elif found := re.match(r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \((.*)\)", text):
        choices = re.findall(r"'([^']*)'", found[3])
        said = f"{_long(found[2])} cannot be {found[1]!r}; {nearest_names(found[1], choices)}"
    elif found := re.match(r"Error parsing ([^:]+): (.*)", text):
        # Without the form of an option it is a group of options that was refused, in a sentence of its own.
        names = found[1].split("/")
        said = f"{_long(found[1])} takes {_in_words(explained[0][1])}{_got(names, words)}" if explained else found[2]
    return said or "these words cannot be read"


def _options(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Name and form of each option that ``lines`` begin to explain, such as "-o PATH, --out PATH" or "CAPTURE"."""
    found = []
    for line in lines:
        if line.startswith(_INDENT) and line[len(_INDENT) :][:1].strip():
            name, _, form = line.strip().split(", ")[-1].partition(" ")
            found.append((name, form or name))
    return found


def _long(names: str) -> str:
    """The last, long one of "-o/--out"."""
    return names.rsplit("/", maxsplit=1)[-1]


def _unknown(unknown: Sequence[str], near: Sequence[str]) -> str:
    options = [word for word in unknown if word.startswith("-")]
    if not options:
        return f"there is no use for {' '.join(unknown)}"
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no option {', '.join(options)}{hint}"


def _in_words(form: str) -> str:
    """Say what ``form`` asks for, such as "{None}|INT" or "[FLOAT [FLOAT ...]]"."""
    kinds = {"INT": "whole number", "FLOAT": "number", "STR": "word", "PATH": "path"}
    found = []
    for choice in form.replace("{", "").replace("}", "").split("|"):
        names = re.findall(r"[A-Z]{2,}", choice)
        if not names or any(name not in kinds for name in names):
            found.append(choice)
        elif "..." in choice:
            found.append(f"{kinds[names[0]]}s")
        else:
            found.append(f"a {kinds[names[0]]}" if len(names) == 1 else f"{len(names)} {kinds[names[0]]}s")
    return " or ".join(found)


def _parts(box: str) -> list[list[str]]:
    """Lines of a box between its rules, without borders and title; where borders cannot be printed they are blanks."""
    lines = [line[2:].removesuffix("│").rstrip() for line in box.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines[1:-1] if box.startswith("╭") else lines[2:]:
        if _RULE.fullmatch(line):
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _got(names: Sequence[str], words: Sequence[str]) -> str:
    """Say what ``words`` give an option of these names, where that can be told."""
    for place, word in enumerate(words):
        name, given, value = word.partition("=")
        if name in names and given:
            return f", got {value}"
        if name in names:
            rest = list(words[place + 1 :])
            end = next((index for index, one in enumerate(rest) if one.startswith("--")), len(rest))
            return f", got {' '.join(rest[:end])}"
    return ""


def run_command(options: Any, run: Callable[[Any], int], name: str, words: list[str]) -> int:
    """Parse the words of a command into its options and carry it out.

    Args:
        options: The dataclass of its options.
        run: Carries it out; returns the exit code.
        name: Of the command.
        words: What follows the command's name.
    """
    forms = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.EnumChoicesFromValues)
    try:
        parsed = parse_options(options, f"splatopt {name}", words, config=forms)
    except HelpShown:
        return 0
    return run(parsed)


def values_in(words: Sequence[str], flag: str) -> list[str]:
    """Return what a flag is given in the words of a command, before these have been parsed."""
    found: list[str] = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            found += [value] if equals else words[place + 1 : place + 2]
    return found


def load_given(words: Sequence[str]) -> None:
    """Load the files that ``--plugin`` names, whose optimizers and losses have options of their own."""
    as_plugins(values_in(words, "--plugin"))


def flat(options: Any) -> Any:
    """Have options in groups be given without their groups' names, which head their parts of the help."""
    return Annotated[options, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]


def positional(options: Any) -> Any:
    """Have options without a default be given by their place."""
    return tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(options)
