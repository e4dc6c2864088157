"""The door for plug-ins: registries of names, files that are given, and packages that are installed.

Optimizers, losses and readers are found by name: among the package's own, then among what plug-in files
(:func:`load_plugin`) and programs registered, then among the entry points of installed packages. An entry point is
imported only when its name is asked for, so that one that is broken breaks nothing else; its module registers the
name, just as a plug-in file does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import re
import sys
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

from splatopt.core.announced import ANNOUNCED
from splatopt.core.checks import InputError, nearest_names, quoted, short
from splatopt.core.reading import AbsentFileError, DamagedFileError, read_bounded

Entry = TypeVar("Entry")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_MAX_BYTES = 1 << 24
_CHECKERS = ("jaxtyping", "beartype")
"""Packages whose frames stand between caller and called while types are checked."""


class Origin(Enum):
    """Who registered a name."""

    OWN = "splatopt itself"
    GIVEN = "a plug-in file, or the program at work"
    INSTALLED = "an installed package"


@dataclass(frozen=True)
class Place:
    """Where a name was registered.

    Attributes:
        file: The source file.
        line: The line in it.
        own: Whether that is splatopt's own code.
    """

    file: str
    line: int
    own: bool

    def __str__(self) -> str:
        """Return file and line, as in ``lion.py:28``."""
        return f"{short(Path(self.file))}:{self.line}"


def calling_place() -> Place:
    """Return where the function that calls this one was called."""
    frame: types.FrameType | None = sys._getframe()
    frames: list[types.FrameType] = []
    while frame is not None and len(frames) < 3:
        if _room(frame) not in _CHECKERS:
            frames.append(frame)
        frame = frame.f_back
    caller = frames[-1]
    return Place(caller.f_code.co_filename, caller.f_lineno, _room(caller) == "splatopt")


def _room(frame: types.FrameType) -> str:
    """The package whose code a frame runs."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@dataclass(frozen=True)
class _Source:
    """What is being loaded: a plug-in file, or an entry point of an installed package.

    Attributes:
        key: The file's path, or the entry point in words.
        origin: Which of the two.
    """

    key: str
    origin: Origin


@dataclass(frozen=True)
class _Registered(Generic[Entry]):
    entry: Entry
    place: Place
    origin: Origin
    source: _Source | None


