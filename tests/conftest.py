"""Options and fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from kernels import interpreter

interpreter.switch_on()

# gsply compiles itself for half a minute the first time; a slow test has it do so.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")


LONGEST = (
    "test_sanitizers.py",
    "kernels/test_compiling.py",
    "faults/test_kills.py",
    "test_benchmark_of_gpu.py",
    "faults/test_run_files.py",
    "test_examples.py",
    "test_how_tos.py",
    "meta/test_training.py",
    "faults/test_readers.py",
    "data/structure_from_motion/test_recovered_cameras.py",
    "viewer/test_in_browser.py",
)
"""Files of few tests that take long, the longest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person say where the real scenes lie."""
    parser.addoption(
        "--data",
        default="../shared/data",
        help="folder with the real scenes (fox, castle, lego_200, …); tests that use them skip where it is absent",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, then those of most tests: processes side by side end together."""
    names = {item.path: item.path.relative_to(Path(__file__).parent).as_posix() for item in items}
    places = {path: LONGEST.index(name) if name in LONGEST else len(LONGEST) for path, name in names.items()}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (places[item.path], -counts[item.path]))


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
