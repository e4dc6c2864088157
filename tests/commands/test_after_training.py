"""What ``splatopt train`` leaves and says at its end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from splatopt.cli import main
from splatopt.commands import after_training
from splatopt.commands.after_training import next_commands
from splatopt.core.version import __version__
from train.toys import make_toy_capture


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy", width=32, height=24, points=50)


def train(capture: Path, out: Path, *words: str) -> int:
    return main(["train", str(capture), "--steps", "4", "--optimizer", "adam", "--out", str(out), *words])


def test_a_run_ends_with_a_page_and_what_to_type_next(capture, tmp_path, capsys):
    out = tmp_path / "a run"
    assert train(capture, out) == 0
    said = capsys.readouterr().out
    assert f"page: {out / 'report.html'}" in said
    page = (out / "report.html").read_text()
    assert "<h1>toy, trained with adam</h1>" in page
    assert page.count('<img src="data:image/png;base64,') >= 4
    for command in ("view", "render", "export"):
        assert f"{command} {shlex.quote(str(out))}" in said


def test_the_page_is_the_one_that_the_command_writes(capture, tmp_path):
    out = tmp_path / "run"
    assert train(capture, out) == 0
    page = (out / "report.html").read_bytes()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == page


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("worn")])
def test_a_run_is_whole_without_its_page(capture, tmp_path, capsys, monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(after_training, "report_finished", fail)
    out = tmp_path / "run"
    assert train(capture, out) == 0
    said, complaint = capsys.readouterr()
    assert f"report {out} writes it" in said
    assert (out / "scene.ply").is_file()
    assert ("its page could not be written" in complaint) == (not isinstance(error, KeyboardInterrupt))


def test_a_folder_is_quoted_as_a_shell_wants_it(tmp_path):
    assert all("'my run'" in line for line in next_commands(Path("my run"))[1:])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--density", "gain"], {"optimizer": "adam", "density": "gain"}),
        (["--stages", "adam:3,tr2:1"], {"stages": "adam:3,tr2:1", "density": "none"}),
    ],
)
def test_scores_say_what_was_run(capture, tmp_path, words, names):
    out = tmp_path / "run"
    assert train(capture, out, *words) == 0
    assert main(["eval", str(out)]) == 0
    record = json.loads((out / "eval.json").read_text())
    expected = names | {"capture": "toy", "version": __version__, "recipe": None}
    assert {name: record[name] for name in expected} == expected
    assert ("optimizer" in record) != ("stages" in record)
