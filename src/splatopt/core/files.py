"""Files that are whole or not there: written beside their place under a known hidden name, flushed, renamed.

The part of ``scene.ply`` is ``.scene.ply.partial``, in every process and every time, so that what a kill left is met
again: by the next who writes the file, and by whoever opens the folder and sweeps it. A part is always a new file: what
lies under its name, a link too, is removed and never written through.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from splatopt.core.checks import InputError, writing
from splatopt.core.reading import open_flags, parse_json

_MAX_NAME_BYTES = 255 - len("..partial")
"""Bytes of a file's name that leave room for what a part's name adds."""


def partial_path(path: Path) -> Path:
    """Return where ``path`` is written before it is whole."""
    name = path.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest() + path.suffix
    return path.with_name(f".{name}.partial")


def discard(path: Path) -> None:
    """Remove a file, a folder with all it holds, or a link (not what it leads to); nothing where there is none."""
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that did not exist, and wait at the end until the disk has what was written.

    Raises:
        OSError: It could not be written, or there is something at ``path`` already, be it a link.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | open_flags("O_NOFOLLOW", "O_CLOEXEC"), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open what is to become ``path`` once the block is done; where it fails, what was there stays.

    Args:
        path: The file; one that exists is replaced, and a link is replaced by a file.

    Raises:
        OSError: It could not be written.
    """
    partial = partial_path(path)
    discard(partial)
    try:
        with new_file(partial) as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # what the user asked for
        raise
    finally:
        discard(partial)
    sync_folder(path.parent)


def append_only(path: Path) -> int:
    """Return a descriptor that appends to ``path``, which is made if absent.

    Raises:
        InputError: There is a link in its place.
    """
    is_new = not path.exists()
    try:
        # A pipe without a reader is refused, not waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a link, and nothing is written through it; put a file in its place") from None
    if is_new:
        sync_folder(path.parent)
    return descriptor


def trim_lines(path: Path, step: int) -> None:
    """Drop from a file of JSON objects those whose ``step`` comes after ``step``, and a line that was cut short."""
    lines = path.read_bytes().splitlines()
    with whole_file(path) as file:
        file.writelines(line + b"\n" for line in lines if _is_up_to(line, step))


def _is_up_to(line: bytes, step: int) -> bool:
    """Whether a line is whole and of a step that is not after ``step``."""
    try:
        value = parse_json(line, "the line")
    except InputError:
        return False
    return isinstance(value, dict) and type(value.get("step")) is int and value["step"] <= step


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it where they are absent, and wait until the disk has their names."""
    absent = [path] if not path.exists() else []
    while absent and not absent[-1].parent.exists():
        absent.append(absent[-1].parent)
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(absent):
        sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """Wait until the disk has all files and folders below ``folder``, which others have written."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY | open_flags("O_NOFOLLOW"))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


@contextlib.contextmanager
def own_folder(folder: Path, what: str) -> Iterator[None]:
    """Make a folder that is this process's own and goes away at the end; what a kill left there goes before.

    Args:
        folder: Of a known name, so that it is met again; its own folder exists.
        what: What it is for, for the message.

    Raises:
        InputError: Another process is at work in it.
    """
    if folder.is_dir() and not folder.is_symlink():
        with locked(folder, what):
            discard(folder)
    discard(folder)
    folder.mkdir()
    with locked(folder, what):
        try:
            yield
        finally:
            discard(folder)


@contextlib.contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """Hand out a folder that is to become ``folder`` once the block is done; where it fails, it goes away.

    Args:
        folder: Must not exist, or be empty.
        what: What it is, for the message.

    Raises:
        InputError: Another process is making it.
    """
    make_folder(folder.parent)
    partial = partial_path(folder)
    with own_folder(partial, what):
        yield partial
        sync_tree(partial)
        partial.replace(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``; nothing where folders cannot be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with writing(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets go of it when the process ends, however it ends.

    Args:
        folder: Exists.
        what: What it is, for the message.
        shared: Hold it beside others that do the same, against one that wants it alone.

    Raises:
        InputError: Another process holds it.
    """
    descriptor, is_ours = _lock(folder, shared)
    try:
        if not is_ours:
            raise InputError(
                f"another process is at work on {what}; wait for it, stop it, or give another folder with --out"
            )
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, shared: bool) -> tuple[int, bool]:
    """Return a descriptor that holds a folder as long as it is open, and whether it does, or another process has it."""
    try:
        import fcntl
    except ImportError:
        return _lock_beside(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return descriptor, False
    except OSError:
        # Some network file systems lock no folders; there nobody is kept out.
        pass
    return descriptor, True


def _lock_beside(folder: Path) -> tuple[int, bool]:
    """Do so where the system locks files alone: one beside the folder, held by one process at a time."""
    import filelock

    folder = folder.resolve(strict=True)
    descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    return descriptor, filelock.lock_descriptor(descriptor, blocking=False)


def sweep(parts: Iterator[Path] | list[Path]) -> None:
    """Remove parts that a kill left; what may not be removed stays."""
    for part in parts:
        with contextlib.suppress(OSError):
            discard(part)
