"""A command in a forked child that is killed at one of its file operations, or loses power there.

The operations are what the interpreter's audit events name - opening to write, renaming, making and removing - and
``os.write`` and ``os.fsync``. A loss of power cuts what was written and not yet flushed, and takes back renames whose
folder was not yet flushed.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink"}


@dataclass(frozen=True)
class KillPlan:
    """How a child ends.

    Attributes:
        operation: It ends at this one, counted from 1; 0 for never.
        seconds: It ends after so many; 0 for never.
        alone: Whether the process that comes to the operation ends alone, not with those that it began.
        power: Whether power is lost, not only the process.
        request: It is asked to stop with this signal in place of being killed; 0 for a kill.
        seed: Decides on what a loss of power takes.
    """

    operation: int = 0
    seconds: float = 0.0
    alone: bool = False
    power: bool = False
    request: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: Its exit code; negative where a signal ended it.
        operations: File operations that it and its own children did.
        seconds: How long it ran.
        said: What it printed.
    """

    code: int
    operations: int
    seconds: float
    said: str


class _Disk:
    """Counts operations below a folder, and knows what a loss of power would take."""

    def __init__(self, root: Path, plan: KillPlan, counter: mmap.mmap) -> None:
        self.root, self.plan, self.counter = str(root), plan, counter
        self.flushed: dict[str, int] = {}
        self.renames: list[tuple[str, str, str | None]] = []
        self.busy = False
        self.numbers = itertools.count()
        self.backups = root.parent / f"{root.name}.backups"
        self.write, self.fsync = os.write, os.fsync

    def install(self) -> None:
        os.write, os.fsync = self._write, self._fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if self.busy or (event not in _CHANGES and event != "open"):
            return
        path = str(arguments[0]) if arguments else ""
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR) or not self._is_ours(path):
                return
        elif event in ("os.mkdir", "os.rename") and not self._is_ours(path):
            return
        self.busy = True
        self._count()
        if event == "open":
            appends = flags & os.O_APPEND and os.path.exists(path)
            self.flushed[path] = os.path.getsize(path) if appends else 0
        elif event == "os.rename":
            self._note_rename(path, str(arguments[1]))
        self.busy = False

    def _is_ours(self, path: str) -> bool:
        return os.path.abspath(path).startswith(self.root)

    def _note_rename(self, source: str, target: str) -> None:
        self.flushed[target] = self.flushed.pop(source, sys.maxsize)
        kept = None
        if os.path.isfile(target):
            self.backups.mkdir(exist_ok=True)
            kept = str(self.backups / f"{os.getpid()}-{next(self.numbers)}")
            os.link(target, kept)
        self.renames.append((source, target, kept))

    def _write(self, descriptor: int, data: bytes) -> int:
        if not self.busy and self._is_ours(os.readlink(f"/proc/self/fd/{descriptor}")):
            self._count(lambda: self.write(descriptor, data[: len(data) // 2]))
        return self.write(descriptor, data)

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not self.busy and self._is_ours(path):
            self._count()
            self.flushed[path] = os.path.getsize(path) if os.path.isfile(path) else 0
            self.renames = [one for one in self.renames if os.path.dirname(one[1]) != path]
        # The disk of a test is not waited for.

    def _count(self, last: object = None) -> None:
        (count,) = struct.unpack("q", self.counter[:8])
        self.counter[:8] = struct.pack("q", count + 1)
        if count + 1 == self.plan.operation and self.plan.request:
            os.kill(os.getpid(), self.plan.request)
        elif count + 1 == self.plan.operation:
            self.busy = True
            if callable(last):
                last()
            if self.plan.power:
                self._lose_power()
            os.kill(os.getpid(), signal.SIGKILL) if self.plan.alone else os.killpg(0, signal.SIGKILL)
            time.sleep(60)

    def _lose_power(self) -> None:
        chance = random.Random(self.plan.seed)
        for path, flushed in self.flushed.items():
            if os.path.isfile(path) and os.path.getsize(path) > flushed:
                os.truncate(path, chance.randint(flushed, os.path.getsize(path)))
        for source, target, kept in list(reversed(self.renames))[: chance.randint(0, len(self.renames))]:
            if os.path.exists(target) and not os.path.exists(source):
                os.rename(target, source)
                if kept:
                    os.rename(kept, target)


class _ForkedWorker:
    """Stands in for ``subprocess.Popen`` of a benchmark's worker: forked, so that nothing is imported again."""

    def __init__(self, command: Sequence[str], *, stdin: int, stdout, stderr, start_new_session: bool) -> None:
        from splatopt.bench import worker
        from splatopt.core.stop_signals import handled_stop_signals

        assert command[1:3] == ["-m", "splatopt.bench.worker"], command
        assert stdin == subprocess.PIPE
        assert start_new_session, "in the child it stays in the group that is killed"
        read, self.stdin = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.stdin)
            os.dup2(read, 0)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            threading.Thread(target=worker._end_with_parent, daemon=True).start()
            with handled_stop_signals():
                code = worker.main(Path(command[3]))
            sys.stderr.flush()
            os._exit(code)
        os.close(read)

    def __enter__(self) -> _ForkedWorker:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.stdin)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def run_killed(words: Sequence[str], root: Path, plan: KillPlan, trace: Path) -> Ended:
    """Run ``splatopt`` with ``words`` in a forked child.

    Args:
        words: The command.
        root: The folder whose operations count.
        plan: How the child ends.
        trace: Gets a line for each start of steps and for each checkpoint that was saved.
    """
    counter = mmap.mmap(-1, 8)
    log = trace.with_suffix(".log")
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _live(words, root, plan, trace, counter, log)
    timer = None
    if plan.seconds:
        timer = threading.Timer(plan.seconds, _kill_group, [pid])
        timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if timer:
        timer.cancel()
    said = log.read_text(errors="replace") if log.exists() else ""
    shutil.rmtree(root.parent / f"{root.name}.backups", ignore_errors=True)
    return Ended(code, struct.unpack("q", counter[:8])[0], time.monotonic() - began, said)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(group, signal.SIGKILL)


def _live(words: Sequence[str], root: Path, plan: KillPlan, trace: Path, counter: mmap.mmap, log: Path) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    code = 70
    try:
        import splatopt.bench.runner
        from splatopt.cli import main

        splatopt.bench.runner.subprocess = SimpleNamespace(Popen=_ForkedWorker, PIPE=subprocess.PIPE)
        _trace(trace)
        _Disk(root, plan, counter).install()
        code = main(list(words))
    finally:
        if code == 70:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


def _trace(path: Path) -> None:
    """Note where steps begin and what was saved, outside of what is counted."""
    import splatopt.meta.training
    import splatopt.runs.resumable
    from splatopt.meta.training import MetaTrainer
    from splatopt.runs.resumable import ResumableRun

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    write = os.write

    def note(line: str) -> None:
        write(descriptor, f"{line}\n".encode())

    take_steps, run = ResumableRun.take_steps, MetaTrainer.run
    save = splatopt.runs.resumable.save_checkpoint

    def noted_steps(self, *arguments):
        note(f"begun {self.folder.checkpoints} {self.step}")
        return take_steps(self, *arguments)

    def noted_run(self, *arguments):
        note(f"begun {self.config.out / 'checkpoints'} {self.step}")
        return run(self, *arguments)

    def noted_save(folder, checkpoint):
        saved = save(folder, checkpoint)
        note(f"saved {folder} {checkpoint.step}")
        return saved

    splatopt.meta.training._LOG_EVERY = 1
    ResumableRun.take_steps, MetaTrainer.run = noted_steps, noted_run
    splatopt.runs.resumable.save_checkpoint = splatopt.meta.training.save_checkpoint = noted_save
