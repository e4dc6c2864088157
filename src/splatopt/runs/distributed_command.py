"""The command line in one of several processes: each sentence is said once, and nobody is ended before it is said."""

from __future__ import annotations

import contextlib
import hashlib
import io
import signal
import threading
import time
from collections.abc import Callable

from splatopt.core.checks import InputError
from splatopt.core.processes import Launch, Processes, ReportedElsewhereError
from splatopt.runs.resumable import InterruptedRunError, LostRunError, NonFiniteError

_PATIENCE_SECONDS = 30.0


def quietly(command: Callable[[Callable[[], None]], int], launch: Launch) -> int:
    """Run a command; of all processes the first one alone prints.

    What is wrong with the words of a command is wrong in all processes. The first says it, and whoever launched the
    others ends them then; ending sooner, they would have it ended before it spoke.

    Args:
        command: Returns its exit code; is handed a function to call when it has read its words.
        launch: Which process this is.
    """
    has_begun: list[bool] = []
    if launch.rank == 0:
        return command(lambda: None)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = command(lambda: has_begun.append(True))
        except InputError:
            if not has_begun:
                _await_the_end()
            raise
        if code and not has_begun:
            _await_the_end()
        return code


def _await_the_end() -> None:
    """Give the first process time to speak; whoever launched us ends us then, which leaves no trace."""
    _on_termination(signal.SIG_DFL)
    time.sleep(_PATIENCE_SECONDS)


def _on_termination(what: signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, what)


def part_ways(error: BaseException, processes: Processes) -> int | None:
    """Return the exit code with which this process ends in silence, or None where it is to say ``error``.

    Args:
        error: Why the run ends.
        processes: Those that share it.
    """
    if processes.world_size == 1:
        return None
    ends_all = isinstance(error, ReportedElsewhereError | InterruptedRunError | NonFiniteError)
    if ends_all and not processes.is_first:
        _on_termination(signal.SIG_DFL)
        processes.follow()
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    if isinstance(error, LostRunError):
        # Whoever launched us ends us for the one that was lost; the sentence comes first.
        _on_termination(signal.SIG_IGN)
    said = "lost" if isinstance(error, LostRunError) else hashlib.sha256(str(error).encode()).hexdigest()
    return None if processes.claim_report(said) else 2
