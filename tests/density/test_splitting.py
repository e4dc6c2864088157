"""Splits keep what they say."""

from __future__ import annotations

import math

import pytest
import torch

from density.scenes import scene
from splatopt.core.schema import rotation_matrices
from splatopt.density.splitting import long_axis_split, sampled_split, transmittance_power, turned


def covariances(log_scales, quats):
    factor = rotation_matrices(quats) * log_scales.exp()[:, None, :]
    return factor @ factor.mT


def test_a_long_axis_split_keeps_mean_and_covariance():
    tensors = scene(30, dtype=torch.float64).parameters
    rows = torch.tensor([3, 4, 17, 29])
    found = long_axis_split(tensors, rows)
    first, second = found["means"].view(2, 4, 3)
    torch.testing.assert_close((first + second) / 2, tensors["means"][rows])
    offset = (first - second) / 2
    between = offset[:, :, None] * offset[:, None, :]
    inside = covariances(found["log_scales"][:4], tensors["quats"][rows])
    torch.testing.assert_close(inside + between, covariances(tensors["log_scales"][rows], tensors["quats"][rows]))
    assert torch.equal(found["log_scales"][:4], found["log_scales"][4:])
    longest = tensors["log_scales"][rows].amax(dim=1)
    torch.testing.assert_close(offset.norm(dim=1), longest.exp() / math.sqrt(2))
    changed = found["log_scales"][:4] != tensors["log_scales"][rows]
    assert changed.sum(dim=1).tolist() == [1, 1, 1, 1], "the other scales stay"
    assert torch.equal(found["logit_opacities"][:4], found["logit_opacities"][4:])


@pytest.mark.parametrize("logit", [-30.0, -8.0, -1.0, 0.0, 2.0, 6.0, 40.0])
def test_a_pair_covers_what_the_row_covered(logit):
    """By quadrature over the footprint of a row whose long axis lies in the image."""
    tensors = {name: value.clone() for name, value in scene(1, dtype=torch.float64).parameters.items()}
    tensors["logit_opacities"][:] = logit
    found = long_axis_split(tensors, torch.tensor([0]))
    child = found["logit_opacities"].sigmoid()
    assert child[0] == child[1]
    x = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    y = x[:, None]
    half = 1 / math.sqrt(2)
    first, second = (torch.exp(-(((x + side * half) / half) ** 2 + y**2) / 2) for side in (1, -1))
    row = torch.sigmoid(torch.tensor(logit, dtype=torch.float64)) * torch.exp(-(x**2 + y**2) / 2)
    a, b = child[0] * first, child[0] * second
    assert float((a + b - a * b).sum() / row.sum()) == pytest.approx(1, abs=1e-6)


def test_powers_of_transmittance_keep_their_digits_at_both_ends():
    logits = torch.tensor([-80.0, -20.0, -3.0, 0.0, 4.0, 30.0, 90.0], dtype=torch.float64)
    found = transmittance_power(logits, 0.5)
    assert torch.isfinite(found).all()
    # o small: half of it, a logit ln 2 lower; o near 1: half the logit.
    torch.testing.assert_close(found[:2], logits[:2] - math.log(2), rtol=0, atol=1e-8)
    torch.testing.assert_close(found[-2:], logits[-2:] / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close((1 - found[2:5].sigmoid()) ** 2, 1 - logits[2:5].sigmoid())
    assert torch.isfinite(transmittance_power(torch.tensor([-1000.0, 1000.0]), 0.5)).all()


def test_a_sampled_split_draws_from_the_row():
    tensors = scene(3, dtype=torch.float64).parameters
    rows = torch.tensor([1]).repeat(20_000)
    found = sampled_split(tensors, rows, torch.Generator().manual_seed(1))
    offsets = found["means"] - tensors["means"][1]
    expected = covariances(tensors["log_scales"][1:2], tensors["quats"][1:2])[0]
    # 40,000 draws: a standard deviation of 0.7 % of each variance.
    scale = expected.diagonal().mean()
    torch.testing.assert_close(offsets.T @ offsets / len(offsets) / scale, expected / scale, rtol=0.03, atol=0.03)
    torch.testing.assert_close(
        offsets.mean(dim=0) / scale.sqrt(), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.03
    )
    torch.testing.assert_close(found["log_scales"][0].exp() * 1.6, tensors["log_scales"][1].exp())


def test_a_turn_and_its_transpose():
    tensors = scene(5, dtype=torch.float64).parameters
    vectors = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.einsum("nij,knj->kni", rotation_matrices(tensors["quats"]), vectors)
    torch.testing.assert_close(turned(tensors["quats"], vectors), expected)
    torch.testing.assert_close(turned(tensors["quats"], expected, transposed=True), vectors)
