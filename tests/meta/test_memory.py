"""What a learned step takes beside its state, counted and measured."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch

from meta.clouds import random_cloud
from splatopt.core import native
from splatopt.core.objective import Evaluation, Objective, Oracle
from splatopt.core.optimizer import Progress
from splatopt.meta import learned as learned_module
from splatopt.meta.inner import InnerRates
from splatopt.meta.learned import Learned, LearnedOptions
from splatopt.meta.memory import native_row_bytes
from splatopt.meta.network import SIZES, LearnedNetwork, NetworkOptions
from splatopt.meta.weights import save_weights
from splatopt.optim.dry_run import CountedMemory


class Still(Objective):
    """A cloud whose gradient is always the same, and takes no memory."""

    def __init__(self, rows: int, rest: int = 15, dtype: torch.dtype = torch.float32, backend: str = "formula") -> None:
        self._cloud = random_cloud(rows, torch.Generator().manual_seed(0), dtype, rest)
        self._gradient = {name: torch.randn_like(value) for name, value in self._cloud.items()}
        self._backend = backend

    @property
    def parameters(self):
        return self._cloud

    @property
    def oracles(self):
        return frozenset({Oracle.GRADIENT})

    @property
    def length_scale(self):
        return 1.0

    @property
    def backend(self):
        return self._backend

    def gradient(self, batch):
        return Evaluation(1.0, self._gradient, None, {})


def learned(objective, shape, folder):
    path = folder / "weights.safetensors"
    save_weights(path, LearnedNetwork(shape), InnerRates(), {})
    optimizer = Learned(objective, LearnedOptions(str(path)))
    optimizer.threads = 1
    return optimizer


TINY = SIZES["tiny"]


@pytest.mark.parametrize(
    ("shape", "rest", "dtype"),
    [
        (TINY, 15, torch.float32),
        (SIZES["base"], 15, torch.float32),
        (TINY, 15, torch.float64),
        (replace(TINY, width=1, neighbours=0), 15, torch.float32),
        (replace(TINY, width=1, latent=1, neighbours=0), 0, torch.float32),
        (replace(TINY, neighbours=16), 15, torch.float32),
        (replace(TINY, latent=256, blocks=2), 3, torch.float32),
    ],
)
def test_what_pytorch_makes_in_a_step_is_counted(monkeypatch, tmp_path, shape, rest, dtype):
    monkeypatch.setattr(learned_module, "fits", lambda *tensors: False)
    optimizer = learned(Still(1000, rest, dtype), shape, tmp_path)
    counted = CountedMemory(10**12)
    with counted:
        optimizer.step(None, Progress(0, 1))
    assert 0.95 < optimizer.memory_needed((0,)) / counted.peak < 1.08


class HeapInUse(ctypes.Structure):
    """What glibc's mallinfo2 gives; ``uordblks`` and ``hblkhd`` are the bytes that are in use."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes():
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        pytest.skip("this system does not say what is in use")
    tell.restype = HeapInUse
    told = tell()
    return told.uordblks + told.hblkhd


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("shape", [TINY, NetworkOptions(width=20, blocks=2, latent=5, attention=20, neighbours=2)])
def test_what_the_native_passes_keep_is_counted(tmp_path, shape):
    rows = 20_000
    learned(Still(64), shape, tmp_path).step(None, Progress(0, 1))
    optimizer = learned(Still(rows), shape, tmp_path)
    before = heap_bytes()
    optimizer.step(None, Progress(0, 1))
    near = 8 * shape.neighbours * rows
    # Native buffers reserve an eighth more than they use.
    taken = (heap_bytes() - before - near) * 8 / 9 + near
    assert optimizer.memory_needed((0,)) == pytest.approx(taken, rel=0.02)


def test_a_run_that_will_lie_on_a_gpu_takes_what_pytorch_does(tmp_path):
    on_host, on_gpu = (learned(Still(5, backend=name), TINY, tmp_path) for name in ("native", "triton"))
    if native.available():
        assert on_host.memory_needed((0,)) == 5 * native_row_bytes(TINY)
    assert on_gpu.memory_needed((0,)) > 2 * 5 * native_row_bytes(TINY)
