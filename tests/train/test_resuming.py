"""A run of any optimizer that was stopped goes on to the same scene, bit for bit."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.optimizer import optimizer_names
from splatopt.data import make_capture
from splatopt.optim.zoo import REFUSED_ON_SCENES, ZooOptions, zoo_names
from splatopt.train.config import TrainConfig
from splatopt.train.events import Started
from splatopt.train.loop import train
from splatopt.train.progress import ProgressLine
from splatopt.train.result import TrainResult
from train.toys import Listener, cut

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")

ZOO = [f"zoo:{name}" for name in (zoo_names() if find_spec("pytorch_optimizer") else ())]
QUICK = ("zoo:lion", "zoo:alig", "zoo:a2grad", "zoo:soap", "zoo:muon")
REFUSED = {f"zoo:{name}": re.escape(reason) for name, reason in REFUSED_ON_SCENES.items()}
"""What is not for scenes, and why; all else of the zoo takes its steps here."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_capture(tmp_path_factory.mktemp("goes") / "on", seed=0, views=5, width=32, height=24, points=60)


def same(first: TrainResult, second: TrainResult) -> bool:
    return (first.folder / "scene.ply").read_bytes() == (second.folder / "scene.ply").read_bytes()


def whole(scene, name: str, folder, **changes) -> TrainResult:
    options = ZooOptions(settings=("num_iterations=200",)) if name == "zoo:ranger21" else None
    settings = {"steps": 8, "checkpoint_every": 4, "optimizer_options": options, "threads": 1} | changes
    return train(TrainConfig.of(str(scene), optimizer=name, out=folder, **settings))


@pytest.mark.parametrize("average", [0.0, 20.0])
@pytest.mark.parametrize("name", optimizer_names())
def test_a_run_goes_on_bit_exactly(name, average, scene, tmp_path):
    if average and name == "learned":
        pytest.skip("learned leaves an average already")
    first = whole(scene, name, tmp_path / "whole", average=average)
    assert same(first, train(TrainConfig.of(str(scene), out=cut(first.folder, 4), resume=True, threads=1)))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_a_run_of_the_zoo_goes_on_bit_exactly(name, scene, tmp_path):
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            whole(scene, name, tmp_path / "whole")
        assert not (tmp_path / "whole").exists(), "nothing is written before"
        return
    first = whole(scene, name, tmp_path / "whole")
    first.cloud.check_finite(name)
    assert same(first, train(TrainConfig.of(str(scene), out=cut(first.folder, 4), resume=True, threads=1)))


def test_stages_of_the_zoo_go_on_bit_exactly(scene, tmp_path):
    stages = "block-gn:3,zoo:lion:3,zoo:adamw:3"
    first = whole(scene, "adam", tmp_path / "whole", steps=None, stages=stages, checkpoint_every=3)
    for step in (3, 6):
        folder = cut(first.folder, step) if step == 6 else None
        if folder:
            assert same(first, train(TrainConfig.of(str(scene), out=folder, resume=True, threads=1)))
    begun = whole(scene, "adam", tmp_path / "begun", steps=None, stages="block-gn:3,zoo:lion:3", checkpoint_every=3)
    longer = train(TrainConfig.of(str(scene), out=begun.folder, stages=stages, resume=True, threads=1))
    assert same(first, longer), "a stage that is added later begins as it would have begun"


def stop_before_the_first_step(event) -> None:
    if isinstance(event, Started):
        raise KeyboardInterrupt


@pytest.mark.parametrize("older", [False, True])
def test_a_run_goes_on_from_the_checkpoint_before_its_first_step(older, scene, tmp_path, capsys):
    first = whole(scene, "block-gn", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        config = TrainConfig.of(
            str(scene), optimizer="block-gn", steps=8, checkpoint_every=4, out=tmp_path / "begun", threads=1
        )
        train(config, [stop_before_the_first_step])
    (checkpoint,) = (tmp_path / "begun" / "checkpoints").iterdir()
    assert checkpoint.name == "step-000000"
    if older:
        forget(checkpoint, "optimizer.blocks")
    again = train(TrainConfig.of(str(scene), out=tmp_path / "begun", resume=True, threads=1), [ProgressLine()])
    assert same(first, again)
    assert "going on at step 0 of 8" in capsys.readouterr().err


def forget(checkpoint, *names: str) -> None:
    """Leave tensors out of a checkpoint, as versions did that made them at the first step."""
    import hashlib

    path = checkpoint / "tensors.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if name not in names}
    save_file(tensors, path)
    header = json.loads((checkpoint / "checkpoint.json").read_text())
    data = path.read_bytes()
    header |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "checkpoint.json").write_text(json.dumps(header))


def test_the_check_of_stages_leaves_the_generator_alone(scene, tmp_path, monkeypatch):
    """Whatever an optimizer draws while it is made, as some of other people's do."""
    from splatopt.optim.first_order import Adam

    begin = Adam.__init__

    def drawing(self, objective, options, generator=None):
        begin(self, objective, options, generator)
        torch.rand(1, generator=generator)

    monkeypatch.setattr(Adam, "__init__", drawing)
    first = whole(scene, "adam", tmp_path / "whole")
    listener = Listener()
    assert same(first, train(TrainConfig.of(str(scene), out=cut(first.folder, 4), resume=True, threads=1), [listener]))
    assert listener.of(Started)[0].step == 4
