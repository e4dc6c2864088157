"""Errors that a person can act on, and the small checks that raise them."""

from __future__ import annotations

import contextlib
import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

MAX_POSITIVE = 1e30
"""Of rates, factors and the like; single precision ends at 3e38."""

MAX_COUNT = 1_000_000
"""Of probes, iterations and the like."""

MAX_QUOTE_LETTERS = 80
"""What is quoted from a file is cut at so many characters."""

_MAX_PATH_LETTERS = 400
_MAX_NAMES = 40

# Controls, marks of direction, halves of pairs, what is not assigned, and separators of lines and paragraphs.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown(text: object) -> str:
    r"""Return ``text`` as a terminal or a page can show it: what acts or cannot be seen is escaped, as in ``\x1b``.

    Escaped are control characters, line breaks, marks that turn the direction of writing, and what is no
    Unicode: a byte of a file's name that is not UTF-8 becomes ``\xe9``. Shown text stays as it is when shown again.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if unicodedata.category(one) in _HIDDEN else one for one in text)


def _escaped(one: str) -> str:
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:
        # Python's surrogateescape: the byte that could not be decoded.
        return f"\\x{code - 0xDC00:02x}"
    return repr(one)[1:-1]


def cut(text: object) -> str:
    """Return what a file says, shown, and cut at MAX_QUOTE_LETTERS characters."""
    text = str(text)
    return shown(text if len(text) <= MAX_QUOTE_LETTERS else text[: MAX_QUOTE_LETTERS - 1] + "…")


def quoted(text: object) -> str:
    """Return what a file says as :func:`cut` does, in quotation marks."""
    return f"'{cut(text)}'"


def short(path: Path) -> str:
    """Return a path whose names may come from a file, shown; of one that no person typed the middle is left out."""
    text = str(path)
    return shown(
        text if len(text) <= _MAX_PATH_LETTERS else f"{text[: _MAX_PATH_LETTERS // 2]}…{text[-MAX_QUOTE_LETTERS:]}"
    )


@runtime_checkable
class TextStream(Protocol):
    """What text is printed to."""

    def write(self, text: str, /) -> object:
        """Take some text."""
        ...

    def flush(self) -> object:
        """Have what was written seen."""
        ...


def say(*lines: object, file: TextStream | None = None, flush: bool = False) -> None:
    """Print lines, each as :func:`shown` shows it; the one place that prints what may hold a name from elsewhere.

    Args:
        lines: One line each.
        file: Where to; standard output when None.
        flush: Whether they are to be seen at once.
    """
    for line in lines:
        print(shown(line), file=file, flush=flush)


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message is one sentence that says what was expected, what came and what to do; it is kept as
    :func:`shown` shows it. The command line prints it after ``splatopt:`` and ends with exit code 2.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have an error of the system name ``path``, as those of a full disk do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        if error.filename is None:
            error.filename = str(path)
        raise


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: its nearest known names, or all of them, of very many the first ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:MAX_QUOTE_LETTERS], names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES + 1 else ""
    return f"known: {', '.join(names[:_MAX_NAMES] if more else names)}{more}"


def check_max_count(name: str, count: int) -> None:
    """Raise InputError where something is to be done more than MAX_COUNT times within a step, or between two."""
    if count > MAX_COUNT:
        raise InputError(f"{name} must be at most {MAX_COUNT:,}, got {count:,}")


def check_positive(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is a number above zero, and at most MAX_POSITIVE."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name} must be a positive number, got {value}")
    if value > MAX_POSITIVE:
        raise InputError(f"{name} must be at most {MAX_POSITIVE:g}, got {value}")


def check_fraction(name: str, value: float) -> None:
    """Raise InputError unless ``0 <= value < 1``."""
    if not 0 <= value < 1:
        raise InputError(f"{name} must be at least 0 and below 1, got {value}")
