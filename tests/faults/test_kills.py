"""A kill at any moment leaves a run that goes on; what a kill left is met again and goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import splatopt
from faults import campaign
from faults.kills import DENSITIES, OPTIMIZERS
from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.runs.folder import FIELD_FORMAT, RunFolder
from train.toys import make_toy_capture

# Ends this process with SIGKILL just before its N-th rename of a file whose name holds WORD.
KILL_AT_RENAME = """
import os, signal, sys
import splatopt.cli
word, left = sys.argv[1], int(sys.argv[2])
def hook(event, args):
    global left
    if event == "os.rename" and word in str(args[0]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.exit(splatopt.cli.main(sys.argv[3:]))
"""


def killed_at_rename(word: str, number: int, *words: str) -> None:
    source = Path(splatopt.__file__).resolve().parents[1]
    command = [sys.executable, "-c", KILL_AT_RENAME, word, str(number), *words]
    environment = os.environ | {"PYTHONPATH": str(source)}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -9


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


@pytest.fixture
def short(capture) -> list[str]:
    return ["train", str(capture), "--steps", "3", "--threads", "1"]


# ---------------------------------------------------------------------- campaigns


def check(counts: dict) -> None:
    assert counts["faults"] == []
    assert counts["runs"] >= len(counts["kills"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_kills_over_all_commands():
    counts = campaign.kills(0.0, seed=21, min_kills=60)
    check(counts)
    assert sum(counts["kills"].values()) >= 60
    trains = {*(f"train {name}" for name in OPTIMIZERS), *(f"train adam, {name}" for name in DENSITIES)}
    commands = {*trains, "fit", "bench", "meta-train"}
    assert set(counts["kills"]) == commands


# ---------------------------------------------------------------------- before a run's configuration is whole


def test_a_run_that_was_killed_before_its_configuration_begins_again(short, tmp_path):
    run = tmp_path / "run"
    killed_at_rename(".config.json", 1, *short, "--out", str(run))
    assert hidden(run) == [".config.json.partial"]
    assert main([*short, "--out", str(run)]) == 0
    assert hidden(run) == []


def test_a_meta_training_that_was_killed_before_its_configuration_begins_again(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    from splatopt.commands.meta_train import _check_goes_on

    assert not _check_goes_on(tmp_path, {})
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        _check_goes_on(tmp_path, {})


@pytest.mark.slow
def test_a_suite_that_was_killed_before_its_description_begins_again(capture, tmp_path):
    words = ["bench", "--scenes", str(capture), "--optimizers", "adam", "--steps", "2", "--out", str(tmp_path / "out")]
    killed_at_rename(".suite.json", 1, *words)
    assert hidden(tmp_path / "out") == [".suite.json.partial"]
    assert main(words) == 0
    assert hidden(tmp_path / "out") == []


@pytest.mark.slow
def test_a_cell_that_was_killed_before_its_first_score_goes_on(capture, tmp_path):
    words = ["bench", "--scenes", str(capture), "--optimizers", "adam", "--steps", "2", "--out", str(tmp_path / "out")]
    cell = tmp_path / "out" / "cells" / "toy.adam.seed0"
    assert main(["train", str(capture), "--steps", "2", "--out", str(tmp_path / "other")]) == 0
    assert main(words) == 0
    for name in ("cell.json", "eval.json", "scene.ply", "metrics.jsonl"):
        (cell / name).unlink()
    for path in sorted(cell.glob("checkpoints/*")):
        path.rename(tmp_path / path.name)
    assert main(words) == 0
    assert (cell / "cell.json").is_file()


def test_a_folder_that_is_not_ours_is_left_alone(short, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".config.json.partial", ".scene.ply.77.tmp", "photograph.png"):
        (run / name).write_text("mine")
    assert main([*short, "--out", str(run)]) == 2
    assert sorted(path.name for path in run.iterdir()) == [
        ".config.json.partial",
        ".scene.ply.77.tmp",
        "photograph.png",
    ]


# ---------------------------------------------------------------------- parts


def test_a_part_of_a_scene_that_a_kill_left_goes_away(short, tmp_path):
    run = tmp_path / "run"
    killed_at_rename(".scene.ply", 1, *short, "--out", str(run))
    assert hidden(run) == [".scene.ply.partial"]
    assert main([*short, "--out", str(run), "--resume"]) == 0
    assert hidden(run) == []


LEFT = (
    *(".config.json.partial", ".metrics.jsonl.partial", ".density.jsonl.partial", ".eval.json.partial"),
    *(".scene.ply.partial",),
    *(".report.html.partial", ".cell.json.partial", ".scene.ply.123.tmp", "renders/.orbit.mp4.partial"),
    ".pruning.json.partial",
    *("renders/orbit/.orbit-0001.png.partial", "renders/orbit/.frames.txt.partial", "views/.a.png.partial"),
    *("checkpoints/.step-000002.partial", "checkpoints/.step-000001.dropped"),
)
MINE = (".notes.partial", ".scene.ply.tmp", "checkpoints/.notes.partial", ".step-000002.partial", "renders/.notes")


@pytest.mark.parametrize(
    "command",
    [["eval"], ["report", "--views", "0"], ["export"], ["render", "--path", "test"], ["train"]],
    ids=lambda words: words[0],
)
def test_every_command_on_a_run_removes_the_known_parts_and_no_others(short, capture, tmp_path, command):
    run = tmp_path / "run"
    assert main([*short, "--out", str(run)]) == 0
    for name in (*LEFT, *MINE):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("part")
    words = {
        "export": ["export", str(run), str(tmp_path / "copy.ply")],
        "train": [*short, "--out", str(run), "--resume"],
    }
    assert main(words.get(command[0], [command[0], str(run), *command[1:]])) == 0
    assert sorted(hidden(run)) == sorted(MINE)


def test_links_in_place_of_parts_are_removed_and_not_written_through(short, capture, tmp_path):
    run, precious = tmp_path / "run", tmp_path / "kept.txt"
    assert main([*short, "--out", str(run)]) == 0
    precious.write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept.txt").write_text("precious")
    for name in LEFT[:6]:
        (run / name).symlink_to("../kept.txt")
    for name in ("eval.json", "report.html"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to("../kept.txt")
    for name in (".step-000003.partial", ".step-000003.before", ".step-000000.dropped"):
        (run / "checkpoints" / name).symlink_to("../../folder")
    for words in (
        ["eval", str(run)],
        ["report", str(run), "--views", "0"],
        [*short, "--out", str(run), "--resume"],
    ):
        assert main(words) == 0
    assert precious.read_text() == "precious"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept.txt"]
    assert hidden(run) == []
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("../kept.txt")
    assert main([*short, "--out", str(run), "--resume"]) == 2
    assert precious.read_text() == "precious"


# ---------------------------------------------------------------------- two at once


def test_a_run_that_another_process_is_at_work_on_is_left_to_it(short, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*short, "--out", str(run)]) == 0
    part = run / ".scene.ply.partial"
    with RunFolder(run).locked():
        part.touch()
        for words in ([*short, "--out", str(run), "--resume"], ["eval", str(run)]):
            capsys.readouterr()
            assert main(words) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line == (
                f"splatopt: another process is at work on the run in {run}; wait for it, stop it, or give another "
                "folder with --out"
            )
        assert main(["report", str(run), "--views", "0"]) == 0
        assert part.exists(), "it may be written at this moment"
    assert main(["eval", str(run)]) == 0
    assert not part.exists()


def test_two_that_begin_the_same_run_do_not_mix(tmp_path):
    folder = RunFolder(tmp_path / "run", FIELD_FORMAT)
    with folder.locked(), pytest.raises(InputError, match="another process is at work"), folder.locked():
        pass
