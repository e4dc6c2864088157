"""Metrics stream line by line; the folder is never taken from someone else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from splatopt.core.checks import InputError
from splatopt.runs.folder import MetricsLog, RunFolder, read_json, write_json
from splatopt.train.config import TrainConfig


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_there_at_once(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 0.1 + 0.2})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.1 + 0.2}
    log.close()


def test_trimming_drops_later_lines_and_a_cut_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    log = MetricsLog(path)
    log.trim(20)
    log.append({"step": 25})
    log.close()
    assert steps(path) == [10, 20, 25]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_delays_lines_and_loses_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1})
    disk, log._descriptor = log._descriptor, os.open("/dev/full", os.O_WRONLY)
    log.append({"step": 2})
    log.append({"step": 3})
    assert not log.flush()
    os.close(log._descriptor)
    log._descriptor = disk
    log.append({"step": 4})
    log.close()
    assert steps(path) == [1, 2, 3, 4]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_reading_what_is_not_there_gives_nothing_and_what_is_damaged_is_named(tmp_path):
    assert read_json(tmp_path / "x.json") == {}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json cannot be read: it is not JSON"):
        read_json(tmp_path / "x.json")


def test_a_run_is_recognised_and_read_where_it_lies(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.check_free()
    folder.write_config(TrainConfig.of("/data/fox", max_side=0, out=Path("elsewhere")), "1.2.3")
    assert folder.is_run
    assert json.loads(folder.config.read_text())["version"] == "1.2.3"
    assert TrainConfig.read(folder) == TrainConfig.of("/data/fox", max_side=0, out=tmp_path / "a")


def test_an_empty_folder_is_free(tmp_path):
    RunFolder(tmp_path).check_free()


@pytest.mark.parametrize("content", ["{}", "not json", '{"format": "another"}', "[]"])
def test_a_folder_with_something_else_is_not_a_run(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"exists and is not a run.*--out"):
        RunFolder(tmp_path).check_free()
    with pytest.raises(InputError, match="is not a run of splatopt"):
        TrainConfig.read(RunFolder(tmp_path))
    assert (tmp_path / "config.json").read_text() == content
