"""What the instruction sets of the native module have in common: the same bits where docs/raster.md says so."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from core.pass_results import rendered, stepped
from splatopt.core import native
from splatopt.core.checks import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not installed")

OTHERS = [isa for isa in native.instruction_sets() if isa != "avx2"]

WITH_RECIPROCALS = ("gradient", "vjp", "diagonal", "blocks", "learned step")
"""Passes that divide by 1 - α, or by Adam's root, with AVX-512's own estimate of a reciprocal."""

WITH_LANES_ADDED = ("statistics",)
"""A pass that adds the lanes of its sums, which the sets do in orders of their own."""

NOT_THE_SAME = WITH_RECIPROCALS + WITH_LANES_ADDED

WITHOUT_FUSED_SUMS = ("adam's step", "nearest others")
"""Passes that are the same without fused multiply-add."""


@functools.cache
def results(isa: str) -> dict[str, Tensor]:
    return rendered(isa) | stepped(isa)


@pytest.mark.skipif("avx2" not in native.instruction_sets(), reason="there is one instruction set on this machine")
@pytest.mark.parametrize("isa", OTHERS)
def test_passes_give_the_same_bits_where_it_is_promised_and_close_ones_elsewhere(isa: str) -> None:
    for name, value in results("avx2").items():
        other = results(isa)[name]
        same = not name.startswith(NOT_THE_SAME) if isa == "avx512" else name in WITHOUT_FUSED_SUMS
        if same:
            assert torch.equal(value, other), name
        else:
            error = float((other.double() - value.double()).norm() / value.double().norm())
            assert error < (1e-6 if isa == "avx512" else 2e-5), (name, error)


def test_every_pass_does_something() -> None:
    for name, value in results(native.find_instructions()).items():
        assert torch.isfinite(value).all(), name
        assert value.count_nonzero() > len(value) / 100, name


def test_the_fastest_set_is_taken_by_itself() -> None:
    assert native.find_instructions() == native.instruction_sets()[0] == native.workers().isa
    assert native.instruction_sets()[-1] == "portable"
    assert set(native.instruction_sets()) <= set(native.INSTRUCTIONS)


def test_a_set_that_is_not_here_is_refused_with_those_that_are(monkeypatch) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda: ("avx2", "portable"))
    assert native.find_instructions() == "avx2"
    said = "--instructions avx512 cannot be used: this machine has avx2, portable; leave --instructions out"
    with pytest.raises(InputError, match=said):
        native.find_instructions("avx512")
    with pytest.raises(InputError, match="--instructions must be auto, avx512, avx2, portable, got 'neon'"):
        native.find_instructions("neon")
    monkeypatch.setattr(native, "instruction_sets", lambda: ())
    assert native.find_instructions() == "auto"
    with pytest.raises(InputError, match="this machine has no native module, and so none of them"):
        native.find_instructions("portable")