class Registry(Generic[Entry]):
    """Names of one kind of thing, with what each stands for."""

    def __init__(self, kind: str, group: str, own: Sequence[str] = ()) -> None:
        """Begin without names.

        Args:
            kind: The word for one of them, such as ``optimizer``.
            group: The entry points of installed packages, such as ``splatopt.optimizers``.
            own: Modules that register splatopt's own when they are imported, which the first look-up does; those of
                rooms above are named with ``core.announced.announce``.
        """
        self.kind = kind
        self.group = group
        self._own = tuple(own)
        self._loading = False
        self._entries: dict[str, _Registered[Entry]] = {}
        _REGISTRIES.append(self)

    def add(self, name: str, entry: Entry, place: Place) -> None:
        """Make ``entry`` known under ``name``.

        Raises:
            InputError: The name is taken, or cannot be written before options of a command.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{_article(self.kind)} must have a name of letters, digits, - and _, as options are written under "
                f"it, got {quoted(name)} in {place}"
            )
        if not place.own:
            # Those that come later must not find their names taken.
            self._load_own()
        if name in self._entries:
            raise InputError(
                f"{_article(self.kind)} named {name!r} is registered already: in {self._entries[name].place}, and now "
                f"in {place}; give one of them another name"
            )
        # What is splatopt's own stays known when the plug-in whose loading brought it in is forgotten.
        source = _sources[-1] if _sources and not place.own else None
        origin = Origin.OWN if place.own else source.origin if source is not None else Origin.GIVEN
        self._entries[name] = _Registered(entry, place, origin, source)

    def forget(self, name: str) -> None:
        """Take ``name`` out again."""
        del self._entries[name]

    def forget_source(self, source: _Source) -> None:
        """Take out all that ``source`` registered."""
        self._entries = {name: one for name, one in self._entries.items() if one.source != source}

    def names(self, *origins: Origin) -> tuple[str, ...]:
        """Names that are registered, in the order in which they were; of ``origins`` alone, where any are given."""
        self._load_own()
        return tuple(name for name, one in self._entries.items() if not origins or one.origin in origins)

    def offered(self) -> Mapping[str, str]:
        """Return the names that installed packages offer and nobody has asked for yet, each with its package's."""
        self._load_own()
        found = {point.name: _package(point) for point in _entry_points(self.group, tuple(sys.path))}
        return {name: package for name, package in found.items() if name not in self._entries}

    def load_offered(self, names: Collection[str]) -> None:
        """Load those of ``names`` that installed packages offer; raises InputError where one cannot be loaded."""
        for name in [name for name in self.offered() if name in names]:
            self._find(name)

    def find(self, name: str) -> Entry:
        """Return what ``name`` stands for.

        Raises:
            InputError: There is no such name; says the nearest. Or the package that offers it cannot be loaded.
        """
        return self._find(name).entry

    def origin(self, name: str) -> Origin:
        """Return who registered ``name``; raises InputError as :meth:`find` does."""
        return self._find(name).origin

    def place(self, name: str) -> Place:
        """Return where ``name`` was registered; raises InputError as :meth:`find` does."""
        return self._find(name).place

    def _find(self, name: str) -> _Registered[Entry]:
        self._load_own()
        if name not in self._entries:
            self._load_installed(name)
        if name not in self._entries:
            known = {*self._entries, *self.offered()}
            raise InputError(f"no {self.kind} is named {quoted(name)}; {nearest_names(name, known)}")
        return self._entries[name]

    def _load_own(self) -> None:
        if self._loading:
            return
        self._loading = True
        try:
            for module in (*self._own, *ANNOUNCED.get(self.group, ())):
                importlib.import_module(module)
        finally:
            self._loading = False

    def _load_installed(self, name: str) -> None:
        """Import what an installed package offers under ``name``, where one does."""
        points = [point for point in _entry_points(self.group, tuple(sys.path)) if point.name == name]
        if len(points) > 1:
            packages = " and ".join(_package(point) for point in points)
            raise InputError(f"{_article(self.kind)} named {name!r} is offered twice, by {packages}; uninstall one")
        for point in points:
            told = f"the {self.kind} {name!r} of the package {_package(point)}"
            source = _Source(f"{self.group}: {name} = {point.value}", Origin.INSTALLED)
            with _registering(source, told, "mend or uninstall that package"):
                point.load()
            if name not in self._entries:
                raise InputError(f"{told} is {point.value}, which registers no {self.kind} of that name")


@functools.lru_cache(maxsize=8)
def _entry_points(group: str, search_path: tuple[str, ...]) -> importlib.metadata.EntryPoints:
    """Return those of the packages on ``search_path``, which is Python's own; reading them takes a while."""
    return importlib.metadata.entry_points(group=group)


