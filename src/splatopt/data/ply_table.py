"""Tables of PLY files, read so that no header can make us allocate more than the file holds.

The whole header is accounted for, however long its comments are, before the first row is read; lists are walked
with their lengths held against the bytes that are left.

File format: http://paulbourke.net/dataformats/ply/
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from splatopt.core.checks import InputError, quoted

MAX_HEADER = 16 << 20
"""Longest header that is read, bytes; the usual one takes two thousand."""

MAX_PROPERTIES = 4096
"""Properties of an element at most; a Gaussian of degree 3 has 62."""

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
    # Not of the format, but met in files.
    **{"int64": "i8", "uint64": "u8", "float16": "f2"},
}
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
_CODES |= {"f2": "e", "f4": "f", "f8": "d"}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_CHUNK = 65_536


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    length: str = ""
    """Type of the length where the property is a list, else empty."""


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(one.length for one in self.properties)

    def row_type(self, order: str) -> np.dtype:
        """The scalar properties as a structured type."""
        return np.dtype([(one.name, f"{order}{one.kind}") for one in self.properties if not one.length])

    def min_row_bytes(self, order: str) -> int:
        """Bytes of a row whose lists are empty; a number in text takes a digit and a separator."""
        if not order:
            return max(1, 2 * len(self.properties))
        return max(1, sum(int((one.length or one.kind)[1]) for one in self.properties))


@dataclass(frozen=True)
class PlyVertices:
    """The element ``vertex`` of a PLY file.

    Attributes:
        table: One row each, of the properties that are numbers.
        lists: Names of the properties that are lists, which are left out.
    """

    table: np.ndarray
    lists: tuple[str, ...]


def read_vertices(path: Path, what: str) -> PlyVertices:
    """Read the vertices of a PLY file, binary or ASCII.

    Args:
        path: An existing file.
        what: What it should be, for the message, such as ``PLY point cloud``.

    Raises:
        InputError: It is no PLY, has no vertices, is cut short, or claims more than it holds.
    """
    return _Reader(path, what).vertices()


def check_rows(path: Path, what: str) -> None:
    """Make sure that every row of every element is there; arguments and errors as of :func:`read_vertices`."""
    reader = _Reader(path, what)
    with reader.opened() as file:
        elements, order = reader.header(file)
        if not order:
            for element in elements:
                row = -1
                for row, line in enumerate(islice(file, element.count)):
                    reader.numbers(line, element, row)
                if row + 1 < element.count:
                    reader.refuse(f"it ends after {row + 1} rows of {quoted(element.name)}; it is truncated")
        elif any(element.has_lists for element in elements):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                offset = file.tell()
                for element in elements:
                    offset, _ = reader.walk(data, offset, element, order, keep=False)


class _Reader:
    """One file, and the sentence with which it is refused."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what

    def refuse(self, reason: str) -> NoReturn:
        raise InputError(f"{self.path} is not a readable {self.what}: {reason}; export or copy it again")

    def opened(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}; check the file and its rights") from error

    def vertices(self) -> PlyVertices:
        with self.opened() as file:
            elements, order = self.header(file)
            found = next((one for one in elements if one.name == "vertex"), None)
            if found is None:
                self.refuse("it has no element 'vertex'")
            before = elements[: elements.index(found)]
            table = self._binary(file, before, found, order) if order else self._text(file, before, found)
        return PlyVertices(table, tuple(one.name for one in found.properties if one.length))

    # ------------------------------------------------------------------ header

    def header(self, file: BinaryIO) -> tuple[list[_Element], str]:
        """Return the elements and the byte order (empty for text), and leave ``file`` at the first row."""
        order: str | None = None
        elements: list[_Element] = []
        known: set[str] = set()
        for words in self._header_lines(file):
            if words[0] == "format":
                order = _ORDERS.get(words[1]) if words[2:] == ["1.0"] else None
                if order is None:
                    self.refuse(f"its format {quoted(' '.join(words[1:]))} is none that can be read")
            elif words[0] == "element":
                elements.append(self._element(words))
                if elements[-1].name in known:
                    self.refuse(f"its header names the element {quoted(words[1])} twice")
                if len(known) == MAX_PROPERTIES:
                    self.refuse(f"its header names more than {MAX_PROPERTIES} elements")
                known.add(elements[-1].name)
            elif words[0] == "property":
                if not elements:
                    self.refuse("its header names a property before the first element")
                self._add_property(elements[-1], words)
            elif words[0] not in ("comment", "obj_info"):
                self.refuse(f"its header says {quoted(' '.join(words))}")
        if order is None:
            self.refuse("its header names no format")
        self._check_size(file, elements, order)
        return elements, order

    def _header_lines(self, file: BinaryIO) -> Iterator[list[str]]:
        """Yield the words of each line between ``ply`` and ``end_header``."""
        if file.readline(8).rstrip() != b"ply":
            self.refuse("it is not a PLY file (it does not begin with 'ply')")
        while True:
            line = file.readline(MAX_HEADER)
            if not line.endswith(b"\n") or file.tell() > MAX_HEADER:
                self.refuse(f"the PLY header has no end within {MAX_HEADER >> 20} MiB; the file is truncated")
            words = line.decode("ascii", "replace").split()
            if words == ["end_header"]:
                return
            if words:
                yield words

    def _element(self, words: list[str]) -> _Element:
        if len(words) != 3 or not (words[2].isascii() and words[2].isdecimal() and len(words[2]) < 100):
            self.refuse(f"its header says {quoted(' '.join(words))}, expected 'element NAME COUNT'")
        return _Element(words[1], int(words[2]))

    def _add_property(self, element: _Element, words: list[str]) -> None:
        is_list = words[1:2] == ["list"]
        kinds = [_TYPES.get(word) for word in (words[2:4] if is_list else words[1:2])]
        if len(words) != (5 if is_list else 3) or None in kinds or (is_list and str(kinds[0]).startswith("f")):
            self.refuse(f"its header says {quoted(' '.join(words))}, expected 'property TYPE NAME'")
        if any(one.name == words[-1] for one in element.properties):
            self.refuse(f"its header names the property {quoted(words[-1])} twice")
        if len(element.properties) == MAX_PROPERTIES:
            self.refuse(f"its header names more than {MAX_PROPERTIES} properties")
        element.properties.append(_Property(words[-1], str(kinds[-1]), str(kinds[0]) if is_list else ""))

    def _check_size(self, file: BinaryIO, elements: list[_Element], order: str) -> None:
        needed = sum(one.count * one.min_row_bytes(order) for one in elements)
        present = self.path.stat().st_size - file.tell()
        # The last number in text may lack its separator.
        if present + (not order) >= needed:
            return
        largest = max(elements, key=lambda one: one.count * one.min_row_bytes(order))
        self.refuse(
            f"it claims {largest.count} {'points' if largest.name == 'vertex' else f'rows of {quoted(largest.name)}'}, "
            "so that "
            f"the header promises at least {needed} bytes of data but the file holds {present}; it is truncated"
        )

    # ------------------------------------------------------------------ rows

    def _binary(self, file: BinaryIO, before: list[_Element], vertex: _Element, order: str) -> np.ndarray:
        if not any(one.has_lists for one in (*before, vertex)):
            offset = sum(one.count * one.row_type(order).itemsize for one in before)
            return np.fromfile(file, vertex.row_type(order), vertex.count, offset=offset)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            offset = file.tell()
            for one in before:
                offset, _ = self.walk(data, offset, one, order, keep=False)
            return self.walk(data, offset, vertex, order, keep=True)[1]

    def walk(
        self, data: mmap.mmap, offset: int, element: _Element, order: str, *, keep: bool
    ) -> tuple[int, np.ndarray]:
        """Go over rows with lists; return where they end, and their numbers if they are to be kept."""
        table = np.empty(element.count if keep else 0, dtype=element.row_type(order))
        parts = [
            (struct.Struct(order + "".join(_CODES[one.length or one.kind] for one in group)), int(item))
            for item, group in _parts(element)
        ]
        for row in range(element.count):
            values: tuple = ()
            for form, item in parts:
                if offset + form.size > len(data):
                    self.refuse(f"it ends within row {row} of {quoted(element.name)}; it is truncated")
                numbers = form.unpack_from(data, offset)
                offset += form.size
                if item:
                    if numbers[0] < 0 or numbers[0] * item > len(data) - offset:
                        self.refuse(f"row {row} of {quoted(element.name)} claims a list of {numbers[0]}")
                    offset += numbers[0] * item
                elif keep:
                    values += numbers
            if keep:
                table[row] = values
        return offset, table

    def _text(self, file: BinaryIO, before: list[_Element], vertex: _Element) -> np.ndarray:
        for one in before:
            for _ in islice(file, one.count):
                pass
        result = np.empty(vertex.count, dtype=vertex.row_type("="))
        for first in range(0, vertex.count, _CHUNK):
            rows = [
                self.numbers(line, vertex, first + index)
                for index, line in enumerate(islice(file, min(_CHUNK, vertex.count - first)))
            ]
            if len(rows) < min(_CHUNK, vertex.count - first):
                self.refuse(f"it ends after {first + len(rows)} of {vertex.count} points; it is truncated")
            table = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
            for column, name in enumerate(result.dtype.names or ()):
                result[name][first : first + len(rows)] = self._converted(table[:, column], result.dtype[name], name)
        return result

    def numbers(self, line: bytes, element: _Element, row: int) -> list[float]:
        """Return the numbers of one line that are in no list."""
        words, values, place = line.split(), [], 0
        try:
            for one in element.properties:
                if one.length:
                    # A negative length leaves words over, or runs out of them.
                    place += max(0, int(words[place]))
                else:
                    values.append(float(words[place]))
                place += 1
        except (ValueError, IndexError, OverflowError):
            place = -1
        if place != len(words):
            self.refuse(
                f"row {row} of {quoted(element.name)} is {quoted(line.decode('ascii', 'replace').strip())}, not "
                f"{len(element.properties)} numbers that can be read; it is damaged or truncated"
            )
        return values

    def _converted(self, column: np.ndarray, kind: np.dtype, name: str) -> np.ndarray:
        """Return numbers in the type that the header gives them."""
        if np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            if not ((column >= limits.min) & (column <= limits.max) & (column == np.rint(column))).all():
                self.refuse(f"property {quoted(name)} holds a number that is no whole one of {limits.bits} bits")
        # A number beyond float32 becomes infinite, which whoever reads the column looks for.
        with np.errstate(over="ignore"):
            return column.astype(kind)


def _parts(element: _Element) -> Iterator[tuple[int, list[_Property]]]:
    """Yield runs of numbers, with 0, and each list alone, with the bytes of one of its items."""
    for is_list, group in groupby(element.properties, key=lambda one: bool(one.length)):
        if not is_list:
            yield 0, list(group)
        else:
            for one in group:
                yield int(one.kind[1]), [one]
