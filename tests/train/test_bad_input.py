"""Bad input on the command line: one sentence, exit code 2, no stack trace, nothing lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from splatopt.cli import main
from splatopt.core import checkpoint as checkpoint_module
from splatopt.raster.problem import ViewLoss
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import load_ply, save_ply
from splatopt.train import machine as machine_module
from splatopt.train.run import open_run
from train.toys import ToyRenderer, make_toy_capture


@pytest.fixture(scope="module")
def good_capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


@pytest.fixture
def capture(good_capture, tmp_path) -> Path:
    """A capture that a test may break."""
    return Path(shutil.copytree(good_capture, tmp_path / "capture"))


@pytest.fixture(autouse=True)
def toy(monkeypatch) -> None:
    monkeypatch.setattr(machine_module, "open_backend", lambda *_: ToyRenderer())


@pytest.fixture
def train(capture, tmp_path, capsys) -> Callable[..., tuple[int, str]]:
    """``splatopt train``: exit code and standard error."""

    def run(*words: str, steps: int = 8) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["train", str(capture), "--out", str(tmp_path / "run"), "--steps", str(steps), *words])
        return code, capsys.readouterr().err

    return run


def refused(result: tuple[int, str], *said: str) -> str:
    """Check that bad input ended in one sentence that says ``said``, and return it."""
    code, error = result
    assert code == 2, error
    assert "Traceback" not in error
    sentences = [line for line in error.splitlines() if line.startswith("splatopt: ")]
    assert len(sentences) == 1, error
    for words in said:
        assert words in sentences[0]
    return sentences[0]


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def model(capture: Path) -> Path:
    return capture / "sparse" / "0"


def some_image(capture: Path) -> Path:
    return sorted((capture / "images").iterdir())[3]


def test_no_capture(train, capture, tmp_path):
    shutil.rmtree(capture)
    refused(train(), str(capture), "no capture")
    assert not (tmp_path / "run").exists()


def test_no_model_lists_the_paths_tried(train, capture, tmp_path):
    shutil.rmtree(capture / "sparse")
    refused(train(), "no model found", "sparse/0", "transforms.json")
    assert not (tmp_path / "run").exists()


def test_a_missing_image_is_named_and_can_be_skipped(train, capture):
    image = some_image(capture)
    image.unlink()
    refused(train(), image.name, "missing", "--skip-missing")
    code, error = train("--skip-missing")
    assert code == 0
    assert image.name in error


def test_a_truncated_image_is_named_and_can_be_skipped(train, capture):
    image = some_image(capture)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    refused(train(), image.name, "truncated", "--skip-missing")
    assert train("--skip-missing")[0] == 0


def test_an_image_of_another_size_is_named(train, capture):
    from PIL import Image

    Image.new("RGB", (50, 10)).save(some_image(capture))
    refused(train(), some_image(capture).name, "50x10", "24x16")


def test_zero_points(train, capture):
    edit(model(capture) / "points3D.txt", lambda text: "# none\n")
    refused(train(), "points", "--init random")
    assert train("--init", "random", "--random-points", "9")[0] == 0


def keep_views(capture: Path, count: int) -> None:
    """Leave only the first ``count`` views in the model, two lines each."""

    def keep(text: str) -> str:
        lines = text.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        views = [line for line in lines if not line.startswith("#")]
        return "\n".join([*comments, *views[: 2 * count]]) + "\n"

    edit(model(capture) / "images.txt", keep)


def test_one_view_only(train, capture):
    keep_views(capture, 1)
    refused(train(), "1 view", "at least 2")


def test_a_pose_that_is_nan(train, capture):
    def spoil(text: str) -> str:
        lines = text.splitlines()
        index = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        words = lines[index].split()
        words[5] = "nan"
        lines[index] = " ".join(words)
        return "\n".join(lines) + "\n"

    edit(model(capture) / "images.txt", spoil)
    refused(train(), "pose", "NaN")


def test_an_unknown_camera_model(train, capture):
    edit(model(capture) / "cameras.txt", lambda text: text.replace(" PINHOLE ", " KALEIDOSCOPE "))
    refused(train(), "KALEIDOSCOPE")


@pytest.fixture
def scene(tmp_path) -> Path:
    """A scene of three Gaussians."""
    cloud = GaussianCloud(
        means=torch.zeros(3, 3),
        log_scales=torch.full((3, 3), -2.0),
        quats=torch.tensor([[1.0, 0, 0, 0]] * 3),
        logit_opacities=torch.zeros(3),
        sh_dc=torch.zeros(3, 3),
        sh_rest=torch.zeros(3, 0, 3),
    )
    save_ply(cloud, tmp_path / "scene.ply")
    return tmp_path / "scene.ply"


def test_a_scene_that_is_absent(train, tmp_path):
    refused(train("--init", str(tmp_path / "absent.ply")), "absent.ply")


def test_a_scene_with_a_missing_property(train, scene):
    scene.write_bytes(scene.read_bytes().replace(b"property float opacity", b"property float density"))
    refused(train("--init", str(scene)), "scene.ply", "opacity")


def test_a_scene_with_nan(train, scene):
    data = scene.read_bytes()
    body = data.index(b"end_header\n") + len(b"end_header\n")
    scene.write_bytes(data[:body] + b"\x00\x00\xc0\x7f" + data[body + 4 :])
    refused(train("--init", str(scene)), "scene.ply", "NaN", "1")


def test_a_folder_that_is_not_a_run(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(train(), "not a run", "--out")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_where_the_folder_should_be(train, tmp_path):
    (tmp_path / "run").write_text("a file")
    refused(train(), "not a run", "--out")


def test_a_run_is_not_overwritten(train):
    assert train()[0] == 0
    refused(train(), "--resume")


def test_resuming_nothing(train):
    refused(train("--resume"), "is not a run")


def test_resuming_with_another_seed(train):
    assert train()[0] == 0
    refused(train("--resume", "--seed", "4"), "--seed 0", "4")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(train, tmp_path):
    assert train()[0] == 0
    straight = (tmp_path / "run" / "scene.ply").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    refused(train("--resume"), "no checkpoint to resume from")
    for name in ("scene.ply", "eval.json"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"")
    code, error = train("--resume")
    assert code == 0
    assert "stopped before its first checkpoint; it begins at step 0" in error
    assert (tmp_path / "run" / "scene.ply").read_bytes() == straight


def test_views_too_small_to_be_scored(train, tmp_path):
    refused(train("--max-side", "10"), "view view_000.png is 10x7 pixels", "11x11", "--max-side")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "99999999999999999999999", "--seed must be at most"),
        ("--seed", "-1", "--seed must be at least 0"),
        ("--threads", "1025", "--threads must be at most 1024, got 1025"),
    ],
)
def test_numbers_out_of_range(train, tmp_path, option, value, said):
    code, error = train(option, value)
    assert code == 2
    assert "Traceback" not in error
    assert said in " ".join(error.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_all_checkpoints_damaged(train, tmp_path):
    assert train()[0] == 0
    for file in (tmp_path / "run" / "checkpoints").glob("*/tensors.safetensors"):
        file.write_bytes(b"")
    refused(train("--resume", steps=9), "no checkpoint to resume from")


def test_a_checkpoint_cut_in_half_falls_back(train, tmp_path):
    assert train("--checkpoint-every", "3")[0] == 0
    newest = tmp_path / "run" / "checkpoints" / "step-000008" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    code, error = train("--resume")
    assert code == 0
    assert "step-000008" in error
    assert "going on at step 6 of 8" in error


def test_a_full_disk(train, tmp_path, monkeypatch):
    write = checkpoint_module.write_durably

    def full(path, data):
        if path.parent.parent.name == "checkpoints":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint_module, "write_durably", full)
    code, error = train()
    assert "warning: the checkpoint of step 0 could not be written (No space left on device)" in error
    refused((code, error), "no checkpoint could be written", "No space left on device")
    assert (tmp_path / "run" / "scene.ply").is_file()


def test_a_scene_later_than_the_last_checkpoint_is_the_one_that_counts(train, tmp_path, monkeypatch):
    write = checkpoint_module.write_durably

    def full(path, data):
        if path.parent.parent.name == "checkpoints" and path.parent.name != ".step-000000.partial":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint_module, "write_durably", full)
    assert train()[0] == 0
    folder = tmp_path / "run"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000"]
    scores = json.loads((folder / "eval.json").read_text())
    run = open_run(folder)
    assert (run.steps, run.seconds) == (8, scores["seconds"])
    assert torch.equal(run.cloud.sh_dc, load_ply(folder / "scene.ply").sh_dc)
    # A scene file is in the capture's own frame, and comes back but for rounding.
    assert run.evaluate(run.open_capture(), ToyRenderer()).psnr == pytest.approx(scores["psnr"], abs=1e-5)
    written = json.loads((folder / "eval.json").read_text())
    assert written.keys() == scores.keys()
    assert (written["steps"], written["seconds"], written["before"]) == (8, scores["seconds"], scores["before"])


def test_a_record_that_was_damaged_is_written_anew(train, tmp_path):
    assert train()[0] == 0
    file = tmp_path / "run" / "eval.json"
    scores = json.loads(file.read_text())
    for damaged in ('{"steps": 8, "psnr": 1, "before": {"views": 3}}', '{"steps": "8", "before": [1]}', '{"ste'):
        file.write_text(damaged)
        run = open_run(tmp_path / "run")
        run.evaluate(run.open_capture(), ToyRenderer())
        anew = json.loads(file.read_text())
        assert anew["views"] == scores["views"]
        assert anew["before"] is None
        assert 0 < anew["seconds"] <= scores["seconds"]


def test_a_disk_that_is_full_from_the_start(train, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint_module, "write_durably", full)
    refused(train(), "No space left on device")


class Breaking(ToyRenderer):
    """Gives a NaN in two rows of the means whenever its turn has come."""

    def accumulate_gradient(self, *arguments) -> ViewLoss:
        result = super().accumulate_gradient(*arguments)
        if self.calls % 5 == 0:
            into = arguments[2]
            into.tensors["means"][:2] = float("nan")
        return result


def test_a_gradient_that_stays_broken(train, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "open_backend", lambda *_: Breaking())
    code, error = train("--checkpoint-every", "3")
    assert "warning: the gradient of means is not finite in 2 of 40 rows at step 5" in error
    assert "went back to the checkpoint of step 3" in error
    refused((code, error), "training stopped", "the gradient of means is not finite in 2 of 40 rows", "step 8")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000003", "step-000006"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--optimizer", "adm"], "did you mean adam"),
        (["--adam.beta1", "1"], "beta1"),
        (["--stages", "adam:8,"], "stage 2 of --stages must be NAME:STEPS, got ''"),
        (["--stages", "adm:8"], "did you mean adam"),
        (["--stages", "adam:0"], "whole number of steps of at least 1, got 'adam:0'"),
        (["--stages", "adam:4,adam:5"], "--steps 8 contradicts --stages adam:4,adam:5, whose steps sum to 9"),
        (["--stages", "adam:8", "--optimizer", "lm"], "--optimizer lm contradicts --stages adam:8"),
        (["--lm.views", "4"], "options of 'lm' are given, but the optimizer is 'adam'"),
        (["--optimizer", "lm", "--lm.iterations", "0"], "iterations must be at least 1, got 0"),
        (["--optimizer", "lm", "--lm.views", "-1"], "views must be at least 0, got -1"),
        (["--optimizer", "lm", "--lm.damping-min", "5"], "damping_min <= damping_start"),
        (["--optimizer", "lm", "--lm.preconditioner", "chol"], "chol"),
        (["--optimizer", "lm"], "which PhotometricObjective on the toy backend does not give"),
        (["--init", "scene.obj"], "--init must be"),
        (["--background", "2", "0", "0"], "background"),
        (["--footprint", "sharp"], "sharp"),
        (["--no-such-option"], "--no-such-option"),
        (["--downscale", "half"], "half"),
    ],
)
def test_options_without_sense(train, tmp_path, words, said):
    code, error = train(*words)
    assert code == 2
    assert said in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_renderer(train, monkeypatch):
    monkeypatch.undo()
    refused(train("--renderer", "natve"), "natve", "native")


@pytest.mark.parametrize("command", ["eval", "render", "export"])
def test_a_folder_without_a_run(command, tmp_path, capsys):
    words = [command, str(tmp_path)] + (["scene.ply"] if command == "export" else [])
    code = main(words)
    refused((code, capsys.readouterr().err), "is not a run of splatopt")


def test_inspecting_nothing(tmp_path, capsys):
    code = main(["inspect", str(tmp_path)])
    refused((code, capsys.readouterr().err), "no model found")
