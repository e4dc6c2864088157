"""A capture that all of these tests train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.toys import make_toy_capture


@pytest.fixture(scope="session")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")
