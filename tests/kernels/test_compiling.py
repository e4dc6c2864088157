"""The kernels of losses, steps and neighbours compile as they are launched, for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

KERNELS = {
    "_windows", "_spread", "_adam", "_move_rows", "_move_coefficients", "_block_step", "_fold_blocks", "_block_form",
    "_nearest",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_launch_compiles(tmp_path):
    import triton

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
        pytest.skip("this Triton comes without NVIDIA's assembler")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiling.py"), "80"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [dict(part.split("=") for part in line.split()[1:]) for line in run.stdout.splitlines()]
    assert {line.split()[0] for line in run.stdout.splitlines()} == KERNELS
    assert len(lines) == 24, "one for each form that is launched"
    # Room for the registers that a lane's block and factor need beyond its 255.
    assert max(int(line["stack"]) for line in lines) <= 128, run.stdout
