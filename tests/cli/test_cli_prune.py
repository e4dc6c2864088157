"""``splatopt prune`` as it is typed: a table, a new run that every command takes, and refusals in one sentence."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.report.pruning_curve import pruning_section
from splatopt.runs.folder import RunFolder
from splatopt.scene.ply import load_ply
from splatopt.train.run import open_run


@pytest.fixture(scope="module")
def pruned(run_folder, tmp_path_factory) -> Path:
    """The run of 200 Gaussians with 120 of them."""
    out = tmp_path_factory.mktemp("pruned") / "new"
    assert main(["prune", str(run_folder), "--to", "120", "--repair", "5", "--out", str(out)]) == 0
    return out


def test_it_prints_a_row_a_round_and_what_came_of_it(run_folder, tmp_path, capsys):
    run = Path(shutil.copytree(run_folder, tmp_path / "some run"))
    assert main(["prune", str(run), "--to", "150", "--repair", "2"]) == 0
    heading, *rows, summary, where = capsys.readouterr().out.splitlines()
    assert heading == "Gaussians   steps  training loss  training PSNR    PSNR    SSIM  seconds"
    assert [row.split()[0] for row in rows] == ["200", "173", "150"]
    assert all(len(row) == len(heading) for row in rows)
    record = json.loads((tmp_path / "some run-pruned-150" / "eval.json").read_text())
    assert rows[-1].split()[4:6] == [f"{record['psnr']:.2f}", f"{record['ssim']:.4f}"]
    assert summary.startswith("200 Gaussians to 150: test PSNR ")
    assert where == f"new run: {tmp_path / 'some run-pruned-150'}"


def test_a_round_beyond_the_budget_is_shown_as_undone(run_folder, tmp_path, capsys):
    out = tmp_path / "new"
    words = ["--max-loss", "0.02", "--round-share", "0.9", "--repair", "0", "--by", "pup", "--out", str(out)]
    assert main(["prune", str(run_folder), *words]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].endswith("undone: beyond --max-loss")
    first, *others = json.loads((out / "pruning.json").read_text())["rounds"]
    assert all(one["kept"] == (first["train_psnr"] - one["train_psnr"] <= 0.02) for one in others)
    assert json.loads((out / "eval.json").read_text())["gaussians"] == min(
        one["gaussians"] for one in (first, *others) if one["kept"]
    )


def test_eval_render_and_export_take_the_new_run(pruned, tmp_path, capsys):
    record = (pruned / "eval.json").read_text()
    assert main(["eval", str(pruned)]) == 0
    assert (pruned / "eval.json").read_text() == record
    assert main(["render", str(pruned), "--path", "test", "--out", str(tmp_path / "views")]) == 0
    assert len(list((tmp_path / "views").glob("*.png"))) == 2
    assert main(["export", str(pruned), str(tmp_path / "out.ply")]) == 0
    assert "120 Gaussians of step 50 written" in capsys.readouterr().out.replace("\n", " ")
    assert len(load_ply(tmp_path / "out.ply").in_local(Frame())) == 120


def test_the_report_shows_the_curve(pruned, run_folder, capsys):
    assert main(["report", str(pruned), "--views", "0"]) == 0
    page = (pruned / "report.html").read_text()
    assert "<h2>Pruning</h2>" in page
    assert "PSNR, dB, against Gaussians" in page
    assert "splatopt prune" in page
    assert "--to=120" in page
    assert page.count('<circle class="dots"') >= 2 * 5  # the start and four rounds, in both charts
    assert pruning_section(RunFolder(run_folder)) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must"),
        ("{}", "delete the file to leave the curve out"),
        ('{"run": "a", "subset": "test", "options": {}, "rounds": [{}]}', "loss must be a number"),
    ],
)
def test_a_damaged_curve_is_named(pruned, tmp_path, content, said, capsys):
    damaged = Path(shutil.copytree(pruned, tmp_path / "damaged"))
    (damaged / "pruning.json").write_text(content)
    assert main(["report", str(damaged), "--views", "0"]) == 2
    error = capsys.readouterr().err
    assert "pruning.json" in error
    assert said in error
    with pytest.raises(InputError):
        pruning_section(RunFolder(damaged))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pruning takes either --to N or --max-loss dB, got neither"),
        (["--to", "10", "--max-loss", "0.1"], "pruning takes either --to N or --max-loss dB, got both"),
        (["--to", "200"], "--to must lie below the 200 Gaussians of"),
        (["--to", "0"], "--to must be at least 1, got 0"),
        (["--to", "many"], "--to takes None or a whole number, got many"),
        (["--max-loss", "-1"], "--max-loss must be at least 0, got -1.0"),
        (["--to", "10", "--by", "size"], "--by cannot be 'size'; known: cost, opacity, pup"),
        (["--to", "10", "--optimizer", "bloc-gn"], "did you mean block-gn"),
        (["--to", "10", "--out", "{run}"], "holds a run already, and nothing in it is overwritten"),
    ],
)
def test_bad_input_is_one_sentence(run_folder, tmp_path, monkeypatch, words, said, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", str(run_folder), *(word.format(run=run_folder) for word in words)]) == 2
    out, error = capsys.readouterr()
    assert said in error
    assert "Traceback" not in error
    assert out == ""
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_scene_and_one_without_its_capture_are_refused(run_folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run_folder / "config.json", bare)
    assert main(["prune", str(bare), "--to", "10"]) == 2
    assert "holds neither a whole checkpoint nor a scene.ply" in capsys.readouterr().err
    moved = Path(shutil.copytree(run_folder, tmp_path / "moved"))
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"capture": str(tmp_path / "gone")}))
    assert main(["prune", str(moved), "--to", "10"]) == 2
    assert "no capture at" in capsys.readouterr().err
    assert main(["prune", str(tmp_path), "--to", "10"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "moved"]


def test_ctrl_c_leaves_a_whole_run_of_the_last_round(run_folder, tmp_path):
    words = ["prune", str(run_folder), "--to", "2", "--round-share", "0.02", "--out", str(tmp_path / "new")]
    command = [sys.executable, "-m", "splatopt", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):  # the heading, the start, two rounds
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    kept = open_run(tmp_path / "new")
    assert len(kept.trained) <= 193
    assert "new is a whole run, of the last round that ended; prune it to go on from there" in error
    assert kept.evaluate(kept.open_capture()).views
