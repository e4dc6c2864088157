"""Requests to stop are answered while a long call is at work, carried out after it, and in the end enforced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import splatopt
from splatopt.core import stop_signals
from splatopt.core.stop_signals import handled_stop_signals, stop_requests

# One call that lasts, lets other threads work and hears of no signal, as a step inside a native module does.
LONG_CALL = """
import hashlib, os, signal, sys, time
from splatopt.core import stop_signals
where, rounds, stop_signals.PATIENCE_SECONDS = sys.argv[1], int(float(sys.argv[2])), float(sys.argv[3])
noted = []
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have been begun by nohup
if where == "nohup":
    where = "steps"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
def work():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
with stop_signals.handled_stop_signals(), \
stop_signals.resume_hint(lambda: "step-000004 is kept; go on with: it --resume"):
    if where == "steps":
        with stop_signals.stop_requests(noted):
            work()
    else:
        work()
print("noted", noted, flush=True)
"""
FOR_EVER = "1e9"
AWHILE = "5e6"


@contextmanager
def working(where: str, rounds: str, patience: str = "60") -> Iterator[subprocess.Popen]:
    source = Path(splatopt.__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL, where, rounds, patience],
        env=os.environ | {"PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_is_answered_in_a_long_call_and_carried_out_after_it(number):
    with working("steps", AWHILE) as process:
        process.send_signal(number)
        assert process.stderr.readline() == "splatopt: stopping after the step at hand; once more to end at once\n"
        assert process.poll() is None, "the call was still at work"
        said, error = process.communicate(timeout=120)
    assert (process.returncode, said, error) == (0, f"noted [{int(number)}]\n", "")


def test_what_does_not_stop_is_ended_and_says_what_is_kept():
    with working("steps", FOR_EVER, patience="0.3") as process:
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[1:] == [
        "splatopt: ended in the middle of its work, 0.3 s after it was asked to stop; step-000004 is kept; go on with: "
        "it --resume"
    ]


def test_a_second_request_ends_at_once():
    with working("steps", FOR_EVER) as process:
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "splatopt: ended at once; step-000004 is kept; go on with: it --resume\n"


def test_outside_of_steps_a_request_ends_at_once():
    with working("elsewhere", FOR_EVER) as process:
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "splatopt: stopped; step-000004 is kept; go on with: it --resume\n"


def test_the_end_of_a_terminal_is_ignored_where_it_was_ignored_at_the_start():
    with working("nohup", AWHILE) as process:
        process.send_signal(signal.SIGHUP)
        said, error = process.communicate(timeout=120)
    assert (process.returncode, said, error) == (0, "noted []\n", "")


def test_handlers_and_wakeup_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with handled_stop_signals(), handled_stop_signals(), stop_requests([]):
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1


def test_a_forked_process_is_ended_alone():
    with handled_stop_signals():
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        time.sleep(0.1)


def test_without_an_answer_a_second_request_raises():
    noted = []
    with pytest.raises(KeyboardInterrupt), stop_requests(noted):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGINT]


def test_what_was_noted_before_the_thread_looked_ends_nothing(monkeypatch):
    """The last step may be over by the time that the thread reads of the request: it has been carried out."""
    ended, noted, read, late = [], [], os.read, threading.Event()
    monkeypatch.setattr(stop_signals._SignalThread, "_end", lambda _, how: ended.append(how))
    monkeypatch.setattr(os, "read", lambda *given: late.wait(30) and read(*given))
    with handled_stop_signals():
        with stop_requests(noted):
            os.kill(os.getpid(), signal.SIGINT)
        late.set()
    assert noted == [signal.SIGINT]
    assert ended == []
