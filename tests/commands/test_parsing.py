"""Mistakes in the words of a command: one sentence each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from splatopt.commands.parsing import HelpShown, parse_options
from splatopt.core.checks import InputError


class Kind(Enum):
    ROUND = "round"
    SQUARE = "square"


@dataclass(frozen=True)
class Options:
    """Draws a thing."""

    thing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="THING")]
    """What is drawn, which takes so long a sentence to tell that the parser wraps it, and then wraps it once again."""

    count: int = 1
    """How often."""

    size: float | None = None
    """How large."""

    colour: tuple[float, float, float] | None = None
    """Of what colour."""

    at: tuple[int, ...] = ()
    """Where."""

    kind: Kind = Kind.ROUND
    """Of what kind."""

    out: Annotated[int | None, tyro.conf.arg(aliases=["-o"])] = None
    """An option of two names."""


def parse(*words: str) -> Options:
    return parse_options(Options, "draw", words, config=(tyro.conf.EnumChoicesFromValues,))


def test_right_words_are_options():
    options = parse("a", "--count", "3", "--colour", "0", "0.5", "1", "--at", "1", "2", "--kind", "square")
    assert options == Options(Path("a"), 3, None, (0.0, 0.5, 1.0), (1, 2), Kind.SQUARE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "THING is missing; see draw --help"),
        ("a b c", "there is no use for b c; see draw --help"),
        ("a --cuont 3", "there is no option --cuont; did you mean --count? See draw --help"),
        ("a --count", "--count needs a value; see draw --help"),
        ("a --count 1.5", "--count takes a whole number, got 1.5; see draw --help"),
        ("a --count=many --size 3", "--count takes a whole number, got many; see draw --help"),
        ("a --size x", "--size takes None or a number, got x; see draw --help"),
        ("a --colour 1 2 --count 3", "--colour takes None or 3 numbers, got 1 2; see draw --help"),
        ("a --at 1 x", "--at takes whole numbers, got 1 x; see draw --help"),
        ("a --otu 3", "there is no option --otu; did you mean --out? See draw --help"),
        ("a -o", "--out needs a value; see draw --help"),
        ("a -o x", "--out takes None or a whole number, got x; see draw --help"),
        ("a --out=x", "--out takes None or a whole number, got x; see draw --help"),
        ("a --kind sqare", "--kind cannot be 'sqare'; did you mean square? See draw --help"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_to_do(words, said, capsys):
    with pytest.raises(InputError) as error:
        parse(*words.split())
    assert str(error.value) == said
    assert capsys.readouterr() == ("", "")


def test_an_unknown_form_of_the_parser_is_passed_on(monkeypatch):
    def refuse(*_, **__):
        raise SystemExit(2)

    monkeypatch.setattr(tyro, "cli", refuse)
    with pytest.raises(InputError, match="these words cannot be read; see draw --help"):
        parse("a")


def test_help_is_printed_and_is_no_mistake(capsys):
    with pytest.raises(HelpShown):
        parse("--help")
    assert "Draws a thing." in capsys.readouterr().out
