"""What the README tells people to type works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from splatopt.data.procedural import make_capture

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
START = ("quick-start", "your-own-photographs", "which-optimizer", "commands")
"""The pages for people who begin."""


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    make_capture(tmp_path / "path" / "to" / "capture", views=8, width=32, height=24, points=200)
    assert "steps=2000" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=2000", "steps=20"), "README.md", "exec"), {})
    before, after = map(float, re.match(r"([\d.]+) -> ([\d.]+) dB in", capsys.readouterr().out).groups())
    assert after > before
    assert (tmp_path / "scene.ply").stat().st_size > 200 * 4
    assert (tmp_path / "runs" / "first" / "eval.json").is_file()


def test_every_command_of_the_pages_exists_and_each_is_explained():
    from splatopt.cli import _COMMANDS

    pages = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in START)]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"(?:^ {4}(?:\.venv/bin/)?|`)splatopt ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named <= set(_COMMANDS)
    for command in _COMMANDS:
        assert f"`splatopt {command}" in (ROOT / "docs" / "commands.md").read_text()


def test_every_option_of_the_pages_exists(capsys: pytest.CaptureFixture[str]):
    from splatopt.cli import main

    assert main(["train", "--help-all"]) == 0
    there = set(re.findall(r"--[a-z][a-z.-]+", capsys.readouterr().out)) | {"--help", "--help-all"}
    for name in START:
        text = (ROOT / "docs" / f"{name}.md").read_text()
        typed = re.findall(r"^ {4}splatopt train .*$", text, re.MULTILINE)
        assert set(re.findall(r"--[a-z][a-z-]+", "\n".join(typed))) <= there, name


def test_every_score_of_the_readme_is_one_of_the_results():
    results = "\n".join(page.read_text() for page in (ROOT / "docs" / "results").glob("*.md"))
    (table,) = re.findall(r"## What to expect\n.*?(\|.*?)\n\n", README, re.DOTALL)
    numbers = re.findall(r"\d+\.\d+", table)
    assert len(numbers) >= 8
    assert [number for number in numbers if number not in results] == []


def test_pictures_are_light():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert sum(picture.stat().st_size for picture in pictures) < 1.5e6
    text = README + "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert [picture.name for picture in pictures if f"pictures/{picture.name})" not in text] == []


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = "\n".join(re.findall(r"`make[^`]*`|^ {4}make.*$", README, re.MULTILINE))
    named = set(re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z][a-z-]*)", typed))
    assert {"demo", "install", "test", "lint", "bench", "docs"} <= named <= targets
