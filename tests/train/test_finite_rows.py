"""A row that breaks down begins anew, whichever optimizer is at work, and the run goes on as if it always had."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.optimizer import Progress, optimizer_names
from splatopt.data import CaptureOptions, load_capture, make_capture
from splatopt.optim.first_order import Adam, AdamOptions
from splatopt.raster.cpu import NativeRenderer
from splatopt.runs.events import Warned
from splatopt.runs.resumable import NonFiniteError
from splatopt.train import trainer as trainer_module
from splatopt.train.config import TrainConfig
from splatopt.train.finite_rows import FAINT, MAX_STEPS, broken_rows, reinitialize_rows
from splatopt.train.loop import train
from splatopt.train.setup import make_objective, starting_cloud
from train.toys import Listener, lines

ROW, AT, STEPS = 7, 3, 22

needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_capture(tmp_path_factory.mktemp("rows") / "c", seed=0, views=5, width=32, height=24, points=60)


class Spoiled(NativeRenderer):
    """Gives one row's gradient a NaN while it is told to."""

    spoiling = False

    def accumulate_gradient(self, *arguments, **named):
        loss = super().accumulate_gradient(*arguments, **named)
        if self.spoiling:
            arguments[2].tensors["quats"][ROW, 2] = math.nan
        return loss


def plant(where: str, trainer, optimizer) -> None:
    """Put a NaN into one row of what a step leaves."""
    if where == "parameter":
        trainer.objective.parameters["log_scales"][ROW, 1] = math.nan
    if where == "state":
        for value in optimizer.state().tensors.values():
            if value.is_floating_point() and value.dim() and len(value) == len(trainer.objective.cloud):
                value[ROW] = math.nan


@pytest.fixture
def planted(monkeypatch):
    """Makes runs leave a NaN in one row of ``where`` at some steps."""

    def of(where: str, at=(AT,)) -> None:
        make = trainer_module.Trainer._make_optimizer

        def spoiled(self, name, generator):
            optimizer = make(self, name, generator)
            step = optimizer.step

            def take(batch, progress):
                self.renderer.spoiling = where == "gradient" and progress.step in at
                evaluation = step(batch, progress)
                if progress.step in at:
                    plant(where, self, optimizer)
                return evaluation

            optimizer.step = take
            return optimizer

        monkeypatch.setattr(trainer_module.Trainer, "_make_optimizer", spoiled)

    return of


def settings_of(scene, name: str, folder, **changes) -> TrainConfig:
    base = {"steps": STEPS, "threads": 1, "checkpoint_every": 8, "log_every": 5, "eval_every": 0}
    return TrainConfig.of(str(scene), optimizer=name, out=folder, **(base | changes))


def check(name: str, where: str, scene, folder, **changes) -> None:
    listener = Listener()
    result = train(settings_of(scene, name, folder, **changes), [listener], renderer=Spoiled(1))
    (told,) = [event.message for event in listener.of(Warned) if "view-batch" not in event.message]
    assert f"the {where} of 1 of 60 Gaussians became NaN" in told or where == "state", told
    assert "begins anew as a faint copy" in told
    assert sum(line.get("reset_rows", 0) for line in lines(folder)) >= 1
    result.cloud.check_finite("result")
    checkpoint, _ = latest_checkpoint(folder / "checkpoints")
    assert all(torch.isfinite(value).all() for value in checkpoint.tensors.values())
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    again = train(TrainConfig.of(str(scene), out=folder, resume=True, threads=1), renderer=Spoiled(1))
    for key, value in result.cloud.tensors.items():
        assert torch.equal(value, again.cloud.tensors[key]), key


# A NaN in a gradient comes to both parameter and state.
PLACES = [
    *((name, where) for name in optimizer_names() for where in ("gradient", "state")),
    *((name, "parameter") for name in ("adam", "block-gn", "learned", "lm")),
]


@needs_native
@pytest.mark.parametrize(("name", "where"), PLACES)
def test_one_bad_row_never_ends_a_run(name, where, scene, planted, tmp_path):
    if where == "state" and name == "lm":
        pytest.skip("lm keeps nothing of a row")
    planted(where)
    check(name, where, scene, tmp_path / "run")


