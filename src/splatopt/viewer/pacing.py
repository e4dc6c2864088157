"""How much of a run's time the page may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRAINING_SHARE = 0.02
"""Of the processor time of the run, all its threads together; what the server itself takes to send comes on top, and
both stay below 3 %.

By the time that passes, a run that gets little of a busy machine would give the page a larger share of its work.
"""


class Pace:
    """Keeps what is done for the page within a share of the time: t seconds of it are followed by t/share without.

    Safe to use from several threads.

    Attributes:
        idle: While it is set nothing is trained, and all the time is the page's.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with nothing spent.

        Args:
            share: Of the time that passes, above 0; with 1, half of it is left free.
            clock: Tells the time, seconds; processor time where that is what is shared.
        """
        self.share, self.clock, self.idle = share, clock, False
        self._lock = threading.Lock()
        self._free_at = clock()

    @property
    def is_free(self) -> bool:
        """Whether something may be done for the page now."""
        return self.idle or self.clock() >= self._free_at

    def spend(self, seconds: float) -> None:
        """Count what was done."""
        if self.idle:
            return
        with self._lock:
            self._free_at = max(self._free_at, self.clock()) + seconds / self.share

    @contextmanager
    def spending(self, meter: Callable[[], float] | None = None) -> Iterator[None]:
        """Count what the block takes.

        Args:
            meter: Tells what was taken, seconds. The pace's clock when None: right where nothing but the block runs
                meanwhile, on however many threads.
        """
        meter = meter or self.clock
        began = meter()
        try:
            yield
        finally:
            self.spend(meter() - began)
