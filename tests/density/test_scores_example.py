"""examples/density/scores.py: every score trains a scene, and draws other rows than gain's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from splatopt.core import native
from splatopt.core.plugins import Origin, load_plugin
from splatopt.data import make_capture
from splatopt.density.strategy import STRATEGIES
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from train.density_runs import edits, plugins_forgotten

SCORES = Path(__file__).resolve().parents[2] / "examples" / "density" / "scores.py"
pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


@pytest.fixture
def names():
    with plugins_forgotten():
        before = set(STRATEGIES.names())
        load_plugin(SCORES)
        yield sorted(set(STRATEGIES.names(Origin.GIVEN)) - before)


def test_every_score_trains_a_scene_with_rows_of_its_own(names, tmp_path):
    scene = make_capture(tmp_path / "c", seed=0, views=5, width=32, height=24, points=60)
    assert len(names) == 8
    scenes = {}
    for name in ("gain", *names):
        own = {"every": 2, "begin": 0.0, "until": 1.0}
        settings = {"steps": 8, "threads": 1, "max_gaussians": 120, "optimizer": "block-gn"}
        config = TrainConfig.of(str(scene), out=tmp_path / name, density=name, density_options=own, **settings)
        result = train(config)
        assert len(result.cloud) == 120
        assert edits(result.folder)[-1]["gaussians"] == 120
        result.cloud.check_finite(name)
        scenes[name] = result.cloud.means
    for name in names:
        assert not torch.equal(scenes[name], scenes["gain"]), name
