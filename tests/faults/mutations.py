"""Damage to files: bytes turned, cut, doubled and spliced, and numbers replaced by nasty ones. All from one seed."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

NASTY_NUMBERS = (
    *("0", "-1", "1", "2", "255", "256", "65536", "2147483647", "2147483648", "4294967295", "-2147483648"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "1" + "0" * 40, "1e-300", "-1e-300"),
    *("1e300", "-1e300", "1e30", "1e10", "5e-324", "1e400", "nan", "NaN", "-nan", "inf", "Infinity", "-inf", "0x10"),
    *("1_000", "", "x", "1.", "--1", "1e", "\x1b[31m", "\x00", "٣"),
)
_FORMS = ("b", "h", "i", "q", "f", "d")
_NASTY_FLOATS = (0.0, -1.0, 1e-300, 1e300, 1e30, 1e12, 1e-30, 5e-324, float("nan"), float("inf"), -float("inf"))
_NASTY_WHOLE = (0, -1, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**62, 2**63 - 1)
_FACTORS = (1, -1, 0.5, 3, 30, 1e3, 1e6, 1e9, 1e-3, 1e-6)
_SUMMANDS = (0, 0, 0.1, 1, 100, 1e5, 1e9, -1, -1e7)
_NUMBER = re.compile(rb"[-+]?\d[\d.]*(?:[eE][-+]?\d+)?")
_NAMES = (
    *(
        "\x1b]0;title\x07.jpg",
        "a\nb.jpg",
        "\u202egpj.exe",
        "[red]x[/red].jpg",
        "[/]",
        "\udce9.jpg",
        "\ud800",
        "\x00",
        "",
    ),
    *("../../../../etc/passwd", "/dev/zero", "/", ".", "x" * 300, "x/" * 600, "x" * 100_000, "v0.jpg", "images/v0.jpg"),
)


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return ``data`` with one to four damages."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_MUTATIONS)(data, rng, others)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """A place in the file; its head, where the counts are, more often than the rest."""
    return rng.randrange(min(len(data), 128) if rng.random() < 0.4 else len(data)) if data else 0


def _flip(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    return data[: _place(data, rng)]


def _delete(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 24, 64)) :]


def _double(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at, length = _place(data, rng), rng.choice((1, 4, 8, 24, 64, 256))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def _insert(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 8, 64))) + data[at:]


def _splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _swap_lines(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a] if rng.random() < 0.5 else lines[b]
    return b"\n".join(lines)


def _number(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Replace a number in text."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return _field(data, rng, [])
    match = rng.choice(found)
    number = rng.choice(NASTY_NUMBERS) if rng.random() < 0.6 else _other_number(match[0], rng)
    return data[: match.start()] + number.encode() + data[match.end() :]


def _other_number(text: bytes, rng: random.Random) -> str:
    """A number of another size or sign, which may well be used."""
    try:
        return repr(float(text) * rng.choice(_FACTORS) + rng.choice(_SUMMANDS))
    except ValueError:
        return "1"


def _field(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Overwrite a number in binary."""
    form = rng.choice(_FORMS)
    if form in "fd":
        value = rng.choice(_NASTY_FLOATS)
        raw = (
            struct.pack("<d", value)
            if form == "d"
            else struct.pack("<f", value if abs(value) < 1e38 else value * 0 + 1)
        )
    else:
        bits = 8 * struct.calcsize(form)
        raw = (rng.choice(_NASTY_WHOLE) & ((1 << bits) - 1)).to_bytes(bits // 8, rng.choice(("little", "big")))
    at = _place(data, rng)
    return data[:at] + raw + data[at + len(raw) :]


def _name(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Replace a name of an image."""
    found = list(re.finditer(rb"v\d\.jpg", data))
    if not found:
        return _flip(data, rng, [])
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_NAMES).encode("utf-8", "surrogatepass") + data[match.end() :]


_MUTATIONS: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...] = (
    *(_flip, _cut, _delete, _double, _insert, _splice, _swap_lines),
    *(_number, _number, _number, _field, _field, _name),
)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG file whose chunks have the right checksums again, so that damage gets past them."""
    signature, at = data[:8], 8
    parts = [signature]
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join([*parts, data[at:]])


def png_claim(data: bytes, rng: random.Random) -> bytes:
    """Return a PNG file that claims another size, depth or colour type, with a right checksum."""
    sides = (0, 1, 16, 12, 4096, 12_000, 20_000, 100_000, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
    header = struct.pack(">II", rng.choice(sides), rng.choice(sides)) + bytes(
        [rng.choice((1, 8, 16, 7)), rng.choice(range(8))]
    )
    return with_checksums(data[:16] + header + data[26:])


def mutated_glb(data: bytes, rng: random.Random) -> bytes:
    """Return a .glb file with values of its JSON part replaced, and lengths that are right again."""
    (length,) = struct.unpack_from("<I", data, 12)
    text = mutated_json(data[20 : 20 + length].rstrip(b" \0"), rng)
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON file with one to three of its values replaced by others of any type."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = list(_holders(content))
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        action = rng.random()
        if action < 0.1:
            del holder[key]
        elif action < 0.2 and isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            number = isinstance(holder[key], int | float) and rng.random() < 0.5
            holder[key] = float(_other_number(str(holder[key]).encode(), rng)) if number else _nasty_json(rng)
    return json.dumps(content).encode()


def _holders(value: Any) -> list[Any]:
    """All objects and lists of a JSON value that are not empty."""
    if not isinstance(value, dict | list) or not value:
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(holder for one in inner for holder in _holders(one))]


def _nasty_json(rng: random.Random) -> Any:
    kinds: tuple[Any, ...] = (
        *(
            None,
            True,
            False,
            [],
            {},
            "",
            "x",
            0,
            -1,
            1,
            2**31,
            2**63,
            -(2**63),
            10**40,
            10**400,
            0.5,
            1e-300,
            1e300,
            1e30,
        ),
        *(float("nan"), float("inf"), -float("inf"), [[]], {"a": []}, [None], ["1"], [1e300] * 4, [[0] * 4] * 4),
        *([[1e-200, 0, 0, 0], [0, 1e-200, 0, 0], [0, 0, 1e-200, 0], [0, 0, 0, 1]], "OPENCV_FISHEYE", "EQUIRECTANGULAR"),
        *_NAMES,
    )
    return rng.choice(kinds)
