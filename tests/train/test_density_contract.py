"""Every optimizer with every density strategy: the loss falls, numbers stay finite, and a run goes on bit for bit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from splatopt.core import native
from splatopt.core.optimizer import optimizer_names
from splatopt.data import make_capture
from train.density_runs import edits, gone_on, grown, same_scene, strategies
from train.toys import cut, lasting, lines

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")

QUICK = {("adam", "adc"), ("block-gn", "mcmc")}
ZOO = ("zoo:lion",) if find_spec("pytorch_optimizer") else ()
PAIRS = [
    pytest.param(name, strategy, marks=() if (name, strategy) in QUICK else pytest.mark.slow)
    for name in (*optimizer_names(), *ZOO)
    for strategy in strategies()
]
STEPS = 52


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return make_capture(tmp_path_factory.mktemp("grows") / "c", seed=0, views=5, width=32, height=24, points=60)


@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_the_loss_falls_over_50_edits_and_a_run_goes_on_with_the_same_bits(name, strategy, scene, tmp_path):
    whole = grown(scene, strategy, tmp_path / "whole", optimizer=name, steps=STEPS, checkpoint_every=26, log_every=1)
    whole.cloud.check_finite("result")
    assert len({line["step"] for line in edits(whole.folder)}) >= STEPS - 1
    losses = [line["loss"] for line in lines(whole.folder)]
    assert sum(losses[-8:]) < sum(losses[:8])
    assert "broken_rows" not in lines(whole.folder)[-1]
    copy = cut(whole.folder, 26)
    resumed = gone_on(copy)
    assert same_scene(whole.folder, copy)
    assert edits(whole.folder) == edits(copy)
    assert lasting(whole.folder) == lasting(copy)
    assert resumed.config.density == whole.config.density


THREADED = [
    ("adam", "adc"),
    pytest.param("block-gn", "mcmc", marks=pytest.mark.slow),
    pytest.param("tr2", "adc", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "strategy"), THREADED)
def test_the_bits_are_the_same_with_1_2_and_8_threads(name, strategy, scene, tmp_path):
    found = [
        grown(scene, strategy, tmp_path / str(threads), optimizer=name, threads=threads, view_batch=2).folder
        for threads in (1, 2, 8)
    ]
    assert same_scene(found[0], found[1])
    assert same_scene(found[0], found[2])
    assert edits(found[0]) == edits(found[1]) == edits(found[2])


@pytest.mark.parametrize(
    "strategy", [name if name == "mcmc" else pytest.param(name, marks=pytest.mark.slow) for name in strategies()]
)
def test_averages_follow_edits(strategy, scene, tmp_path):
    whole = grown(scene, strategy, tmp_path / "whole", average=5.0)
    copy = cut(whole.folder, 10)
    gone_on(copy)
    assert same_scene(whole.folder, copy)
    plain = grown(scene, strategy, tmp_path / "plain")
    assert not same_scene(whole.folder, plain.folder)
    assert torch.isfinite(whole.cloud.means).all()
