"""Values of files in the types that they are wanted in, or one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest

from splatopt.core.checks import InputError, check_fraction, check_positive
from splatopt.core.typed import Fields, read_dataclass, typed


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Options:
    path: Path
    count: int = 1
    rate: float | None = None
    flag: bool = False
    color: Color = Color.RED
    choice: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_positive("count", self.count)


def test_a_dataclass_is_read():
    values = {"path": "x/y", "count": 3, "rate": 1, "flag": True, "color": "blue", "choice": "b", "pair": [1, 2.5]}
    found = read_dataclass(values | {"many": [1, 2]}, Options, "option", "file")
    assert found == Options(Path("x/y"), 3, 1.0, True, Color.BLUE, "b", (1.0, 2.5), (1, 2))
    assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": 3}, "file: path must be a path, got 3"),
        ({"path": "a\0b"}, "file: path must be a text of at most 10,000 letters, none of them NUL"),
        ({"path": "x" * 20_000}, "file: path must be a text of at most 10,000 letters"),
        ({"count": True}, "file: count must be a whole number, got True"),
        ({"count": 1.5}, "file: count must be a whole number, got 1.5"),
        ({"count": "3"}, "file: count must be a whole number, got '3'"),
        ({"count": None}, "file: count must be a whole number, got null"),
        ({"count": 2**64}, "file: count must be a whole number of at most 63 bits"),
        ({"count": 0}, "file: count must be a positive number, got 0"),
        ({"rate": "fast"}, "file: rate must be a number, got 'fast'"),
        ({"rate": float("nan")}, "file: rate must be a number, got nan"),
        ({"flag": 1}, "file: flag must be true or false, got 1"),
        ({"color": 1}, "file: color must be red or blue, got 1"),
        ({"color": ["red"]}, "file: color must be red or blue, got a list of 1"),
        ({"choice": "c"}, "file: choice must be a or b, got 'c'"),
        ({"choice": {}}, "file: choice must be a or b, got an object of 0"),
        ({"pair": [1]}, "file: pair must hold 2 values, got 1"),
        ({"pair": 3}, "file: pair must be a list, got 3"),
        ({"many": [1, "2"]}, "file: many must be a whole number, got '2'"),
        ({"cuont": 1}, "file: there is no option 'cuont'; did you mean count?"),
        ({"\x1b" + "x" * 500: 1}, r"file: there is no option '\\x1bx{78}…'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, said):
    with pytest.raises(InputError, match=said) as raised:
        read_dataclass({"path": "x"} | change, Options, "option", "file")
    assert len(str(raised.value)) < 300


def test_what_is_missing_or_no_object_is_named():
    with pytest.raises(InputError, match="file: path is missing"):
        read_dataclass({}, Options, "option", "file")
    with pytest.raises(InputError, match="file must be an object, got a list of 1"):
        read_dataclass([1], Options, "option", "file")


def test_entries_are_asked_for_by_type():
    fields = Fields(
        {"text": "a", "number": 2.5, "count": 3, "list": [1], "object": {"x": None}, "objects": [{}]}, "file"
    )
    assert fields.text("text") == "a"
    assert fields.number("number", minimum=0) == 2.5
    assert fields.count("count") == 3
    assert fields.entries("list") == [1]
    assert "x" not in fields.object("object")
    assert [one.where for one in fields.objects("objects")] == ["file: objects 1"]
    for ask, said in (
        (lambda: fields.text("count"), "file: count must be a text, got 3"),
        (lambda: fields.text("absent"), "file: absent must be a text, got nothing"),
        (lambda: fields.number("text"), "file: text must be a number of a reasonable size, got 'a'"),
        (lambda: fields.number("number", minimum=3), "a reasonable size, at least 3, got 2.5"),
        (lambda: fields.count("number"), "file: number must be a whole number from 0"),
        (lambda: fields.count("count", maximum=2), "a whole number from 0 to 2, got 3"),
        (lambda: fields.entries("list", maximum=0), "file: list must be a list of at most 0, got a list of 1"),
        (lambda: fields.objects("list"), "file: list 1 must be an object, got 1"),
        (lambda: fields.object("text"), "file: text must be an object, got 'a'"),
        (lambda: Fields(None, "file"), "file must be an object, got null"),
        (lambda: Fields({"x": True}, "file").number("x"), "got True"),
        (lambda: Fields({"x": True}, "file").count("x"), "got True"),
    ):
        with pytest.raises(InputError, match=said):
            ask()


def test_what_an_option_s_own_check_refuses_is_bad_input():
    with pytest.raises(InputError, match="rate must be a positive number, got -1"):
        check_positive("rate", -1)
    with pytest.raises(InputError, match=r"rate must be at most 1e\+30, got 1e\+300"):
        check_positive("rate", 1e300)
    with pytest.raises(InputError, match="beta must be at least 0 and below 1, got 1"):
        check_fraction("beta", 1)
    assert typed(None, int | None, "x") is None
