"""Compiles every kernel of the render passes for a GPU that need not be here; run as a program of its own.

The interpreter runs what the compiler refuses (a global that is no constexpr, an annotation that it cannot read), so
both must be tried. ``python compile_for.py 90`` prints for each kernel registers, bytes of stack and of shared memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from splatopt.kernels import blend, blend_backward, blend_moments, curvature, projection, projection_backward, tangent
from splatopt.kernels import tiles as tile_lists

INTEGERS = {"row_first", "row_count", "row_begin", "gaussians", "rows", "first", "count", "begin", "owners", "slots"}
INTEGERS |= {"tile_begin", "last", "slot_begin", "slot_count"}
TYPES = {"view": "*fp64", "order": "*i64", "keys": "*i16", "N": "i32", "R": "i32", "tiles_x": "i32"}
DEGREE_3 = {"K": 15, "BANDS": 15, "ANTIALIASED": True}
TILE = {"TILE_SIZE": projection.TILE}

KERNELS = [
    (projection.project_kernel, {**DEGREE_3, **TILE, "BLOCK": projection.ROWS}, 4),
    (tile_lists.rows_kernel, {"BLOCK": projection.ROWS}, 4),
    (tile_lists.spans_kernel, {**TILE, "BLOCK": projection.ROWS}, 4),
    (tile_lists.entries_kernel, {"BLOCK": projection.ROWS}, 4),
    (blend.blend_kernel, {**TILE, "WITH_DEPTH": True, "BATCH_SIZE": blend.BATCH}, blend.WARPS),
    (blend_backward.blend_backward_kernel, {**TILE, "BATCH_SIZE": blend_backward.BATCH}, blend_backward.WARPS),
    (
        blend_backward.sum_pairs_kernel,
        {"FIELDS": 9, "BLOCK": blend_backward.SUM_ROWS, "TOGETHER": blend_backward.SUM_PAIRS},
        4,
    ),
    (projection_backward.project_backward_kernel, {**DEGREE_3, "OVERWRITE": True, "BLOCK": projection.ROWS}, 4),
    (tangent.project_jvp_kernel, {**DEGREE_3, "BLOCK": projection.ROWS}, 4),
    (tangent.blend_jvp_kernel, {**TILE, "BATCH_SIZE": tangent.BATCH}, tangent.WARPS),
    (
        blend_moments.blend_moments_kernel,
        {**TILE, "CROSS": True, "BATCH_SIZE": blend_moments.BATCH},
        blend_moments.WARPS,
    ),
    (curvature.diagonal_kernel, {**DEGREE_3, "CROSS": True, "OVERWRITE": True, "BLOCK": curvature.DIAGONAL_ROWS}, 4),
    (curvature.blocks_kernel, {**DEGREE_3, "OVERWRITE": True, "BLOCK": curvature.BLOCK_ROWS}, 4),
]


def usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and bytes of shared memory of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", listing.stdout)
    assert found is not None
    registers, stack, shared = (int(number) for number in found.groups())
    return registers, stack, shared


def main() -> None:
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for kernel, constants, warps in KERNELS:
        names = kernel.arg_names
        types = {name: TYPES.get(name, "*i32" if name in INTEGERS else "*fp32") for name in names}
        source = ASTSource(kernel, {**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
        compiled = triton.compile(source, target, {"num_warps": warps, "enable_fp_fusion": True})
        print(kernel.__name__, *usage(compiled.asm["cubin"]), flush=True)


if __name__ == "__main__":
    main()
