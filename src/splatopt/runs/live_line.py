"""One line about a run in progress, on a terminal or elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from splatopt.core.checks import shown

_REFRESH_SECONDS = 0.2
_PLAIN_SECONDS = 5.0


class LiveLine:
    """One line that is kept up to date on a terminal, and printed now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``; standard error when None, so that output can be piped."""
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._shown_at = 0.0
        self._first: tuple[int, float] | None = None
        self._noted_at = time.perf_counter()

    def open(self) -> None:
        """Begin the line where there is a terminal."""
        self._noted_at = time.perf_counter()
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, auto_refresh=False)
            self._live.start()

    def close(self) -> None:
        """Leave the line as it stands."""
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line that stays."""
        self._console.print(shown(text), style=style, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show what goes on between steps, unless something was shown or began a moment ago."""
        now, pause = time.perf_counter(), _REFRESH_SECONDS if self._live else _PLAIN_SECONDS
        if now - max(self._noted_at, self._shown_at) < pause:
            return
        self._noted_at = now
        if self._live:
            self._live.update(Text(shown(text), no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.say(text)

    def restart(self) -> None:
        """Time steps from the next one on, which is shown."""
        self._first = None
        self._shown_at = 0.0

    def update(self, text: str, step: int, steps: int, left: float | None = None, goal: str = "") -> None:
        """Show ``text`` with pace and time left, unless something was shown a moment ago.

        Args:
            text: What there is to say of this step.
            step: Steps done.
            steps: Steps planned; the last is always shown.
            left: Seconds that are left, where the run knows; by the pace so far when None.
            goal: What ends there, where it is not the run.
        """
        now = time.perf_counter()
        if self._first is None:
            # Later steps are timed from here: the first one warms up.
            self._first = (step, now)
        pause = _REFRESH_SECONDS if self._live else _PLAIN_SECONDS
        if now - self._shown_at < pause and step < steps:
            return
        self._shown_at = now
        first_step, began = self._first
        if step > first_step:
            each = (now - began) / (step - first_step)
            remaining = each * (steps - step) if left is None else left
            text = f"{text}  {1000 * each:.1f} ms/step  ETA {_clock(remaining)}{goal}"
        if self._live:
            self._live.update(Text(shown(text), no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.say(text)


def _clock(seconds: float) -> str:
    """Write a duration as minutes and seconds, or with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
