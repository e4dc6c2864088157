"""Requests to stop: Ctrl-C, SIGTERM and a terminal that goes away are answered at once, and carried out when it suits.

Python's own handlers wait for the call at hand, which may be minutes of native code. What answers here is a thread: the
interpreter writes the number of each signal into a pipe, at once, and the thread reads there. So a request is answered
in the middle of a long call; and where the work does not stop in time, the thread ends the process.

Two places take part. :func:`handled_stop_signals` is around a whole command. Without more, a request ends the process
at once, as a kill would: whatever is written is whole or not there. :func:`stop_requests` is around steps that are
worth keeping: a request is noted, and whoever takes the steps looks at the note after each.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

ENDED = 130
"""Exit code of what was asked to stop, by whichever signal."""

PATIENCE_SECONDS = 30.0
"""Time for the step at hand, and for keeping its result."""

_HANG_UP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if _HANG_UP else []))
_SHOW_CURSOR = "\x1b[?25h\n"
_STOPPING = "stopping after the step at hand"

_signal_thread: _SignalThread | None = None


class _SignalThread:
    """What answers the requests to this process."""

    def __init__(self, patient: bool) -> None:
        """Begin; the main thread calls this.

        Args:
            patient: Whether a second request is the first one once more, sent on by whoever launched us.
        """
        self.patient = patient
        self.note: Callable[[int], None] | None = None
        self.answer = _STOPPING
        self.noted = 0
        self.resume_hints: list[Callable[[], str]] = []
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self.read, self.write = os.pipe()
        for end in (self.read, self.write):
            os.set_blocking(end, False)
        self.handlers = {number: signal.signal(number, self._handle) for number in _taken()}
        self.wakeup = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._watch, daemon=True, name="requests to stop")
        self.thread.start()

    def close(self, for_good: bool) -> None:
        """Have signals do what they did before; where nothing follows, end the process without a word."""
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.handlers.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if for_good else handler)
        os.close(self.write)
        self.thread.join()
        os.close(self.read)

    def _handle(self, number: int, _frame: object) -> None:
        if self.note is not None:
            self.noted += 1
            self.note(number)

    # ------------------------------------------------------------------ in the thread

    def _watch(self) -> None:
        """Answer each request; the end of the pipe is the end of the work."""
        # They are to interrupt what the main thread waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        deadline: float | None = None
        taken = 0
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.read], [], [], left)[0]:
                self._end(f"ended in the middle of its work, {PATIENCE_SECONDS:g} s after it was asked to stop")
            numbers = os.read(self.read, 64)
            if not numbers:
                return
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                if number == _HANG_UP:
                    self._let_go_of_terminal()
                # The main thread may have noted it, and finished its step, before we got to read.
                if self.note is None and self.noted <= taken:
                    self._end("stopped")
                taken += 1
                if deadline is None:
                    deadline = time.monotonic() + PATIENCE_SECONDS
                    if self.note is not None:
                        _say(f"{self.answer}; once more to end at once")
                elif not self.patient:
                    self._end("ended at once")

    def _let_go_of_terminal(self) -> None:
        """Write nothing more to a terminal that is gone: each try would fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        for descriptor in self.terminals:
            os.dup2(nowhere, descriptor)

    def _end(self, how: str) -> NoReturn:
        """End the process, whatever it does."""
        sentence = how
        if self.resume_hints:
            with contextlib.suppress(OSError):
                sentence += f"; {self.resume_hints[-1]()}"
        _say(sentence)
        # Whoever holds the stream's lock may wait for ever.
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(0.5)
        os._exit(ENDED)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


def _say(sentence: str) -> None:
    """Write a line to standard error, past its buffers; nowhere where it leads nowhere or is full."""
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        descriptor = sys.stderr.fileno()
        start = _SHOW_CURSOR if os.isatty(descriptor) else ""
        if select.select([], [descriptor], [], 0.5)[1]:
            os.write(descriptor, f"{start}splatopt: {' '.join(sentence.split())}\n".encode(errors="replace"))


def _taken() -> list[signal.Signals]:
    """Signals that are requests to us: whoever started us with nohup wants the end of the terminal ignored."""
    return [number for number in _SIGNALS if number != _HANG_UP or signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def handled_stop_signals(*, patient: bool = False, for_good: bool = False) -> Iterator[None]:
    """Answer requests to stop until the block is done; the process may end before, with the code ENDED.

    Args:
        patient: Whether a second request is the first one once more, sent on by whoever launched us.
        for_good: Whether nothing follows the block but the process's end.
    """
    global _signal_thread  # noqa: PLW0603 - signals are the process's
    # Elsewhere than on POSIX systems no thread can wait for a pipe; there Ctrl-C is Python's own.
    answers = hasattr(signal, "pthread_sigmask") and _signal_thread is None
    if not answers or threading.current_thread() is not threading.main_thread():
        yield
        return
    _signal_thread = _SignalThread(patient)
    try:
        yield
    finally:
        _signal_thread.close(for_good)
        _signal_thread = None


@contextlib.contextmanager
def resume_hint(words: Callable[[], str]) -> Iterator[None]:
    """Have whatever ends the process in the block say ``words()``: what is kept, and how to go on."""
    if _signal_thread is None:
        yield
        return
    resume_hints = _signal_thread.resume_hints
    resume_hints.append(words)
    try:
        yield
    finally:
        resume_hints.remove(words)


@contextlib.contextmanager
def stop_requests(
    requested: list[int], then: Callable[[], None] | None = None, answer: str = _STOPPING
) -> Iterator[None]:
    """Note requests to stop in ``requested``, so that no step is torn.

    Outside of :func:`handled_stop_signals`, a second request raises KeyboardInterrupt, and nothing is said.

    Args:
        requested: Takes the signals' numbers.
        then: Called after each note, by the main thread; a second request raises nothing then.
        answer: Said at the first request: what happens now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int) -> None:
        if requested and then is None and _signal_thread is None:
            raise KeyboardInterrupt
        requested.append(number)
        if then is not None:
            then()

    if _signal_thread is not None:
        before = _signal_thread.note, _signal_thread.answer
        _signal_thread.note, _signal_thread.answer = note, answer
        try:
            yield
        finally:
            if _signal_thread is not None:
                _signal_thread.note, _signal_thread.answer = before
        return
    previous = {number: signal.signal(number, lambda number, _: note(number)) for number in _taken()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_masks = threading.local()


def _before_fork() -> None:
    """Hold signals back: one to the child would be taken for one to us, as long as the pipe is shared."""
    _masks.kept = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork_here() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.kept)


def _after_fork_in_child() -> None:
    """Have signals do what they do by default."""
    global _signal_thread  # noqa: PLW0603 - signals are the process's
    if _signal_thread is not None:
        signal.set_wakeup_fd(-1)
        for number in _signal_thread.handlers:
            signal.signal(number, signal.SIG_DFL)
        os.close(_signal_thread.read)
        os.close(_signal_thread.write)
        _signal_thread = None
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.kept)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_here, after_in_child=_after_fork_in_child)
