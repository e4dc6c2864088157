"""What the README tells people to type works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from splatopt.data.procedural import make_capture

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


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


def test_every_command_of_the_readme_exists():
    from splatopt.cli import _COMMANDS

    assert set(re.findall(r"splatopt (\w+) (?:CAPTURE|RUN|`)", README)) <= set(_COMMANDS)
    assert set(re.findall(r"bin/splatopt (\w+)", README)) <= set(_COMMANDS)
    for command in _COMMANDS:
        assert f"splatopt {command}" in README


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = "\n".join(re.findall(r"`make[^`]*`|^ {4}make.*$", README, re.MULTILINE))
    named = set(re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z][a-z-]*)", typed))
    assert {"demo", "install", "test", "lint", "bench"} <= named <= targets
