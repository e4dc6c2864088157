"""Without what only POSIX systems have: simulated here, by hiding it before the package is imported."""

from __future__ import annotations

import subprocess
import sys

from train.toys import make_toy_capture

WITHOUT = """
import sys
import filelock, psutil, pycolmap, torch  # these may use what they like
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
import os, signal
hidden = {os: ("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "pipe2", "register_at_fork",
               "sched_getaffinity", "sysconf"),
          signal: ("SIGHUP", "pthread_sigmask")}
for module, names in hidden.items():
    for name in names:
        delattr(module, name)

from pathlib import Path
import splatopt, splatopt.cli
capture, folder = map(Path, sys.argv[1:])
print("help ends with", splatopt.cli.main(["--help"]))

from splatopt.core.checks import InputError
from splatopt.core.devices import free_memory
from splatopt.core.files import locked
from splatopt.runs.memory import resident_megabytes
print("views", len(splatopt.load_capture(capture).cameras) > 0)
print("memory", free_memory(torch.device("cpu")) > 0, resident_megabytes() > 1)
with locked(folder, "it"):
    try:
        with locked(folder, "it"):
            print("held twice")
    except InputError as error:
        print(error)
with locked(folder, "it"):
    print("free again")
"""


def test_the_package_helps_reads_and_locks_without_them(tmp_path):
    capture = make_toy_capture(tmp_path / "toy", width=24, height=16, points=20)
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    words = [sys.executable, "-c", WITHOUT, str(capture), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *help_lines, ended, views, memory, refused, free = done.stdout.splitlines()
    assert any(line.split()[:1] == ["train"] for line in help_lines)
    assert (ended, views, memory, free) == ("help ends with 0", "views True", "memory True True", "free again")
    assert "another process is at work on it" in refused
    # A file beside the folder is what is locked there.
    assert sorted(path.name for path in folder.parent.iterdir()) == [".first.lock", "first"]
    assert list(folder.iterdir()) == []
