"""A toy capture and a finished run on it, for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from splatopt.cli import main
from train.toys import make_toy_capture


@pytest.fixture(scope="package")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy", width=48, height=36, points=200)


@pytest.fixture(scope="package")
def run_folder(capture, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(capture), "--steps", "30", "--out", str(out), "--adam.means-rate", "2e-4"]) == 0
    return out
