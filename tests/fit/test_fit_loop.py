"""Fits: what they leave, that they go on bit-exactly, and that nothing is lost when something breaks."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.data.mesh import load_mesh, write_mesh
from splatopt.data.torus_knot import make_torus_knot
from splatopt.fields.image import ImageTask
from splatopt.fit.config import FitConfig
from splatopt.fit.events import FitProgress, FitScored, FitStarted, FitStepped
from splatopt.fit.loop import FitResult, fit_field, open_field
from splatopt.fit.results import result_pictures
from splatopt.report.field_page import write_field_report
from splatopt.runs import resumable as kept_run
from splatopt.runs.events import Ended, Saved, Warned
from splatopt.runs.resumable import InterruptedRunError, NonFiniteError
from train.moved_captures import NOWHERE, UTM, move_files
from train.toys import lasting, lines, make_toy_capture

SIDE = 24


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    x = np.linspace(0, 3, SIDE)
    pixels = 127 + 100 * np.sin(x)[:, None, None] * np.cos(2 * x)[None, :, None] * np.array([1.0, 0.5, -0.5])
    path = tmp_path_factory.mktemp("photo") / "waves.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def settings(photo, tmp_path):
    def make(name: str = "run", **changes) -> FitConfig:
        base = {
            "field": "sine",
            "optimizer": "esgd",
            "width": 24,
            "depth": 1,
            "batch": 100,
            "epochs": 6,
            "log_every": 4,
        }
        base |= {"out": tmp_path / name, "eval_every": 12, "checkpoint_seconds": 0.0, "threads": 1, "omega": 10.0}
        return FitConfig.of(str(photo), **(base | changes))

    return make


class Listener:
    """Keeps all events; stops the run after a step when told to, by an exception or a signal."""

    def __init__(self, stop_at: int | None = None, by: int | None = None) -> None:
        self.events, self.stop_at, self.by = [], stop_at, by

    def __call__(self, event) -> None:
        self.events.append(event)
        if isinstance(event, FitStepped) and event.step == self.stop_at:
            if self.by is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.by)

    def of(self, kind) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def assert_same(first: FitResult, second: FitResult) -> None:
    a, _ = latest_checkpoint(first.folder / "checkpoints")
    b, _ = latest_checkpoint(second.folder / "checkpoints")
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys()
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name]), name
    assert a.scalars["optimizer"] == b.scalars["optimizer"]
    assert lasting(first.folder) == lasting(second.folder)
    assert first.after == second.after


# ---------------------------------------------------------------------- from end to end


def test_a_fit_leaves_its_folder(settings):
    listener = Listener()
    result = fit_field(settings(), [listener])
    names = ["checkpoints", "config.json", "eval.json", "metrics.jsonl", "result.png"]
    assert sorted(path.name for path in result.folder.iterdir()) == names
    assert result.steps == 6 * 6, "576 pixels in batches of 100 are 6 steps an epoch"
    assert result.after["psnr"] > result.before["psnr"] + 8
    record = json.loads((result.folder / "eval.json").read_text())
    assert {name: record[name] for name in ("psnr", "ssim")} == result.after
    assert (record["before"], record["steps"], record["task"]) == (result.before, 36, "image")
    written = lines(result.folder)
    assert [line["step"] for line in written] == list(range(4, 37, 4))
    assert [line["epoch"] for line in written][:2] == [round(4 / 6, 4), round(8 / 6, 4)]
    assert [line["step"] for line in written if "score_psnr" in line] == [12, 24]
    for line in written:
        assert {"step", "seconds", "loss", "psnr", "memory_mb"} <= line.keys()
    picture = np.asarray(Image.open(result.folder / "result.png")) / 255
    error = np.mean((picture - result.task.image.numpy()) ** 2)
    assert -10 * np.log10(error) == pytest.approx(result.after["psnr"], abs=0.1)
    started = listener.of(FitStarted)[0]
    assert (started.step, started.steps, started.size) == (0, 36, 576)
    assert started.parameters == sum(value.numel() for value in result.task.parameters.values())
    assert [event.step for event in listener.of(FitStepped)] == list(range(1, 37))
    assert [event.step for event in listener.of(FitScored)] == [0, 12, 24, 36]
    assert [event.step for event in listener.of(Saved)] == [0, 36]
    assert isinstance(listener.events[-1], Ended)


def test_scores_come_at_the_steps_asked_for_and_change_nothing(settings):
    plain = fit_field(settings("plain", eval_every=0))
    scored = fit_field(settings("scored", eval_every=10, eval_at=(1, 7, 20, 999)))
    steps = [line["step"] for line in lines(scored.folder) if "score_psnr" in line]
    assert steps == [1, 7, 10, 20, 30]
    assert scored.after == plain.after


def test_a_shape_becomes_a_mesh_in_the_coordinates_of_its_file(settings, tmp_path):
    knot = make_torus_knot(around=8, along=48)
    path = tmp_path / "knot.ply"
    write_mesh(path, knot.vertices * 7 + 100, knot.faces)
    changes = {"points": 6000, "resolution": 24, "width": 48}
    listener = Listener()
    config = settings("shape", batch=1000, epochs=30, **changes)
    result = fit_field(config.changed(target=str(path)), [listener])
    assert result.after["iou"] > max(0.5, result.before["iou"])
    mesh = load_mesh(result.folder / "mesh.ply")
    assert float(mesh.center[0]) == pytest.approx(100, abs=1)
    assert 2 * 0.9 / mesh.scale == pytest.approx(7 * 1.8, rel=0.2)
    assert Image.open(result.folder / "result.png").size == (24, 24)
    assert not listener.of(Warned)


def test_a_mesh_at_utm_coordinates_is_fitted_as_one_at_the_origin(settings, tmp_path):
    knot, shift = make_torus_knot(around=6, along=32), torch.tensor([5e5, 5e6, 100.0], dtype=torch.float64)
    found = []
    for name, by in (("here", 0 * shift), ("there", shift)):
        write_mesh(tmp_path / f"{name}.ply", knot.vertices * 7 + by, knot.faces)
        config = settings(name, points=2000, resolution=16, epochs=12).changed(target=str(tmp_path / f"{name}.ply"))
        result = fit_field(config)
        found.append((result, load_mesh(result.folder / "mesh.ply")))
    (here, mine), (there, theirs) = found
    for name, value in here.task.parameters.items():
        torch.testing.assert_close(there.task.parameters[name], value, rtol=1e-4, atol=1e-4)
    restored = theirs.restored(theirs.vertices) - shift
    torch.testing.assert_close(restored, mine.restored(mine.vertices), rtol=0, atol=1e-2)


def test_a_radiance_field_is_fitted_alike_anywhere(settings, tmp_path):
    capture = make_toy_capture(tmp_path / "toy")
    changes = {"steps": 5, "samples": 8, "score_views": 1, "field": "gaussian", "omega": None, "optimizer": "adam"}
    scores = []
    for name, scale, shift in (("here", 1.0, NOWHERE), ("small", 1e-4, NOWHERE), ("utm", 1.0, UTM)):
        moved = move_files(capture, tmp_path / f"{name}-capture", scale, shift)
        result = fit_field(settings(name, eval_every=0, **changes).changed(target=str(moved)))
        scores.append(result.after["psnr"])
    assert scores[1:] == pytest.approx([scores[0]] * 2, abs=1e-3)


def test_an_open_mesh_is_said_to_be_judged_by_winding_numbers(settings, tmp_path):
    knot = make_torus_knot(around=6, along=24)
    write_mesh(tmp_path / "open.obj", knot.vertices, knot.faces[:-3])
    listener = Listener()
    changes = {"points": 300, "resolution": 8, "epochs": 1}
    config = settings("open", **changes).changed(target=str(tmp_path / "open.obj"))
    result = fit_field(config, [listener])
    assert "not watertight, so winding numbers decided" in listener.of(Warned)[0].message
    pictures = result_pictures(config, result.task)
    assert [picture.target for picture in pictures] == [None]
    page = write_field_report(result.folder, pictures).read_text()
    assert "fitted of shape" in page
    assert "target of shape" not in page
    assert "No target is drawn" in page


def test_a_capture_becomes_views(settings, tmp_path):
    capture = make_toy_capture(tmp_path / "toy")
    changes = {"steps": 40, "samples": 8, "score_views": 1, "field": "gaussian", "omega": None, "optimizer": "adam"}
    config = settings("scene", eval_every=0, **changes).changed(target=str(capture))
    result = fit_field(config)
    assert result.config.data.task.value == "nerf"
    assert result.after["psnr"] > result.before["psnr"]
    (picture,) = (result.folder / "views").iterdir()
    assert Image.open(picture).size == (24, 16)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "kfac", "zoo:lion"])
def test_other_optimizers_fit_too(settings, optimizer):
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    batch = None if optimizer == "lbfgs" else 100
    result = fit_field(settings(optimizer=optimizer, batch=batch, eval_every=0))
    assert result.after["psnr"] > result.before["psnr"]
    assert result.steps == (6 if optimizer == "lbfgs" else 36)


# ---------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("optimizer", "by"),
    [("esgd", None), ("adam", None), ("kfac", None), ("shampoo", None), ("esgd", signal.SIGTERM)],
)
def test_a_stopped_fit_goes_on_bit_exactly(settings, optimizer, by):
    straight = fit_field(settings("straight", optimizer=optimizer))
    with pytest.raises(InterruptedRunError, match=r"stopped at step 14 of 36, step-000014 is kept; go on with: .*fit"):
        fit_field(settings("stopped", optimizer=optimizer), [Listener(14, by)])
    resumed = fit_field(settings("stopped", optimizer=optimizer, resume=True))
    assert_same(straight, resumed)
    assert resumed.before == straight.before


def test_resuming_needs_only_target_and_folder_and_may_go_further(settings, photo, tmp_path):
    short = fit_field(settings("short", epochs=3, log_every=6))
    longer = fit_field(FitConfig.of(str(photo), out=short.folder, resume=True, epochs=6))
    assert_same(fit_field(settings("straight", log_every=6)), longer)


def test_a_finished_fit_that_is_resumed_is_done(settings):
    first = fit_field(settings())
    again = fit_field(settings(resume=True))
    assert (again.steps, again.after) == (36, first.after)


def test_a_damaged_checkpoint_is_passed_over(settings):
    with pytest.raises(InterruptedRunError):
        fit_field(settings(), [Listener(10)])
    newest = settings().folder / "checkpoints" / "step-000010" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    listener = Listener()
    fit_field(settings(resume=True), [listener])
    assert "step-000010" in listener.of(Warned)[0].message
    assert listener.of(FitStarted)[0].step == 0


def test_a_run_is_never_overwritten(settings):
    fit_field(settings(epochs=1))
    kept = (settings().folder / "eval.json").read_bytes()
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        fit_field(settings(epochs=1))
    assert (settings().folder / "eval.json").read_bytes() == kept
    shutil.rmtree(settings().folder / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        fit_field(settings(epochs=1, resume=True))


def test_another_target_than_before_is_noticed(settings, tmp_path):
    with pytest.raises(InterruptedRunError):
        fit_field(settings(), [Listener(5)])
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    config = FitConfig.of(str(tmp_path / "other.png"), out=settings().folder, resume=True)
    with pytest.raises(InputError, match="the image is 9x9 pixels, the run was fitted to 24x24"):
        fit_field(config)


# ---------------------------------------------------------------------- when something breaks


def test_numbers_that_break_down_go_back_once_and_then_stop(settings):
    listener = Listener()
    with pytest.raises(NonFiniteError, match=r"fitting stopped: .*not finite.*already gone back once.*lower the"):
        fit_field(settings(optimizer="sgd", field="relu", omega=None, optimizer_options=sgd(1e30)), [listener])
    said = [listener.of(Warned)[0].message]
    assert said[0].endswith("went back to the checkpoint of step 0, with a new order of examples")
    with pytest.raises(NonFiniteError):
        changes = {"optimizer": "sgd", "field": "relu", "omega": None, "optimizer_options": sgd(1e30)}
        fit_field(settings("full", batch=SIDE**2, **changes), [listener])
    assert listener.of(Warned)[1].message.endswith("went back to the checkpoint of step 0")
    assert latest_checkpoint(settings().folder / "checkpoints")[0].step == 0


def test_numbers_that_break_down_are_noticed_before_they_are_scored(settings, monkeypatch):
    changes = {"optimizer": "sgd", "field": "relu", "omega": None, "optimizer_options": sgd(1e30), "eval_every": 1}
    with pytest.raises(NonFiniteError, match="fitting stopped: .*already gone back once"):
        fit_field(settings("steps", **changes))
    found = iter([8.0, *[math.nan] * 9])
    monkeypatch.setattr(ImageTask, "score", lambda self: {"psnr": next(found)})
    with pytest.raises(NonFiniteError, match="fitting stopped: the psnr is no number after step 1"):
        fit_field(settings("score", steps=1))
    for folder in (settings("steps").folder, settings("score").folder):
        assert all("NaN" not in path.read_text() for path in folder.glob("*.json*"))


def test_steps_taken_again_see_other_examples(settings, monkeypatch):
    gradient, seen = ImageTask.gradient, []

    def broken_once(self, batch):
        found = gradient(self, batch)
        seen.append(batch.tolist())
        return replace(found, loss=math.nan) if len(seen) == 2 else found

    monkeypatch.setattr("splatopt.fit.loop.check_field_memory", lambda *_: None)
    monkeypatch.setattr(ImageTask, "gradient", broken_once)
    fit_field(settings(optimizer="adam", eval_every=0, steps=2))
    assert len(seen) == 4
    assert seen[:2] != seen[2:]


def sgd(rate):
    from splatopt.optim.field_optimizers import SgdOptions

    return SgdOptions(rate=rate)


def test_a_full_disk_is_survived(settings, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_run, "save_checkpoint", refuse)
    listener = Listener()
    result = fit_field(settings(), [listener])
    assert result.after["psnr"] > result.before["psnr"]
    assert "No space left on device" in listener.of(Warned)[0].message


@pytest.mark.parametrize(("content", "said"), [(None, "there is no such file"), (b"no image", "truncated or no image")])
def test_an_image_that_cannot_be_read_is_refused_and_nothing_is_left(settings, tmp_path, content, said):
    path = tmp_path / "broken.png"
    if content:
        path.write_bytes(content)
    config = settings().changed(target=str(path))
    with pytest.raises(InputError, match=said):
        fit_field(config)
    assert not settings().folder.exists()


def test_a_full_batch_that_does_not_fit_is_refused_before_anything_is_written(settings, monkeypatch):
    small = type("Memory", (), {"available": 2**16})
    monkeypatch.setattr("splatopt.fit.loop.psutil.virtual_memory", lambda: small)
    config = settings(optimizer="lbfgs", optimizer_options=None, batch=None)
    with pytest.raises(InputError, match=r"lbfgs needs all 576 examples in one batch, about 0\.0 GiB.*with --max-side"):
        fit_field(config)
    assert not config.folder.exists()


def test_lbfgs_on_a_capture_is_refused(settings, tmp_path):
    capture = make_toy_capture(tmp_path / "toy")
    config = settings(optimizer="lbfgs", batch=None)
    with pytest.raises(InputError, match=r"lbfgs needs all examples in one batch, and the [\d,]+ rays"):
        fit_field(config.changed(target=str(capture)))


# ---------------------------------------------------------------------- around it


def test_an_opened_field_is_the_trained_one(settings):
    result = fit_field(settings())
    config, task, steps = open_field(result.folder)
    assert steps == 36
    assert config.network.field == "sine"
    assert task.score() == result.after
    with pytest.raises(InputError, match="is not a run of splatopt"):
        open_field(result.folder.parent)


def test_the_page_stands_alone_and_tells_what_happened(settings):
    result = fit_field(settings())
    config, task, _ = open_field(result.folder)
    page = write_field_report(result.folder, result_pictures(config, task)).read_text()
    assert f"{result.before['psnr']:.2f} → {result.after['psnr']:.2f}" in page
    assert page.count('<img src="data:image/png;base64,') == 3
    assert page.count("<svg") == 4
    assert "--field sine --optimizer esgd" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_progress_says_everything_a_person_asks_for(settings, capsys):
    fit_field(settings(), [FitProgress()])
    said = capsys.readouterr().err
    for words in (
        "image of 576 examples",
        "field sine",
        "optimizer esgd",
        "step 36/36",
        "PSNR",
        "dB",
        " MB",
        "ms/step",
    ):
        assert words in said, words


def test_large_images_are_shrunk(settings, photo):
    result = fit_field(settings(max_side=12, epochs=1))
    assert result.task.image.shape == (12, 12, 3)


def test_the_number_of_threads_is_put_back(settings):
    before = torch.get_num_threads()
    fit_field(settings(epochs=1, threads=before + 1))
    assert torch.get_num_threads() == before
