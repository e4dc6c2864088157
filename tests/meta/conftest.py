"""What the tests of meta-training share: small scenes and a network."""

from __future__ import annotations

import pytest

from meta.clouds import stirred
from meta.toys import SHAPE, make_scenes
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.weights import save_weights


@pytest.fixture(scope="package")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture
def network():
    return stirred(LearnedNetwork(SHAPE), size=0.05)


@pytest.fixture
def untrained(tmp_path):
    path = tmp_path / "untrained.safetensors"
    save_weights(path, LearnedNetwork(SHAPE), InnerRates(), {"seed": 0})
    return str(path)


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "trained.safetensors"
    save_weights(path, stirred(LearnedNetwork(SHAPE), size=0.1), InnerRates(), {"seed": 0})
    return str(path)
