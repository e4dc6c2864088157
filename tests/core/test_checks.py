"""What comes from a file is shown so that it acts on nothing, and errors of the system name their file."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import MAX_QUOTE_LETTERS, InputError, quoted, say, shown, writing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("view_1 (2).jpg", "view_1 (2).jpg"),
        ("Straße 東京 é – ½.png", "Straße 東京 é – ½.png"),
        ("a\x1b]0;title\x07.jpg", r"a\x1b]0;title\x07.jpg"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("gpj.\u202e1v", r"gpj.\u202e1v"),
        ("\u2066a\u2069\u200b\u2028", r"\u2066a\u2069\u200b\u2028"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("images\\v0.jpg [red]", "images\\v0.jpg [red]"),
        ("", ""),
    ],
)
def test_shown(text, expected):
    assert shown(text) == expected
    assert shown(shown(text)) == expected
    shown(text).encode()


def test_quotes_are_cut():
    assert quoted("a" * MAX_QUOTE_LETTERS) == f"'{'a' * 80}'"
    assert quoted("a" * 1_000_000) == f"'{'a' * 79}…'"
    assert quoted("\x1b[31m") == r"'\x1b[31m'"
    assert quoted(Path("a/b")) == "'a/b'"


def test_errors_keep_no_line_breaks_and_no_escapes():
    class OwnError(InputError):
        pass

    assert str(OwnError("no image \x1b[2J\nsplatopt: all is well")) == r"no image \x1b[2J\nsplatopt: all is well"


def test_say_prints_one_line_each():
    stream = io.StringIO()
    say("a\nb", Path("\x1b"), 3, file=stream)
    assert stream.getvalue() == "a\\nb\n\\x1b\n3\n"


def test_writing_names_the_file(tmp_path):
    with pytest.raises(OSError, match="eval.json") as caught, writing(tmp_path / "eval.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "eval.json")
    with pytest.raises(FileNotFoundError, match="other") as caught, writing(tmp_path / "eval.json"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_what_was_written(tmp_path, monkeypatch, code):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        replace_file(tmp_path / "eval.json", b"{}")
    assert caught.value.filename == str(tmp_path / "eval.json")
