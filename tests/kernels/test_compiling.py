"""The kernels compile as they are launched, for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

RENDERING = {
    "project_kernel", "rows_kernel", "spans_kernel", "entries_kernel", "blend_kernel", "blend_backward_kernel",
    "sum_pairs_kernel", "project_backward_kernel", "project_jvp_kernel", "blend_jvp_kernel", "blend_moments_kernel",
    "diagonal_kernel", "blocks_kernel", "blend_statistics_kernel", "project_cross_kernel", "observe_kernel",
}  # fmt: skip
LAUNCHED = {
    "_windows", "_spread", "_adam", "_move_rows", "_move_coefficients", "_block_step", "_fold_blocks", "_block_form",
    "_nearest",
}  # fmt: skip
MAX_STACK = {"_block_step": 128}
"""Bytes a thread that a lane's block and factor need beyond its 255 registers; others spill 64 at most."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("capability", "which", "kernels", "forms"),
    [("75", "rendering", RENDERING, 16), ("80", "launched", LAUNCHED, 25), ("90", "all", RENDERING | LAUNCHED, 41)],
    ids=["75", "80", "90"],
)
def test_every_kernel_compiles_and_hardly_spills(capability, which, kernels, forms, tmp_path):
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "ptxas").is_file() or not (tools / "cuobjdump").is_file():
        pytest.skip("this Triton comes without NVIDIA's assembler")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiling.py"), capability, which],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = [(line.split()[0], line.split()[1:]) for line in run.stdout.splitlines()]
    assert {name for name, _ in found} == kernels
    assert len(found) == forms, "one line for each form"
    for name, parts in found:
        used = {key: int(value) for key, value in (part.split("=") for part in parts)}
        assert used["registers"] <= 255, name
        assert used["stack"] <= MAX_STACK.get(name, 64), f"{name} spills {used['stack']} bytes a thread"
        assert used["shared"] <= 48 * 1024, name
