"""The kernels compile for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", ["75", "90"])
def test_every_kernel_compiles_without_spilling_much(capability: str):
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    if not (tools / "ptxas").is_file() or not (tools / "cuobjdump").is_file():
        pytest.skip("this Triton comes without NVIDIA's assembler")
    script = Path(__file__).with_name("compile_for.py")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, script, capability]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 13
    for name, registers, stack, shared in lines:
        assert int(registers) <= 255, name
        assert int(stack) <= 64, f"{name} spills {stack} bytes a thread"
        assert int(shared) <= 48 * 1024, name
