"""``splatopt diagnose run`` of a scene, as it is typed; that of a fit is in test_cli_fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splatopt.cli import main

FEW = ["--views", "2", "--lanczos-steps", "6", "--top", "3", "--probes", "1"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What every file below a folder holds, and when it was written."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_scenes_run_is_diagnosed_and_stays_as_it_is(run_folder, tmp_path, capsys):
    before, out = contents(run_folder), tmp_path / "out"
    assert main(["diagnose", "run", str(run_folder), "--out", str(out), *FEW]) == 0
    assert "reach" in capsys.readouterr().out
    assert contents(run_folder) == before
    found = json.loads((out / "diagnosis.json").read_text())
    assert found["plan"]["lanczos_steps"] == 6
    assert [point["step"] for point in found["points"]] == [0, 30]
    for point in found["points"]:
        assert point["optimizer"] == "adam"
        assert point["products"] == [6]
        assert point["sharpness"] == max(point["eigenvalues"]) > 0
        assert 0 <= point["shares"][0] <= point["shares"][2] <= 1.0001
        assert point["overlap"] >= 0.9
        assert point["kept_overlap"] is None
    assert found["points"][1]["loss"] < found["points"][0]["loss"]
    assert {path.stem for path in out.glob("*.svg")} == {"spectrum", "shares", "sharpness", "reach", "overlap"}
    assert (out / "diagnosis.html").read_text().count("<svg") == 5
    assert main(["diagnose", "run", str(run_folder), "--out", str(out), *FEW]) == 2
    assert "holds a diagnosis already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "did you mean run"),
        (["run", "nowhere"], "is not a run of splatopt"),
        (["run"], "PATH is missing"),
        (["run", "RUN", "--top", "0"], "--top must be at least 1"),
        (["run", "RUN", "--lanczos-steps", "many"], "--lanczos-steps takes a whole number, got many"),
        (["run", "RUN", "--out", "RUN/inside"], "lies in the run's folder"),
        (["run", "RUN", "--max-memory", "0.001", "--top", "1000", "--lanczos-steps", "1000"], "--max-memory allows"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_sentence(run_folder, tmp_path, monkeypatch, words, said, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *(word.replace("RUN", str(run_folder)) for word in words)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_help_is_plain(capsys):
    assert main(["diagnose", "--help"]) == 0
    assert "at a run's checkpoints" in capsys.readouterr().out
