"""Names that act on a terminal, on rich, on a page or on an encoder: every command shows them and none obeys them."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.cases import made_cell, made_results
from splatopt.bench.page import make_page
from splatopt.bench.tables import as_markdown
from splatopt.cli import main
from splatopt.core.checks import shown
from splatopt.runs.live_line import LiveLine
from splatopt.train.run import open_run
from train.toys import make_toy_capture

NAMES = [
    "\x1b]0;title\x07\x1b[31mred.png",
    "[red]x[/red].png",
    "[/].png",
    "[a].png",
    "two\x1elines\t.png",
    os.fsdecode(b"caf\xe9.png"),
    "\u202egpj.png",
    "\x9b31m.png",
    "Straße 1.png",
]
"""Of files that may well lie on a disk."""


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """A toy capture whose photographs have such names, in a folder with such a name."""
    folder = make_toy_capture(
        tmp_path_factory.mktemp("names") / "cap\x1b[1m\udcff", width=32, height=24, points=50, views=len(NAMES)
    )
    images = folder / "sparse" / "0" / "images.txt"
    text = images.read_text(encoding="utf-8")
    for index, name in enumerate(NAMES):
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / "images" / f"view_{index:03d}.png").rename(folder / "images" / name)
        text = text.replace(f"view_{index:03d}.png", name)
    images.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return folder


def safe(*texts: str) -> None:
    """Nothing in what was printed acts on a terminal, and all of it can be encoded."""
    for text in texts:
        for line in text.split("\n"):
            assert shown(line) == line, repr(line)
        text.encode()


def test_every_command_shows_them(named, tmp_path, capsys):
    run = tmp_path / "run"
    commands = [
        ["inspect", str(named)],
        # The second of two is held out, those with marks of rich among them.
        ["train", str(named), "--steps", "2", "--test-every", "2", "--out", str(run)],
        ["eval", str(run)],
        ["report", str(run)],
        ["render", str(run), "--path", "test"],
    ]
    for words in commands:
        assert main(words) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        safe(out, err)
        if words[0] == "eval":
            for name in (r"\x1b]0;title\x07\x1b[31mred.png", "[red]x[/red].png", "[/].png", r"\u202egpj.png"):
                assert name in out
    page = (run / "report.html").read_text(encoding="utf-8")
    safe(page)
    scores = (run / "eval.json").read_bytes()
    assert rb"\\x1b]0;title" in scores
    scores.decode("ascii")


def test_a_missing_image_is_named_safely(named, tmp_path, capsys):
    copy = Path(shutil.copytree(named, tmp_path / "copy"))
    shutil.rmtree(copy / "images")
    (copy / "images").mkdir()
    assert main(["inspect", str(copy)]) == 0
    out, err = capsys.readouterr()
    safe(out, err)
    assert "[red]x[/red].png" in out
    assert main(["train", str(copy), "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    safe(out, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_encoding_of_a_terminal_ends_a_command(named, monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["inspect", str(named)]) == 0
    stream.flush()
    assert b"capture" in stream.buffer.getvalue()


def test_progress_shows_text_as_it_is():
    stream = io.StringIO()
    for console in (Console(file=stream), Console(file=stream, force_terminal=True, width=200)):
        line = LiveLine(console)
        line.open()
        line.say("warning: [/] [red]x\x1b]0;t\x07\n")
        line.update("step \x1b]0;t\x07[/]", 1, 1)
        line.close()
    said = stream.getvalue()
    assert r"warning: [/] [red]x\x1b]0;t\x07\n" in said
    assert r"step \x1b]0;t\x07[/]" in said
    assert "\x1b]0" not in said


def test_pages_and_tables_of_a_benchmark_show_them():
    label = "\x1b[31m\udce9[/]\u202e<b>"
    results = made_results(
        made_cell(label, 0, [(0, 5.0), (10, 9.0)], scene=label, name=label),
        made_cell("first", 0, [], status="failed", failure=f"no image {label}"),
        title=label,
        reference=label,
    )
    text = make_page(results)
    text.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"\x1b[31m\xe9[/]\u202e&lt;b&gt;" in text
    as_markdown(label).encode()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file(named, tmp_path, monkeypatch, capsys, code):
    run = tmp_path / "run"
    assert main(["train", str(named), "--steps", "1", "--out", str(run)]) == 0

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def ended(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        said = capsys.readouterr().err
        assert os.strerror(code) in said
        return said

    assert main(["render", str(run), "--path", "test"]) == 0
    monkeypatch.setattr(os, "fsync", full)
    assert "eval.json" in ended("eval", str(run))
    assert "report.html" in ended("report", str(run), "--views", "0")
    assert "copy.ply" in ended("export", str(run), str(tmp_path / "copy.ply"))
    assert ".png" in ended("render", str(run), "--path", "test")
    assert open_run(run).steps == 1
