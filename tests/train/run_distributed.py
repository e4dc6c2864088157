"""``splatopt`` in one of several processes, with a word before the command that says what goes wrong in it.

``fine`` nothing; ``version`` the second process has another version; ``dies`` the second process is killed at its
20th gradient; ``hangs`` it stops answering there.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from splatopt.core import version

if __name__ == "__main__":
    how, words = sys.argv[1], sys.argv[2:]
    is_second = os.environ.get("RANK") == "1"
    if how == "version" and is_second:
        version.__version__ = "9.9.9"

    from splatopt.cli import main
    from splatopt.raster.cpu import NativeRenderer

    if how in ("dies", "hangs") and is_second:
        original, calls = NativeRenderer.accumulate_gradient, []

        def fails(self, *arguments, **more):
            calls.append(1)
            if len(calls) == 20:
                if how == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            return original(self, *arguments, **more)

        NativeRenderer.accumulate_gradient = fails
    sys.exit(main(words))
