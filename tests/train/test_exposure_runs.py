"""Runs with colour maps of their photographs: solved, kept, scored under both protocols."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.exposure import disturb, draw_maps
from PIL import Image

from core.process_group import in_threads
from splatopt.commands.evaluate import main as eval_main
from splatopt.commands.render import main as render_main
from splatopt.core import native
from splatopt.core.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.processes import Processes
from splatopt.data import make_capture
from splatopt.report.scene_page import write_report
from splatopt.runs.events import Warned
from splatopt.scene.exposure import Exposure, anchored_maps, identity_maps
from splatopt.train.checkpoint_content import check_training
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.prune import prune
from splatopt.train.pruning import PruneOptions
from splatopt.train.result import TrainResult
from splatopt.train.run import open_run
from train.toys import ToyRenderer, cut

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exposures")
    plain = make_capture(folder / "plain", seed=0, views=16, width=48, height=36, points=400)
    disturb(plain, folder / "disturbed", seed=3)
    return folder / "disturbed"


def run(capture: Path, out: Path, **changes) -> TrainResult:
    settings = {"steps": 90, "optimizer": "learned", "checkpoint_every": 40, "threads": 1, "exposure": Exposure.AFFINE}
    return train(TrainConfig.of(str(capture), out=out, **(settings | changes)))


@pytest.fixture(scope="module")
def trained(capture, tmp_path_factory) -> TrainResult:
    return run(capture, tmp_path_factory.mktemp("runs") / "affine")


def test_maps_come_near_what_the_photographs_were_given(capture, trained):
    opened = open_run(trained.folder)
    train_views = list(trained.capture.split.train)
    maps = opened.exposure.maps
    assert torch.equal(maps[list(trained.capture.split.test)], identity_maps(len(trained.capture.split.test)))
    torch.testing.assert_close(maps[train_views].mean(dim=0), identity_maps(1)[0], rtol=0, atol=1e-12)
    truth = anchored_maps(draw_maps(16, seed=3)[train_views])
    grey = torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64)
    before, after = ((one @ grey - truth @ grey).abs().mean() for one in (identity_maps(len(truth)), maps[train_views]))
    assert after < before / 4


def test_both_protocols_stand_in_the_record_by_name(capture, trained, tmp_path, capsys):
    record = json.loads((trained.folder / "eval.json").read_text())
    assert record["psnr"] == trained.after.psnr
    fitted = record["fitted"]
    assert "fitted to the left half" in fitted["protocol"]
    assert fitted["psnr"] == trained.after.fitted_psnr > fitted["plain_psnr"]
    assert [view["name"] for view in fitted["views"]] == [view["name"] for view in record["views"]]
    plain = run(capture, tmp_path / "none", exposure=Exposure.NONE)
    assert plain.after.fitted == ()
    assert "fitted" not in json.loads((plain.folder / "eval.json").read_text())
    assert trained.after.fitted_psnr > 1 + open_run(plain.folder).evaluate(plain.capture, fitted=True).fitted_psnr
    assert eval_main([str(plain.folder), "--fitted"]) == 0
    assert "with a colour map fitted to the left halves" in capsys.readouterr().out
    assert "Fitted PSNR" in write_report(trained.folder).read_text()


def test_a_run_goes_on_bit_exactly(trained):
    again = train(TrainConfig.of(str(trained.capture.path), out=cut(trained.folder, 80), resume=True, threads=1))
    assert (again.folder / "scene.ply").read_bytes() == (trained.folder / "scene.ply").read_bytes()
    assert torch.equal(open_run(again.folder).exposure.maps, open_run(trained.folder).exposure.maps)


@pytest.mark.parametrize("optimizer", ["adam", "tr2", "block-gn", "lm"])
def test_every_kind_of_optimizer_takes_the_photographs_taken_back(optimizer, capture, tmp_path):
    result = run(capture, tmp_path / optimizer, optimizer=optimizer, steps=3 if optimizer == "lm" else 16)
    assert result.after.fitted_psnr > result.before.fitted_psnr
    assert not torch.equal(open_run(result.folder).exposure.maps, identity_maps(16))


def test_stages_growth_and_batches_of_views_keep_the_maps(capture, tmp_path):
    changes = {"steps": None, "optimizer": "adam", "stages": "adam:20,tr2:10", "density": "mcmc", "view_batch": 2}
    first = run(capture, tmp_path / "whole", checkpoint_every=25, **changes)
    again = train(TrainConfig.of(str(capture), out=cut(first.folder, 25), resume=True, threads=1))
    assert (again.folder / "scene.ply").read_bytes() == (first.folder / "scene.ply").read_bytes()


def test_a_checkpoint_without_usable_maps_is_not_believed(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
    good = load_checkpoint(folder / "checkpoints" / "step-000090")
    shutil.rmtree(folder / "checkpoints")
    check_training(good)
    for maps in (torch.zeros(16, 3, 4, dtype=torch.float64), torch.eye(3, 4).repeat(16, 1, 1), torch.eye(3, 4)):
        with pytest.raises(DamagedCheckpointError, match="exposure.maps must"):
            check_training(replace(good, tensors={**good.tensors, "exposure.maps": maps}))
    fewer = replace(good, tensors={**good.tensors, "exposure.maps": good.tensors["exposure.maps"][:5]})
    save_checkpoint(folder / "checkpoints", replace(fewer, path=None))
    with pytest.raises(InputError, match="holds the colour maps of 5 views, and the capture has 16"):
        train(TrainConfig.of(str(trained.capture.path), out=folder, resume=True, threads=1))
    with pytest.raises(InputError, match="holds the colour maps of 5 views, and the capture has 16"):
        open_run(folder).objective(trained.capture)


def test_pruning_keeps_the_maps(trained, tmp_path):
    opened = open_run(trained.folder)
    prune(opened, PruneOptions(to=260, repair=3), tmp_path / "pruned")
    assert torch.equal(open_run(tmp_path / "pruned").exposure.maps, opened.exposure.maps)


def test_pruning_a_scene_file_takes_the_maps_of_the_last_whole_checkpoint_or_solves_them(trained, tmp_path):
    """As after a full disk: neither is the scene repaired towards photographs as they are."""
    truth = open_run(trained.folder).exposure.maps
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000090")
    opened, (older,) = open_run(folder), (folder / "checkpoints").iterdir()
    assert opened.steps == 90
    assert torch.equal(opened.exposure.maps, load_checkpoint(older).tensors["exposure.maps"])
    assert any("the colour maps are of the latter" in warning for warning in opened.warnings)
    prune(opened, PruneOptions(to=260, repair=2), tmp_path / "older")
    assert torch.equal(open_run(tmp_path / "older").exposure.maps, opened.exposure.maps)
    shutil.rmtree(folder / "checkpoints")
    told: list[object] = []
    prune(open_run(folder), PruneOptions(to=260, repair=2), tmp_path / "solved", tell=told.append)
    solved = open_run(tmp_path / "solved").exposure.maps
    assert float((solved - truth).abs().mean()) < 0.1 * float((truth - identity_maps(16)).abs().mean())
    assert any("they are solved anew" in event.message for event in told if isinstance(event, Warned))


def test_pictures_get_the_exposure_of_their_photographs(trained, tmp_path):
    plain, exposed = tmp_path / "plain", tmp_path / "exposed"
    assert render_main([str(trained.folder), "--path", "train", "--out", str(plain)]) == 0
    assert render_main([str(trained.folder), "--path", "train", "--with-exposure", "--out", str(exposed)]) == 0
    errors = []
    for folder in (plain, exposed):
        total = 0.0
        for view in trained.capture.split.train:
            name = trained.capture.cameras[view].name
            with Image.open(folder / name) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).int()
            total += float((pixels - trained.capture.images[view].int()).abs().float().mean())
        errors.append(total)
    assert errors[1] < errors[0] / 2
    with pytest.raises(InputError, match="--with-exposure is for --path train"):
        render_main([str(trained.folder), "--with-exposure", "--out", str(tmp_path / "no")])


def test_processes_agree_on_the_maps_of_one(capture, tmp_path):
    def work(processes: Processes):
        out = tmp_path / f"of-{processes.world_size}"
        config = TrainConfig.of(str(capture), out=out, steps=24, view_batch=2, exposure=Exposure.AFFINE)
        return train(config, renderer=ToyRenderer(), processes=processes)

    in_threads(2, work)
    in_threads(1, work)
    two, one = (open_run(tmp_path / f"of-{count}").exposure.maps for count in (2, 1))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    shutil.rmtree(tmp_path / "of-1")


def test_maps_of_see_through_photographs_are_warned_of(capture, tmp_path):
    see_through = tmp_path / "see-through"
    shutil.copytree(capture, see_through)
    for path in sorted((see_through / "images").rglob("*.png")):
        image = Image.open(path).convert("RGB")
        image.putalpha(Image.new("L", image.size, 128))
        image.save(path)
    told: list[str] = []
    listener = lambda event: told.append(event.message) if isinstance(event, Warned) else None  # noqa: E731
    for one, exposure in ((capture, Exposure.AFFINE), (see_through, Exposure.NONE), (see_through, Exposure.AFFINE)):
        config = TrainConfig.of(
            str(one), out=tmp_path / f"run-{len(list(tmp_path.iterdir()))}", steps=2, threads=1, exposure=exposure
        )
        train(config, [listener])
    assert [sentence[:60] for sentence in told if "see-through" in sentence] == [
        "photographs are see-through, and --exposure affine maps the b"[:60]
    ]
