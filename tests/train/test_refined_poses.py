"""Runs that refine poses: what they leave, how they go on, and what opens them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from splatopt.cli import main
from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.frame import Frame
from splatopt.core.processes import Processes
from splatopt.data import Capture, make_capture
from splatopt.runs.events import Warned
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.prune import prune
from splatopt.train.pruning import PruneOptions
from splatopt.train.refined_poses import CameraMotion, open_refinement, saved_poses
from splatopt.train.result import TrainResult
from splatopt.train.run import open_run
from train.toys import ToyRenderer, cut

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_capture(tmp_path_factory.mktemp("poses") / "toy", seed=0, views=6, width=32, height=24, points=60)


def refine(scene, folder, **changes) -> TrainResult:
    settings = {"steps": 24, "checkpoint_every": 12, "optimizer": "block-gn", "threads": 1, "refine_poses": True}
    return train(TrainConfig.of(str(scene), out=folder, **(settings | changes)), ())


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory) -> TrainResult:
    return refine(scene, tmp_path_factory.mktemp("refined") / "run")


def test_a_run_says_where_cameras_stand_and_how_far_they_moved(run):
    told = json.loads((run.folder / "poses.json").read_text())
    capture = run.capture
    assert [view["name"] for view in told["views"]] == [capture.cameras[view].name for view in capture.split.train]
    given = [capture.cameras[view].world_to_camera for view in capture.split.train]
    found = [torch.tensor(view["world_to_camera"], dtype=torch.float64) for view in told["views"]]
    motion = CameraMotion.between(given, found, capture.extent)
    assert 0 < max(motion.degrees) < 10
    assert motion.to_json()["turned_degrees"]["max"] == pytest.approx(told["turned_degrees"]["max"], rel=1e-6)
    assert motion.to_json()["moved_share"]["median"] == pytest.approx(told["moved_share"]["median"], rel=1e-6)
    assert run.cameras_moved is not None
    assert run.cameras_moved.sentence.startswith(f"poses: {len(given)} training cameras turned by ")


def test_the_run_opened_again_has_the_refined_cameras_and_the_given_held_out_ones(run):
    again = open_run(run.folder)
    capture = again.open_capture()
    objective = again.objective(capture)
    told = json.loads((run.folder / "poses.json").read_text())["views"]
    for view, one in zip(capture.split.train, told, strict=True):
        pose = again.frame.pose_to_world(objective.cameras[view].world_to_camera)
        torch.testing.assert_close(pose, torch.tensor(one["world_to_camera"], dtype=torch.float64), rtol=0, atol=1e-12)
    for view in capture.split.test:
        assert torch.equal(objective.cameras[view].world_to_camera, capture.cameras[view].world_to_camera)
    assert again.evaluate(capture).psnr == pytest.approx(run.after.psnr, abs=1e-9)


def test_the_poses_are_found_without_a_checkpoint_too(run):
    again = open_run(run.folder)
    file = run.folder / "poses.json"
    torch.testing.assert_close(
        saved_poses({}, file, again.frame), saved_poses(again.poses, file, again.frame), rtol=0, atol=1e-12
    )
    assert saved_poses({}, file.with_name("none.json"), again.frame) is None


def test_pictures_and_exported_cameras_are_of_the_refined_poses(run, tmp_path, monkeypatch):
    told = json.loads((run.folder / "poses.json").read_text())["views"]
    places = {Path(one["name"]).stem: inverse_place(torch.tensor(one["world_to_camera"])) for one in told}
    assert main(["export", str(run.folder), str(tmp_path / "scene.ply"), "--cameras"]) == 0
    listed = json.loads((tmp_path / "cameras.json").read_text())
    for one in listed[: len(told)]:
        torch.testing.assert_close(torch.tensor(one["position"]), places[one["img_name"]], rtol=0, atol=1e-5)
    rendered: list[Camera] = []
    monkeypatch.setattr(
        "splatopt.commands.render.write_views",
        lambda folder, cloud, cameras, *rest, **kept: rendered.extend(cameras) or [],
    )
    assert main(["render", str(run.folder), "--path", "train"]) == 0
    frame = open_run(run.folder).frame
    for camera in rendered:
        place = inverse_place(frame.pose_to_world(camera.world_to_camera).float())
        torch.testing.assert_close(place, places[Path(camera.name).stem], rtol=0, atol=1e-5)
    assert len(rendered) == len(told)


def inverse_place(world_to_camera: torch.Tensor) -> torch.Tensor:
    return -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]


@pytest.mark.parametrize("text", ["[]", '{"format": "other"}', '{"format": "splatopt-poses-1", "views": [{}]}'])
def test_damaged_poses_are_refused(text, tmp_path):
    (tmp_path / "poses.json").write_text(text)
    with pytest.raises(InputError, match=r"poses\.json"):
        saved_poses({}, tmp_path / "poses.json", Frame())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam", "density": "mcmc", "max_gaussians": 80},
        {"optimizer": "adam", "steps": None, "stages": "adam:12,block-gn:12"},
        {"optimizer": "adam", "view_batch": 3},
    ],
    ids=["block-gn", "grows", "stages", "batches"],
)
def test_a_run_goes_on_bit_exactly(changes, scene, tmp_path):
    first = refine(scene, tmp_path / "whole", **changes)
    second = train(TrainConfig.of(str(scene), out=cut(first.folder, 12), resume=True, threads=1), ())
    for name in ("scene.ply", "poses.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


def test_a_run_that_refines_nothing_leaves_no_poses(scene, tmp_path):
    result = refine(scene, tmp_path / "plain", refine_poses=False)
    assert not (result.folder / "poses.json").exists()
    assert result.cameras_moved is None
    assert not open_run(result.folder).poses


def test_a_pruned_run_keeps_them(run, tmp_path):
    pruned = prune(open_run(run.folder), PruneOptions(to=40, repair=4), tmp_path / "fewer")
    before, after = open_run(run.folder), open_run(pruned.folder)
    assert torch.equal(before.poses["world_to_camera"], after.poses["world_to_camera"])
    assert json.loads((pruned.folder / "poses.json").read_text()) == json.loads((run.folder / "poses.json").read_text())


@pytest.mark.parametrize("lost", ["last checkpoint", "last checkpoint and poses.json", "all checkpoints", "all"])
def test_a_pruned_run_of_a_scene_file_has_the_poses_that_are_left(lost, run, scene, tmp_path):
    """As after a full disk; whatever is left, the new run is one that goes on."""
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000024")
    if "all" in lost:
        shutil.rmtree(folder / "checkpoints")
    if lost == "all" or "json" in lost:
        (folder / "poses.json").unlink()
    opened, told = open_run(folder), []
    assert opened.steps == 24
    pruned = prune(opened, PruneOptions(to=40, repair=2), tmp_path / "fewer", tell=told.append)
    kept = open_run(pruned.folder)
    warned = any("are gone" in event.message for event in told if isinstance(event, Warned))
    assert warned is not kept.config.scene.refine_poses is (lost != "all")
    assert any("the refined poses are of the latter" in warning for warning in opened.warnings) is ("json" in lost)
    if lost in ("last checkpoint", "all checkpoints"):
        latest = open_run(run.folder).poses["world_to_camera"]
        torch.testing.assert_close(kept.poses["world_to_camera"], latest, rtol=0, atol=1e-12)
    assert (pruned.folder / "poses.json").is_file() is (lost != "all")
    stages = kept.config.schedule.stages + ",adam:2"
    train(TrainConfig.of(str(scene), out=pruned.folder, resume=True, stages=stages, steps=None, threads=1), ())


def test_several_processes_are_refused():
    config = TrainConfig.of("none", refine_poses=True)
    objective, capture, processes = (Mock(spec=kind) for kind in (PhotometricObjective, Capture, Processes))
    processes.world_size = 2
    with pytest.raises(InputError, match="one process"):
        open_refinement(config, objective, capture, processes)


def test_a_renderer_without_products_is_refused_before_anything_is_written(scene, tmp_path):
    config = TrainConfig.of(str(scene), out=tmp_path / "run", refine_poses=True, steps=4)
    with pytest.raises(InputError, match="--refine-poses"):
        train(config, (), renderer=ToyRenderer())
    assert not (tmp_path / "run").exists()
