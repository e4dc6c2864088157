"""Reading the files of a run: JSON and safetensors from anywhere, as data and within bounds.

A file is a regular file of a bounded size, or it is not read: a pipe would wait for ever. JSON is UTF-8, of bounded
depth, without a name twice in one object, and with numbers that are finite and no whole number beyond 64 bits.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import operator
import os
import stat
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import safetensors
import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted, shown
from splatopt.core.typed import Json

MAX_JSON_BYTES = 64 << 20
MAX_DEPTH = 48
"""Lists and objects within each other."""

_MAX_DIGITS = 20
_MAX_INTEGER = 2**64 - 1

_MAX_AXES = 16
_MAX_NUMBERS = 2**48
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Types of numbers by their names in safetensors."""


class DamagedFileError(InputError):
    """A file cannot be read as what it should be; the message names it and says why."""


class AbsentFileError(DamagedFileError):
    """There is no such file."""


def open_flags(*names: str) -> int:
    """Return the flags of ``os.open`` of these names together, without those that the system does not have."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return what a regular file holds.

    Args:
        path: The file; links are followed.
        max_bytes: Bytes that it may have; never more than the machine's memory.

    Raises:
        AbsentFileError: There is none.
        DamagedFileError: It is larger, no regular file, or the system refuses to read it.
    """
    try:
        # A pipe would keep us waiting for whoever writes to it.
        descriptor = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"))
    except OSError as error:
        kind = AbsentFileError if error.errno in (errno.ENOENT, errno.ENOTDIR) else DamagedFileError
        raise kind(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedFileError(f"{quoted(path)} cannot be read: no file can have this name") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise DamagedFileError(f"{path} cannot be read: it is {what}")
        max_bytes = min(max_bytes, int(psutil.virtual_memory().total))
        if found.st_size > max_bytes:
            raise DamagedFileError(f"{path} cannot be read: it holds {found.st_size:,} bytes, more than {max_bytes:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Return the JSON that a file holds.

    Args:
        path: The file.
        max_bytes: Bytes that it may have.

    Raises:
        AbsentFileError: There is none.
        DamagedFileError: It cannot be read, or is not JSON of the form above.
    """
    return parse_json(read_bounded(path, max_bytes), str(path))


def read_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Json] | None:
    """Return the JSON object that a file holds; None where there is no file.

    Args:
        path: The file.
        max_bytes: Bytes that it may have.

    Raises:
        DamagedFileError: It cannot be read, or is no JSON object of the form above.
    """
    try:
        values = read_json(path, max_bytes)
    except AbsentFileError:
        return None
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} cannot be read: it must hold a JSON object, and holds something else")
    return values


def parse_json(data: bytes, where: str) -> Json:
    """Return the value that ``data`` writes as JSON.

    Args:
        data: JSON in UTF-8.
        where: What it was read from, for messages.

    Raises:
        DamagedFileError: It is not JSON of the form above.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_number,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{where} cannot be read: it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise DamagedFileError(f"{where} cannot be read: it is nested more than {MAX_DEPTH} deep") from error
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{where} cannot be read: it is not JSON ({error})") from error
    except _ValueRefusedError as error:
        raise DamagedFileError(f"{where} cannot be read: {error}") from error
    _check_form(value, where)
    return value


class _ValueRefusedError(ValueError):
    """A value of JSON that no file of ours holds."""


def _no_number(word: str) -> float:
    raise _ValueRefusedError(f"{word} is not a finite number")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS or abs(int(digits)) > _MAX_INTEGER:
        raise _ValueRefusedError(f"{quoted(digits)} is not a whole number of at most 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _ValueRefusedError(f"{quoted(digits)} is not a finite number")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, Json]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _ValueRefusedError(f"it names {quoted(twice)} twice in one object")
    return values


def _check_form(value: object, where: str) -> None:
    """Refuse what is nested too deep, and text that is no Unicode."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        following: list[Json] = []
        for one in level:
            if isinstance(one, dict):
                following += one.keys()
                following += one.values()
            elif isinstance(one, list):
                following += one
            elif isinstance(one, str) and not one.isascii():
                _check_text(one, where)
        if not following:
            return
        level = following
    raise DamagedFileError(f"{where} cannot be read: it is nested more than {MAX_DEPTH} deep")


def _check_text(text: str, where: str) -> None:
    try:
        # Names of files that are not UTF-8 hold halves of pairs of one kind, see os.fsdecode.
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise DamagedFileError(f"{where} cannot be read: {quoted(text)} is not Unicode") from error


def parse_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors that ``data`` holds as safetensors, by name.

    Args:
        data: The whole file.
        where: What it was read from, for messages.

    Raises:
        DamagedFileError: It is not of that format, or of a type or size that no tensor of ours has.
    """
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise DamagedFileError(f"{where} cannot be read: it is not safetensors ({shown(error)[:200]})") from error
    tensors = {}
    for name, entry in found:
        dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise DamagedFileError(f"{where} cannot be read: {quoted(name)} is of the type {quoted(entry['dtype'])}")
        if len(shape) > _MAX_AXES or math.prod(max(1, length) for length in shape) > _MAX_NUMBERS:
            raise DamagedFileError(f"{where} cannot be read: {quoted(name)} is of the shape {quoted(shape)}")
        # An empty buffer cannot be viewed.
        flat = torch.frombuffer(entry["data"], dtype=dtype) if len(entry["data"]) else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    return tensors
