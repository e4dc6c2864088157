"""Options and fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from kernels import interpreter

interpreter.switch_on()

# gsply compiles itself for half a minute the first time; a slow test has it do so.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person say where the real scenes lie."""
    parser.addoption(
        "--data",
        default="../shared/data",
        help="folder with the real scenes (fox, castle, lego_200, …); tests that use them skip where it is absent",
    )


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what is there by now: it lives to the end, and is much to look through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """The folder with the real scenes; skips where there is none."""
    folder = Path(request.config.getoption("--data"))
    if not folder.is_dir():
        pytest.skip(f"no folder with real scenes at {folder} (give one with --data)")
    return folder
