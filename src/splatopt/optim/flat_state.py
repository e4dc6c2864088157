"""Nested optimizer states as named tensors and named numbers, and back: what a checkpoint can hold.

A path joins keys by ``/``. What is no tensor and no number leaves a mark behind its path that says what it was:
``{}``, ``[]``, ``()`` and ``<>`` with the length of a dictionary, list, tuple or queue, ``!`` for a truth value,
``-`` for None, ``~`` for a number that is infinite or none, which JSON does not know, ``"`` for the bytes of a word.
Keys that are numbers are written ``=3``.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from splatopt.core.checks import InputError

_DEEPEST = 20
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?(e[-+]?[0-9]{1,3})?")
_NO_NUMBERS = {1: math.inf, -1: -math.inf, 0: math.nan}

_LISTS: dict[str, type] = {"[]": list, "()": tuple, "<>": deque}


def flatten(value: object) -> tuple[dict[str, Tensor], dict[str, float | int]]:
    """Return the tensors and the numbers of ``value`` by their paths.

    Raises:
        TypeError: It holds something else than dictionaries, lists, tuples, queues, tensors, numbers, words and None.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float | int] = {}
    _write(value, "", tensors, scalars)
    return tensors, scalars


def unflatten(tensors: Mapping[str, Tensor], scalars: Mapping[str, float | int]) -> Any:
    """Return what :func:`flatten` took apart; the tensors themselves, not copies.

    Raises:
        InputError: Something of it is missing.
    """
    deepest = max((path.count("/") for path in (*tensors, *scalars)), default=0)
    if deepest > _DEEPEST:
        raise InputError(f"the optimizer's state is nested {deepest} deep; start a new run")
    try:
        return _read("", tensors, scalars, _children([*tensors, *scalars]))
    except _MissingError as error:
        raise InputError(f"the optimizer's state is incomplete: it lacks {error}; start a new run") from error


class _MissingError(Exception):
    """Something that a mark announces is not there, or is not what its mark says; the message is its path."""


def _write(value: Any, path: str, tensors: dict[str, Tensor], scalars: dict[str, float | int]) -> None:
    mark = next((mark for mark, kind in _LISTS.items() if type(value) is kind), None)
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
    elif value is None:
        scalars[f"{path}-"] = 0
    elif isinstance(value, str):
        tensors[f'{path}"'] = torch.tensor(list(value.encode()), dtype=torch.uint8)
    elif isinstance(value, bool):
        scalars[f"{path}!"] = int(value)
    elif isinstance(value, float) and not math.isfinite(value):
        scalars[f"{path}~"] = next((code for code, number in _NO_NUMBERS.items() if number == value), 0)
    elif isinstance(value, int | float):
        scalars[path] = value
    elif isinstance(value, Mapping):
        scalars[f"{path}{{}}"] = len(value)
        for key, part in value.items():
            _write(part, f"{path}/{key}" if isinstance(key, str) else f"{path}/={key}", tensors, scalars)
    elif mark:
        scalars[f"{path}{mark}"] = len(value)
        for index, part in enumerate(value):
            _write(part, f"{path}/{index}", tensors, scalars)
    else:
        raise TypeError(
            f"an optimizer's state holds a {type(value).__name__} at {path!r}, which no checkpoint can keep"
        )


def _read(
    path: str,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, float | int],
    children: Mapping[str, list[str]],
) -> Any:
    if path in tensors or path in scalars:
        return tensors[path] if path in tensors else scalars[path]
    if f'{path}"' in tensors:
        return _word(tensors[f'{path}"'], path)
    if f"{path}~" in scalars:
        if scalars[f"{path}~"] not in _NO_NUMBERS:
            raise _MissingError(repr(path))
        return _NO_NUMBERS[int(scalars[f"{path}~"])]
    if f"{path}-" in scalars or f"{path}!" in scalars:
        if scalars.get(f"{path}!", 0) not in (0, 1):
            raise _MissingError(repr(path))
        return bool(scalars[f"{path}!"]) if f"{path}!" in scalars else None
    for mark, kind in _LISTS.items():
        if f"{path}{mark}" in scalars:
            count = int(scalars[f"{path}{mark}"])
            if len(children.get(path, ())) != count:
                raise _MissingError(repr(path))
            return kind(_read(f"{path}/{index}", tensors, scalars, children) for index in range(count))
    if len(children.get(path, ())) != scalars.get(f"{path}{{}}"):
        raise _MissingError(repr(path))
    return {_key(key): _read(f"{path}/{key}", tensors, scalars, children) for key in children.get(path, ())}


def _key(text: str) -> str | int | float:
    if not text.startswith("="):
        return text
    if not _NUMBER.fullmatch(text[1:]):
        raise _MissingError(repr(text))
    return json.loads(text[1:])


def _word(letters: Tensor, path: str) -> str:
    if letters.dtype != torch.uint8:
        raise _MissingError(repr(path))
    try:
        return letters.numpy().tobytes().decode()
    except UnicodeDecodeError as error:
        raise _MissingError(repr(path)) from error


def _children(paths: list[str]) -> dict[str, list[str]]:
    """The keys below each path, without the marks."""
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        bare = path
        for mark in ("{}", *_LISTS, "!", "-", "~", '"'):
            if path.endswith(mark):
                bare = path.removesuffix(mark)
                break
        parts = bare.split("/")
        for depth in range(1, len(parts)):
            found.setdefault("/".join(parts[:depth]), {})[parts[depth]] = None
    return {parent: list(keys) for parent, keys in found.items()}
