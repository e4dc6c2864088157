"""What importing the lens library must not change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_WAITS = "import os, signal, time; import splatopt.data.lens; os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_process_that_reads_captures_ends_at_once_and_in_silence_when_it_is_told_to() -> None:
    ended = subprocess.run([sys.executable, "-c", _WAITS], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM
    assert ended.stderr == ""
    assert ended.stdout == ""
