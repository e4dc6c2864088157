"""A small capture and the settings of short runs on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from splatopt.density.strategy import STRATEGIES, register_density
from splatopt.train.config import TrainConfig
from train.toys import make_toy_capture
from train.turns import Turns, TurnsOptions


@pytest.fixture(scope="module")
def capture_folder(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


@pytest.fixture
def settings(capture_folder, tmp_path):
    """Settings of a short run; several can be made from them."""

    def make(name: str = "run", **changes) -> TrainConfig:
        base = {"steps": 40, "out": tmp_path / name, "sh_interval": 10}
        base |= {"log_every": 3, "checkpoint_every": 7, "eval_every": 0}
        return TrainConfig.of(str(capture_folder), **(base | changes))

    return make


@pytest.fixture
def turns():
    """The strategy of ``train.turns``, registered for one test."""
    register_density("turns", Turns, TurnsOptions, help="of a test")
    yield
    STRATEGIES.forget("turns")
