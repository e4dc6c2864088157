"""Nested states survive being taken apart and written down."""

from __future__ import annotations

import json
import math
from collections import deque

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.optim.flat_state import flatten, unflatten


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b) and a.dtype == b.dtype
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


NESTED = {
    "layers.0.weight": {"step": torch.tensor(3.0), "old": [torch.ones(2), None, (1, 2.5)], "first": True},
    "empty": {"list": [], "tuple": (), "dict": {}, "queue": deque([torch.zeros(1)])},
    "numbers as keys": {0: 1, 0.9: torch.ones(1), 12: "word"},
    "infinite": float("inf"),
    "below": [-float("inf"), 1.5],
    "none": None,
    "off": False,
    "deep": [[[1]], {"a": [None]}],
}


def test_everything_comes_back_as_it_was():
    tensors, scalars = flatten(NESTED)
    assert same(unflatten(tensors, json.loads(json.dumps(scalars, allow_nan=False))), NESTED)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert all(type(value) in (int, float) for value in scalars.values())


def test_what_is_missing_is_noticed():
    tensors, scalars = flatten(NESTED)
    for name in tensors:
        if not name.endswith('"'):
            with pytest.raises(InputError, match="incomplete"):
                unflatten({key: value for key, value in tensors.items() if key != name}, scalars)
    with pytest.raises(InputError, match="incomplete"):
        unflatten({}, {})


def test_what_no_checkpoint_can_keep_is_refused():
    with pytest.raises(TypeError, match="a function at '/a/0'"):
        flatten({"a": [lambda: 0]})


def test_what_is_no_number_comes_back_as_such():
    assert math.isnan(unflatten(*flatten({"a": math.nan}))["a"])
