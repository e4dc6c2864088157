"""Which kernels serve which tensors, and that the interpreter stays where it belongs."""

from __future__ import annotations

import os
from inspect import unwrap

import pytest
import torch

from kernels.interpreter import NO_TRITON
from splatopt import kernels


def test_tensors_on_the_cpu_are_not_taken():
    assert not kernels.takes([torch.zeros(3)])
    assert not kernels.takes([])


class Elsewhere:
    """A tensor that says that it lies on a GPU."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cuda:0", contiguous: bool = True) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.contiguous = contiguous

    def is_contiguous(self) -> bool:
        return self.contiguous


@pytest.mark.parametrize(
    ("tensors", "taken"),
    [
        ([Elsewhere(), Elsewhere()], True),
        ([Elsewhere(), Elsewhere(torch.float64)], False),
        ([Elsewhere(), Elsewhere(device="cuda:1")], False),
        ([Elsewhere(), Elsewhere(device="cpu")], False),
        ([Elsewhere(contiguous=False)], False),
    ],
)
def test_tensors_on_one_gpu_are_taken(monkeypatch, tensors, taken):
    monkeypatch.setattr(kernels, "available", lambda: True)
    assert unwrap(kernels.takes)(tensors) is taken
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert not unwrap(kernels.takes)(tensors)


def test_the_interpreter_is_no_business_of_other_processes():
    pytest.importorskip("triton", reason=NO_TRITON)
    if torch.cuda.is_available():
        pytest.skip("on a GPU nothing is interpreted")
    from triton import knobs

    assert knobs.runtime.interpret
    assert "TRITON_INTERPRET" not in os.environ
