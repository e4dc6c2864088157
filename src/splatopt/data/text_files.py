"""Text files of captures, in the encodings that tools of all systems write."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from splatopt.core.checks import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # The mark of UTF-32 begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks and what they stand for."""


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text from its first bytes: that of its byte-order mark, else UTF-16 or UTF-8.

    All files of captures begin with a character of ASCII, so that a zero byte in the first two tells UTF-16.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if len(head) >= 2 and 0 in head[:2]:
        return "utf-16-le" if head[1] == 0 else "utf-16-be"
    return "utf-8"


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, without their ends; those of Windows and old ones of the Mac are known.

    Bytes that are no UTF-8, as in names of files, are kept as Python's surrogates.

    Raises:
        InputError: It cannot be read, or is not what its byte-order mark says.
    """
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(4))
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        with path.open(encoding=encoding, errors=errors) as text:
            for line in text:
                yield line.removesuffix("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise InputError(f"{path} cannot be read: it is not the {encoding.upper()} text that it begins as") from error


def read_text(path: Path) -> str:
    """Return a whole text file; raises InputError as :func:`text_lines` does."""
    return "\n".join(text_lines(path))
