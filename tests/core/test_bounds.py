"""Bounds that fields declare."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from splatopt.core.bounds import bounds, check_bounds, flag
from splatopt.core.checks import InputError


@dataclass(frozen=True)
class Options:
    view_batch: int = field(default=1, metadata=bounds(1, 8) | {"other": "kept"})
    share: float | None = field(default=None, metadata=bounds(0, 0.5))
    moments: tuple[float, ...] = field(default=(), metadata=bounds(0))
    free: float = -3.0


@pytest.mark.parametrize(
    "settings",
    [{}, {"view_batch": 8}, {"share": 0}, {"share": 0.5}, {"moments": (0, 2.5)}, {"free": float("inf")}],
)
def test_what_lies_within_its_bounds_is_taken(settings):
    check_bounds(Options(**settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"view_batch": 0}, "--view-batch must be at least 1, got 0"),
        ({"view_batch": 9}, "--view-batch must be at most 8, got 9"),
        ({"share": -0.1}, "--share must be at least 0, got -0.1"),
        ({"share": 0.6}, "--share must be at most 0.5, got 0.6"),
        ({"share": float("nan")}, "--share must be at least 0, got nan"),
        ({"moments": (1.0, float("inf"))}, "--moments must be at least 0, got inf"),
    ],
)
def test_what_does_not_is_one_sentence(settings, said):
    with pytest.raises(InputError) as caught:
        check_bounds(Options(**settings))
    assert str(caught.value) == said


def test_a_setting_is_spelt_as_a_flag():
    assert flag("view_batch") == "--view-batch"
