"""Damage to the files of a run: JSON changed in its structure and its bytes, tensors in their names, types and shapes.

Every function takes a ``random.Random``, so that one seed gives the same damage again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

DEEP = 100_000

_RAW = ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" + "0" * 5000, "-" + "9" * 30, "9223372036854775808")
_NASTY = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**15, -(10**15), 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, -1.5, 1e300, 5e-324),
    *("", "x", "adam", "NaN", "1", "\u0000", "\x1b[31m", "\ud800", "\u202e", "../../..", "/", "x" * 300, "x" * 200_000),
    *([], {}, [[]], [None], {"": None}, {"format": 1}, [1, 2, 3], ["x"], [0.5] * 5000),
)
_MARK = "a value that is replaced in the text"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value, its own among them."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found += places(one, (*path, key))
    return found


def _holder(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    _holder(value, path)[path[-1]] = new
    return value


def _value_at(value: Any, path: tuple[Any, ...]) -> Any:
    return _holder(value, path)[path[-1]] if path else value


def damaged_value(value: Any, rng: random.Random) -> bytes:
    """Return a JSON value with one place of it damaged, as text."""
    value = copy.deepcopy(value)
    path = rng.choice(places(value))
    kind = rng.choice(("nasty", "nasty", "nasty", "raw", "other", "delete", "rename", "add", "twice", "deep"))
    now = _value_at(value, path)
    holder = _holder(value, path) if path else None
    raw = ""
    if kind == "raw":
        raw, value = rng.choice(_RAW), _replaced(value, path, _MARK)
    elif kind == "deep":
        pair = rng.choice(("[]", "{}"))
        raw = "[" * DEEP + "]" * DEEP if pair == "[]" else '{"a":' * DEEP + "1" + "}" * DEEP
        value = _replaced(value, path, _MARK)
    elif kind == "other":
        value = _replaced(value, path, rng.choice((str(now), [now], {"value": now}, rng.choice(_NASTY))))
    elif kind == "delete" and path:
        del holder[path[-1]]
    elif kind in ("rename", "twice") and path and isinstance(holder, dict):
        name = str(path[-1])
        other = f"{name}{rng.choice('x_. ')}" if kind == "rename" else name
        text = json.dumps(value)
        if kind == "rename":
            holder[other] = holder.pop(name)
        else:
            return text.replace(json.dumps(name) + ":", f"{json.dumps(name)}: 1, {json.dumps(name)}:", 1).encode()
    elif kind == "add" and isinstance(now, dict):
        now[rng.choice(("extra", "", "steps", "\u0000"))] = rng.choice(_NASTY)
    else:
        value = _replaced(value, path, rng.choice(_NASTY))
    text = json.dumps(value)
    return (text.replace(json.dumps(_MARK), raw) if raw else text).encode()


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a file's bytes flipped, cut, spliced or in another encoding."""
    at = rng.randrange(max(1, len(data)))
    damages: list[Callable[[], bytes]] = [
        lambda: _flipped(data, rng),
        lambda: _flipped(data, rng),
        lambda: data[:at],
        lambda: b"",
        lambda: data[:at] + rng.randbytes(rng.choice((1, 4, 64))) + data[at:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: data[:at] + b"\xe9" + data[at:],
        lambda: data[:at] + bytes(len(data) - at),
        lambda: data + data,
    ]
    return rng.choice(damages)()


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON file damaged."""
    if rng.random() < 0.2:
        return damaged_bytes(data, rng)
    return damaged_value(json.loads(data), rng)


def damaged_lines(data: bytes, rng: random.Random) -> bytes:
    """Return a file of JSON lines with one of them damaged."""
    lines = data.splitlines(keepends=True)
    if not lines or rng.random() < 0.2:
        return damaged_bytes(data, rng)
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(lines[at].rstrip(b"\n"), rng) + b"\n"
    return b"".join(lines)


# ---------------------------------------------------------------------- tensors


def _cast(value: Tensor, rng: random.Random) -> Tensor:
    kinds = (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
    return value.to(rng.choice(kinds))


def _reshaped(value: Tensor, rng: random.Random) -> Tensor:
    shape = list(value.shape)
    choices: list[Callable[[], Tensor]] = [
        lambda: value.reshape(-1),
        lambda: value[None],
        lambda: value.sum().reshape(()).to(value.dtype),
        lambda: value.new_zeros([0, *shape[1:]]),
        lambda: value.new_zeros([*shape, 2]),
        lambda: value.transpose(0, -1) if value.dim() else value[None],
        lambda: value[:-1] if value.dim() else value[None],
        lambda: torch.cat([value, value]) if value.dim() else value[None, None],
        lambda: value.new_zeros([1] * 20),
    ]
    return rng.choice(choices)().contiguous()


def _spoilt(value: Tensor, rng: random.Random) -> Tensor:
    value = value.clone()
    flat = value.view(-1)
    if not len(flat):
        return value.new_ones(3)
    at = slice(None) if rng.random() < 0.3 else slice(rng.randrange(len(flat)), None)
    if value.dtype == torch.bool:
        flat[at] = ~flat[at]
    elif value.is_floating_point():
        flat[at] = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30, -1e30, 1e-38))
    else:
        bytes_or_more = (0, 1, 255) if value.dtype == torch.uint8 else (-1, 0, 10**6, 2**62, -(2**63))
        flat[at] = rng.choice(bytes_or_more)
    return value


def damaged_tensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file damaged."""
    kind = rng.choice(("bytes", "header", "name", "name", "type", "shape", "shape", "numbers", "numbers", "cut"))
    if kind == "bytes":
        return damaged_bytes(data, rng)
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "header":
        return _damaged_header(data, rng)
    tensors = safetensors.torch.load(data)
    name = rng.choice(sorted(tensors))
    if kind == "name":
        value = tensors.pop(name)
        how = rng.choice(("drop", "rename", "add", "prefix"))
        if how == "rename":
            tensors[name + rng.choice("x./\x00")] = value
        elif how == "add":
            tensors |= {name: value, f"{name.partition('.')[0]}.extra": value.clone()}
        elif how == "prefix":
            tensors[name.partition(".")[2] or "x"] = value
    else:
        change = {"type": _cast, "shape": _reshaped, "numbers": _spoilt}[kind]
        tensors[name] = change(tensors[name], rng)
    return safetensors.torch.save(tensors)


def _damaged_header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.choice(("length", "json", "json", "json", "flip", "metadata"))
    if kind == "length":
        return struct.pack("<Q", rng.choice((0, 1, 2**63, 2**64 - 1, 10**8, length - 1, length + 1))) + data[8:]
    if kind == "flip":
        changed = bytearray(header)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        header = bytes(changed)
    elif kind == "metadata":
        values = json.loads(header)
        values["__metadata__"] = rng.choice(({"a": {"b": {}}}, {"a": "x" * 100_000}, [], 3, {"a": 1}))
        header = json.dumps(values).encode()
    else:
        header = damaged_value(json.loads(header), rng)
    return struct.pack("<Q", len(header)) + header + body


def sign(described: Path, tensors: Path) -> None:
    """Have the JSON beside tensors say that they are whole, as far as it still can."""
    try:
        values = json.loads(described.read_bytes())
        data = tensors.read_bytes()
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(values, dict):
        values |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        described.write_text(json.dumps(values))


# ---------------------------------------------------------------------- what is no file


def displaced(path: Path, rng: random.Random) -> str:
    """Put something in a file's place that is none; returns what."""
    kind = rng.choice(("folder", "pipe", "loop", "dangling", "nothing", "itself"))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "itself":
        path.symlink_to(".")
    return kind
