"""Kernels are tested where the tests run: compiled on the GPU where there is one, else by Triton's interpreter.

The same tests serve both; on a GPU they are marked ``gpu``, so that ``pytest -m gpu`` picks them. Test modules begin
with ``pytest.importorskip("triton", reason=NO_TRITON)`` and take the fixture ``device``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder where they run on a GPU."""
    if torch.cuda.is_available():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels' tensors lie: a GPU, or the memory that the interpreter works on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
