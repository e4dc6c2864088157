"""Every how-to runs as it stands: its files are written into an empty folder, its commands are carried out there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from splatopt.cli import main
from splatopt.core import plugins
from splatopt.core.optimizer import OPTIMIZERS
from splatopt.core.plugins import Origin
from splatopt.data.readers import READERS
from splatopt.density.strategy import STRATEGIES
from splatopt.raster.loss_registry import LOSSES

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs"
REGISTRIES = (OPTIMIZERS, LOSSES, STRATEGIES, READERS)
MAKE = "splatopt data make --scenes 1 --out scenes"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """What the how-tos' first command makes."""
    folder = tmp_path_factory.mktemp("synthetic")
    assert main([*shlex.split(MAKE)[1:-1], str(folder / "scenes")]) == 0
    return folder / "scenes"


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in; what its plug-ins register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {registry: set(registry.names()) for registry in REGISTRIES}
    kept = dict(plugins._files)
    yield tmp_path
    for registry, names in before.items():
        for name in set(registry.names(Origin.GIVEN)) - names:
            registry.forget(name)
    plugins._files.clear()
    plugins._files.update(kept)
    for name in ("lion", "soft_l1", "axis_split", "csv_reader"):
        sys.modules.pop(name, None)


def blocks(page: str) -> tuple[dict[str, str], list[str]]:
    """The files that a page shows, and the commands that it types, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    files = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", text, re.DOTALL))
    return files, [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def follow(page: str, scenes: Path, folder: Path) -> dict[str, str]:
    """Do all that a page says; returns its files."""
    files, commands = blocks(page)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(scenes, folder / "scenes")
    for command in commands:
        words = shlex.split(command)
        if words[0] == "splatopt" and command != MAKE:
            assert main(words[1:]) == 0, command
        elif words[0] == "python":
            forget_given()
            runpy.run_path(words[1], run_name="__main__")
            forget_given()
    assert MAKE in commands
    return files


def forget_given() -> None:
    """What was registered belongs to a process of its own, which the test stands in for."""
    for registry in REGISTRIES:
        for name in registry.names(Origin.GIVEN):
            registry.forget(name)
    plugins._files.clear()


def config_of(run: str) -> dict:
    return json.loads(Path(run, "config.json").read_text())


def check_bench(folder: str, file: str, cells: int) -> None:
    results = json.loads(Path(folder, "results.json").read_text())
    assert [cell["status"] for cell in results["cells"]] == ["done"] * cells
    for cell in results["cells"]:
        assert [one["file"] for one in cell["config"]["plugins"]] == [file]
        assert all(re.fullmatch("[0-9a-f]{64}", one["sha256"]) for one in cell["config"]["plugins"])


def test_optimizer(scenes, empty_folder, capsys):
    files = follow("how-to-optimizer.md", scenes, empty_folder)
    assert len(files["lion.py"].splitlines()) <= 30
    assert config_of("runs/lion")["optimizer_options"] == {"rate": 0.005, "means_rate": 1e-4}
    assert config_of("runs/lion")["steps"] == 60
    assert config_of("runs/field")["optimizer"] == "lion"
    check_bench("runs/bench", "lion.py", 2)
    capsys.readouterr()
    runpy.run_path("train.py", run_name="__main__")
    before, after = map(float, re.findall(r"[\d.]+", capsys.readouterr().out)[:2])
    assert after > before + 0.5
    assert main(["train", "--plugin", "lion.py", "--optimizer", "lion", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--lion.means-rate" in shown
    assert "Unit: scene extents per step." in " ".join(shown.replace("│", " ").split())
    assert "lion: sign of a momentum" in shown


def test_loss(scenes, empty_folder):
    follow("how-to-loss.md", scenes, empty_folder)
    assert config_of("runs/soft")["loss"] == "soft-l1"
    assert config_of("runs/soft")["loss_options"] == {"epsilon": 0.01}
    assert config_of("runs/soft-tr2")["loss_options"] == {"epsilon": 1e-3}
    check_bench("runs/bench", "soft_l1.py", 2)
    results = json.loads(Path("runs/bench/results.json").read_text())
    assert [cell["config"]["loss"] for cell in results["cells"]] == ["l1-ssim", "soft-l1"]


def test_density(scenes, empty_folder):
    files = follow("how-to-density.md", scenes, empty_folder)
    assert len(files["axis_split.py"].splitlines()) <= 40
    assert config_of("runs/split")["density_options"] == {"every": 10, "share": 0.1}
    for run, added in (("runs/split", 3), ("runs/tr2", 2)):
        edits = [json.loads(line) for line in Path(run, "density.jsonl").read_text().splitlines()]
        assert len(edits) >= added
        assert all(edit["added"] > 0 == edit["removed"] for edit in edits)
    check_bench("runs/bench", "axis_split.py", 2)
    results = json.loads(Path("runs/bench/results.json").read_text())
    counts = [cell["points"][-1]["gaussians"] for cell in results["cells"]]
    assert counts[1] > counts[0]


def test_reader(scenes, empty_folder, capsys):
    follow("how-to-reader.md", scenes, empty_folder)
    shown = capsys.readouterr().out
    assert "capture      csv-capture (csv)" in shown
    assert config_of("runs/csv")["steps"] == 60
    check_bench("runs/bench", "csv_reader.py", 1)
    table = Path("csv-capture/cameras.csv")
    table.write_text(table.read_text().replace(",128,128,", ",128,wide,", 1))
    assert main(["inspect", "csv-capture", "--plugin", "csv_reader.py"]) == 2
    assert "cameras.csv, row 1: invalid literal for int()" in capsys.readouterr().err
