"""What the tests of meta-training share: small scenes and a network."""

from __future__ import annotations

import pytest

from meta.clouds import stirred
from meta.toys import SHAPE, make_scenes
from splatopt.meta.network import LearnedNetwork


@pytest.fixture(scope="package")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture
def network():
    return stirred(LearnedNetwork(SHAPE), size=0.05)
