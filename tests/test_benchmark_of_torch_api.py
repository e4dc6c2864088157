"""What the benchmark of ``rasterization`` compares does the same work on both sides."""

from __future__ import annotations

import time

import pytest
import torch
from benchmarks import torch_api
from benchmarks.loads import made_up

from raster.compare import relative_vector_error
from splatopt.core import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")


@pytest.mark.parametrize("packed", [False, True])
def test_both_sides_give_the_same_gradient(packed: bool, monkeypatch) -> None:
    load, given = made_up(300, 48, 32, 60.0), {}
    whole = torch_api.rasterization
    monkeypatch.setattr(torch_api, "rasterization", lambda **named: given.update(named) or whole(**named))
    kept = []
    backward = torch_api.NativeRenderer.backpropagate
    monkeypatch.setattr(
        torch_api.NativeRenderer,
        "backpropagate",
        lambda self, cloud, options, along, sums: kept.append(sums) or backward(self, cloud, options, along, sums),
    )
    trainer, ours = torch_api.passes_of(load, 1, packed)
    trainer()
    ours()
    (sums,) = kept
    assert given["sh_degree"] == 3
    assert given["packed"] is packed
    assert relative_vector_error(given["means"].grad, sums["means"]) < 1e-4
    assert relative_vector_error(given["scales"].grad * given["scales"].detach(), sums["log_scales"]) < 1e-4
    coefficients = torch.cat([sums["sh_dc"][:, None], sums["sh_rest"]], dim=1)
    assert relative_vector_error(given["colors"].grad, coefficients) < 1e-4


def test_medians_leave_the_first_rounds_out() -> None:
    ticks = iter([0, 9, 0, 9, 0, 1, 0, 3, 0, 2])
    assert torch_api.medians((lambda: None,), 3, lambda: next(ticks)) == [2]
    assert torch_api.medians((lambda: None,), 1, time.perf_counter)[0] < 1
