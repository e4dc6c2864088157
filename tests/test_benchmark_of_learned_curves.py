"""The benchmark of learned curves leaves out the part of the network that it names, and no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learned_curves import PARTS, leave_out

from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.constants import ROW_FEATURES, SCENE_FEATURES
from splatopt.meta.network import CORRECTED, DIRECTIONS, LearnedNetwork, NetworkOptions


def told(part: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates (N, 6) and corrections (N, 13) of a network whose last layer is not zero."""
    options = NetworkOptions(width=8, latent=3, attention=4)
    network = LearnedNetwork(options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.sizes.weight.copy_(torch.randn(network.sizes.weight.shape, generator=generator))
    if part is not None:
        leave_out(part, network)
    rows = torch.randn(20, ROW_FEATURES, generator=generator)
    scene = torch.randn(SCENE_FEATURES, generator=generator)
    near = torch.arange(20)[:, None].repeat(1, options.neighbours)
    prediction = network(rows, scene, torch.zeros(20, 3), near, torch.ones(20, dtype=torch.bool))
    return prediction.gates.detach(), prediction.correction.detach()


@pytest.mark.parametrize("part", PARTS)
def test_what_is_left_out_is_zero(part):
    kind, _, group = part.partition(":")
    whole_gates, whole_corrections = told(None)
    gates, corrections = told(part)
    assert (whole_gates != 0).all()
    assert (whole_corrections != 0).any(dim=0).all()
    names = [name for name, count in CORRECTED.items() for _ in range(count)]
    out_gates = [kind == "gates" and group in ("", name) for name in GAUSSIAN_TENSORS]
    out_corrections = [kind == "corrections" and group in ("", name) for name in names]
    for place, out in enumerate(out_gates):
        expected = torch.zeros(20) if out else whole_gates[:, place]
        assert torch.equal(gates[:, place], expected), GAUSSIAN_TENSORS[place]
    for place, out in enumerate(out_corrections):
        assert bool((corrections[:, place] == 0).all()) == out, names[place]
    if kind == "gates":
        assert torch.equal(corrections, whole_corrections)
    elif group:
        torch.testing.assert_close(corrections.norm(dim=1), whole_corrections.norm(dim=1))
    assert DIRECTIONS == len(names) == 13
