"""The native module: its committed stub, its threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import splatopt
from splatopt.core import native
from splatopt.core.checks import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason="the native module is not built")


def test_the_committed_stub_is_the_generated_one(tmp_path: Path) -> None:
    made = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "splatopt._native", "-o", str(made)]
    subprocess.run(command, check=True)
    committed = Path(splatopt.__file__).parent / "_native.pyi"
    # To renew it: python -m nanobind.stubgen -m splatopt._native -o src/splatopt/_native.pyi
    assert made.read_text() == committed.read_text()


def test_one_pool_serves_all_who_ask_for_the_same_threads() -> None:
    assert native.workers() is native.workers(native.default_threads(), "auto")
    assert native.workers(3).threads == 3


def test_impossible_threads_and_instruction_sets_are_refused() -> None:
    with pytest.raises(InputError, match="1 to 1024"):
        native.workers(5000)
    with pytest.raises(InputError, match="mmx"):
        native.workers(1, "mmx")


def test_a_forked_child_computes_what_its_parent_does() -> None:
    """Threads do not follow a fork: passes there run on the caller alone, in place of waiting for ever."""
    code = """
import os, signal
import torch
from splatopt.core import native

def step():
    one = [torch.ones(1 << 17) for _ in range(4)]
    native.workers(2).adam_step(*one, rate=0.1, beta1=0.9, beta2=0.999, epsilon=1e-8, step=1)
    return one[0]

expected = step()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(step(), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(step(), expected)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