@needs_native
@pytest.mark.parametrize("where", ["gradient", "parameter", "state"])
def test_one_bad_row_of_an_averaged_run_never_ends_it(where, scene, planted, tmp_path):
    planted(where)
    check("block-gn", where, scene, tmp_path / "run", average=20.0)


@needs_native
@pytest.mark.parametrize(
    ("name", "where"),
    [("zoo:lion", "gradient"), ("zoo:lion", "parameter"), ("zoo:muon", "gradient"), ("zoo:prodigy", "gradient")],
)
def test_one_bad_row_never_ends_a_run_of_the_zoo(name, where, scene, planted, tmp_path):
    pytest.importorskip("pytorch_optimizer", reason="the extra 'zoo' is not installed")
    planted(where)
    check(name, where, scene, tmp_path / "run")


@needs_native
def test_later_rows_are_counted_and_not_told_of(scene, planted, tmp_path):
    planted("parameter", at=(3, 5, 6, 11))
    listener = Listener()
    train(settings_of(scene, "adam", tmp_path / "run", steps=14), [listener], renderer=Spoiled(1))
    assert len(listener.of(Warned)) == 1
    assert [line.get("reset_rows") for line in lines(tmp_path / "run")] == [1, 2, 1]  # steps 4; 6 and 7; 12


@needs_native
def test_on_and_on_it_is_the_run_that_broke_down(scene, planted, tmp_path):
    planted("parameter", at=range(3, 1000))
    listener = Listener()
    config = settings_of(scene, "adam", tmp_path / "run", steps=300, checkpoint_every=50)
    with pytest.raises(NonFiniteError, match="one after the other, up to step 104, after it had already gone back"):
        train(config, [listener], renderer=Spoiled(1))
    first, second = [event.message for event in listener.of(Warned)]
    assert "begins anew" in first
    up_to = AT + MAX_STEPS + 1
    assert second.startswith(f"Gaussians became NaN or infinite in {MAX_STEPS + 1} steps, one after the other, up to")
    assert f"up to step {up_to}; went back to the checkpoint of step 100" in second


@needs_native
def test_a_row_begins_anew_beside_the_nearest_and_disturbs_no_other(scene):
    config = TrainConfig.of(str(scene))
    capture = load_capture(scene, CaptureOptions())
    cloud = starting_cloud(config, capture, torch.Generator().manual_seed(0))
    objective = make_objective(config, capture, cloud, NativeRenderer(1))
    optimizer = Adam(objective, AdamOptions())
    for step in range(3):
        optimizer.step((0,), Progress(step, 10))
    before = {name: value.clone() for name, value in cloud.tensors.items()}
    kept = {name: value.clone() for name, value in optimizer.state().tensors.items()}
    rows = torch.zeros(len(cloud), dtype=torch.bool)
    rows[[5, 20]] = True
    cloud.means[5] = math.inf
    cloud.sh_dc[20, 0] = math.nan
    distances = (before["means"] - before["means"][20]).norm(dim=1)
    distances[[5, 20]] = math.inf
    reinitialize_rows(objective, optimizer, rows)
    for name, value in cloud.tensors.items():
        assert torch.equal(value[~rows], before[name][~rows]), name
        if name != "logit_opacities":
            assert torch.equal(value[20], before[name][distances.argmin()]), name
            assert torch.equal(value[5], before[name][6]), "of a row without a place, the next one"
    assert cloud.logit_opacities[rows].tolist() == pytest.approx([FAINT, FAINT])
    for name, value in optimizer.state().tensors.items():
        assert torch.equal(value[~rows], kept[name][~rows]), name
        assert not value[rows].any(), name


def test_rows_are_found_in_any_tensor():
    tensors = {"a": torch.zeros(5, 3), "b": torch.zeros(5), "c": torch.zeros(0, 2)}
    assert broken_rows(tensors) is None
    assert broken_rows({"c": tensors["c"]}) is None
    tensors["a"][1, 2], tensors["b"][4] = math.nan, -math.inf
    assert broken_rows(tensors).tolist() == [False, True, False, False, True]
    largest = torch.full((2, 3), torch.finfo(torch.float32).max)  # their sum is infinite, and none of them
    assert broken_rows({"a": largest}) is None
