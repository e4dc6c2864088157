"""Triton's interpreter, for the tests of kernels on a machine without a GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

NO_TRITON = "Triton is not installed; it comes with the extra splatopt[gpu]"


def switch_on() -> None:
    """Make Triton interpret kernels in this process, where it is installed and there is no GPU to compile for.

    Triton decides when a function is decorated, its own library included, so this comes before anything imports it
    (torch's compiler does). The environment is left as it was: no process that a test starts inherits the switch.
    """
    if find_spec("triton") is None or torch.cuda.is_available():
        return
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton import knobs
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
    propagates, knobs.propagate_env = knobs.propagate_env, False
    knobs.runtime.interpret = True
    knobs.propagate_env = propagates
