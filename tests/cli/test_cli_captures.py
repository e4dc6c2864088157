"""What ``inspect`` and the first lines of ``train`` say of a capture, and that the next command can be followed."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from splatopt.cli import main
from splatopt.runs.program import program
from train.toys import make_toy_capture


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("captures") / "toy", width=32, height=24, points=30, views=9)


def inspected(capsys, *words: str) -> str:
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def next_words(shown: str) -> list[str]:
    """Return the words after the program's name in the command that is shown at the end."""
    command = shown.splitlines()[-1][13:].removeprefix(program())
    return shlex.split(command)


@pytest.mark.parametrize("left", [0, 1, 2, 9])
def test_the_next_command_can_be_followed(small, tmp_path, monkeypatch, capsys, left):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small, tmp_path / "toy")
    for index in range(left, 9):
        (tmp_path / "toy" / "images" / f"view_{index:03d}.png").unlink()
    shown = inspected(capsys, "toy")
    problems = [line for line in shown.splitlines() if line.startswith("problem")]
    words = next_words(shown)
    if left == 0:
        (problem,) = problems
        assert "none of the 9 images that the capture names is in toy/images; looked for 'view_000.png'" in problem
    elif left == 1:
        (problem,) = problems
        assert "without the 8 views whose image is missing or cannot be used, the capture has 1 view" in problem
    else:
        assert not problems
    assert words[0] == ("train" if left > 1 else "inspect")
    assert shown.splitlines()[-1].startswith("next  " if left > 1 else "once mended  ")
    assert ("--skip-missing" in words) == (left == 2)
    for number in (1, 2):
        assert main([*words, *(["--steps", "1"] if left > 1 else [])]) == 0
        capsys.readouterr()
        words = next_words(inspected(capsys, "toy"))
        if left > 1:
            assert words[words.index("--out") + 1] == f"runs/toy-{number + 1}"


def test_training_does_not_advise_what_cannot_work(small, tmp_path, capsys):
    copy = Path(shutil.copytree(small, tmp_path / "toy"))
    shutil.rmtree(copy / "images")
    (copy / "images").mkdir()
    for words in ([], ["--skip-missing"]):
        assert main(["train", str(copy), "--out", str(tmp_path / "run"), *words]) == 2
        said = capsys.readouterr().err
        assert "none of the 9 images that the capture names is in" in said
        assert "--skip-missing" not in said


def test_what_inspect_was_told_is_what_training_is_told(small, tmp_path, capsys):
    words = next_words(inspected(capsys, str(small), "--downscale", "2", "--max-side", "30", "--test-every", "3"))
    assert words[4:] == ["--downscale", "2", "--max-side", "30", "--test-every", "3"]
    shown = inspected(capsys, str(small), "--downscale", "4")
    assert "2 held-out views are too small to be scored, such as 'view_000.png' of 8x6 pixels" in shown
    assert next_words(shown)[0] == "inspect"


def test_training_says_first_what_was_found_and_what_is_not_used(small, tmp_path, capsys):
    copy = Path(shutil.copytree(small, tmp_path / "toy"))
    Image.new("RGB", (32, 24)).save(copy / "images" / "new.png")
    (copy / "sparse" / "0" / "test.txt").write_text("view_004.png\n")
    sentences = (
        "sparse/0/test.txt: used, its view is held out",
        "1 of 10 images beside those of the views (images/new.png): not used, the capture has no pose for them",
    )
    shown = inspected(capsys, str(copy))
    assert "split        test.txt: 8 train, 1 test" in shown
    assert f"found        {sentences[0]}" in shown
    assert f"warning      {sentences[1]}" in shown
    assert main(["train", str(copy), "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said.index(f"warning: {sentences[1]}") < said.index(f"found: {sentences[0]}") < said.index("training, step 0")
    )