_REGISTRIES: list[Registry[Any]] = []
_sources: list[_Source] = []
"""What is being loaded at the moment, the innermost last."""


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _package(point: importlib.metadata.EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.module


@contextlib.contextmanager
def _registering(source: _Source, told: str, remedy: str, file: str | None = None) -> Iterator[None]:
    """Note ``source`` with all that the block registers; where it fails, say so in a sentence and keep none of it.

    Args:
        source: What is loaded.
        told: What it is, for the message.
        remedy: What to do, for the message.
        file: Where it lies, so that the line of a failure is one of this file.
    """
    _sources.append(source)
    try:
        yield
    except (Exception, SystemExit) as error:
        for registry in _REGISTRIES:
            registry.forget_source(source)
        raise InputError(f"{told} cannot be loaded: {failure(error, file)}; {remedy}") from error
    finally:
        _sources.pop()


def failure(error: BaseException, file: str | None = None) -> str:
    """Return in a few words what went wrong in code that others wrote, and where: its file and line.

    Args:
        error: What it raised.
        file: Its file; the last one on the way that is neither Python's own nor splatopt's when None.
    """
    if isinstance(error, SyntaxError) and error.filename and not isinstance(error, InputError):
        return f"{short(Path(error.filename))}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    said = " ".join(str(error).split()) if isinstance(error, InputError) else _one_line(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    theirs = [frame for frame in frames if frame.filename == file]
    if not theirs and not isinstance(error, SyntaxError):
        theirs = [frame for frame in frames if _is_foreign(frame.filename)]
    return f"{short(Path(theirs[-1].filename))}, line {theirs[-1].lineno}: {said}" if theirs else said


def _is_foreign(file: str) -> bool:
    """Whether a source file is neither splatopt's nor of Python's own library."""
    ours, library = Path(__file__).parents[1], Path(importlib.__file__).parents[1]
    parts = Path(file).parts
    if file.startswith(str(ours)) or set(parts) & set(_CHECKERS):
        return False
    return not file.startswith(str(library)) or "site-packages" in parts


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


# ---------------------------------------------------------------------- files


@dataclass(frozen=True)
class PluginFile:
    """A plug-in file as a run records it.

    Attributes:
        path: Where it lies, absolute.
        sha256: The digest of what was loaded, 64 hexadecimal digits.
    """

    path: Path
    sha256: str

    def __str__(self) -> str:
        """Return the path, as it is typed."""
        return str(self.path)


_files: dict[Path, PluginFile] = {}
"""What was loaded, by where it lies."""


def loaded_plugins() -> tuple[PluginFile, ...]:
    """Return the plug-in files that were loaded, in their order."""
    return tuple(_files.values())


def as_plugins(given: object) -> tuple[PluginFile, ...]:
    """Return a list of plug-in files, loading those that are given by their path; one given twice counts once."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"plugins must be a list of Python files, got {quoted(str(given))}; write [{str(given)!r}]")
    if odd := [one for one in given if not isinstance(one, str | Path | PluginFile)]:
        raise InputError(f"plugins must be a list of Python files, got {quoted(str(odd[0]))} in it")
    found = [one if isinstance(one, PluginFile) else load_plugin(one) for one in given]
    return tuple({one.path: one for one in found}.values())


def load_plugin(path: Path | str) -> PluginFile:
    """Run a plug-in file, which registers its names; one that was loaded before and has not changed is not run again.

    A file that has changed since is run anew, and what it had registered is forgotten first.

    Args:
        path: A Python file.

    Raises:
        InputError: It cannot be read, or fails; names the file and the line.
    """
    path = Path(path).expanduser().resolve()
    told, source = f"the plug-in {short(path)}", _source_of(path)
    found = PluginFile(path, hashlib.sha256(source).hexdigest())
    if _files.get(path) == found:
        return found
    source_of = _Source(str(path), Origin.GIVEN)
    for registry in _REGISTRIES:
        registry.forget_source(source_of)
    _files.pop(path, None)
    with _registering(source_of, told, "mend it", str(path)):
        _execute(path, source, f"splatopt_plugin_{found.sha256[:16]}")
    _files[path] = found
    return found


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a plug-in file, which is not run; raises InputError where it cannot be read."""
    return hashlib.sha256(_source_of(path)).hexdigest()


def _source_of(path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_BYTES)
    except AbsentFileError as error:
        raise InputError(f"the plug-in {short(path)} is not there; give a Python file with --plugin") from error
    except DamagedFileError as error:
        told = f"the plug-in {short(path)} cannot be read ({error})"
        raise InputError(f"{told}; give a Python file with --plugin") from error


def _execute(path: Path, source: bytes, name: str) -> None:
    """Run ``source`` as the module ``name``, which nothing but itself imports; no byte code is written beside it."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses look their module up, to know what the words of annotations mean.
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def guarded(told: str, file: str, call: Callable[[], Entry]) -> Entry:
    """Return ``call()`` of code that others wrote; what it raises beside InputError becomes a sentence.

    Args:
        told: What is called, for the message.
        file: Its source file.
        call: Calls it.

    Raises:
        InputError: It failed; names the file and the line.
    """
    try:
        return call()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{told} failed: {failure(error, file)}") from error
