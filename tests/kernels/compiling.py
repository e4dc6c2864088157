"""Compile kernels for a GPU that is not there: to its machine code, without a launch; run as a program of its own.

    python tests/kernels/compiling.py 90 all          # NVIDIA's compute capability 9.0
    python tests/kernels/compiling.py 70 rendering    # the widest form of each kernel of rendering
    python tests/kernels/compiling.py 80 launched     # losses, steps and neighbours, in every form that is launched

prints a line for each kernel that was compiled: its name, its registers a thread, the bytes of its stack (spilled
registers), local and shared memory. The interpreter runs what the compiler refuses (a global that is no constexpr, an
annotation that it cannot read), so both must be tried. The machine code is of the pinned Triton; whoever has a GPU runs
the tests themselves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from splatopt.core.schema import GaussianTensors
from splatopt.kernels import (
    blend,
    blend_backward,
    blend_moments,
    curvature,
    projection,
    projection_backward,
    statistics,
    tangent,
)
from splatopt.kernels import tiles as tile_lists

INTEGERS = {"row_first", "row_count", "row_begin", "gaussians", "rows", "first", "count", "begin", "owners", "slots"}
INTEGERS |= {"tile_begin", "last", "slot_begin", "slot_count"}
PARAMETER_TYPES = {"view": "*fp64", "order": "*i64", "keys": "*i16", "N": "i32", "R": "i32", "tiles_x": "i32"}
DEGREE_3 = {"K": 15, "BANDS": 15, "ANTIALIASED": True}
TILE = {"TILE_SIZE": projection.TILE}

RENDERING = [
    (projection.project_kernel, {**DEGREE_3, **TILE, "BLOCK": projection.ROWS}, 4),
    (tile_lists.rows_kernel, {"BLOCK": projection.ROWS}, 4),
    (tile_lists.spans_kernel, {**TILE, "BLOCK": projection.ROWS}, 4),
    (tile_lists.entries_kernel, {"BLOCK": projection.ROWS}, 4),
    (blend.blend_kernel, {**TILE, "WITH_DEPTH": True, "BATCH_SIZE": blend.BATCH}, blend.WARPS),
    (
        blend_backward.blend_backward_kernel,
        {**TILE, "ABSOLUTE_TOO": True, "BATCH_SIZE": blend_backward.BATCH},
        blend_backward.WARPS,
    ),
    (
        blend_backward.sum_pairs_kernel,
        {"GREATEST": False, "FIELDS": 36, "BLOCK": blend_backward.SUM_ROWS, "TOGETHER": blend_backward.SUM_PAIRS},
        4,
    ),
    (
        projection_backward.project_backward_kernel,
        {**DEGREE_3, "SUMS": 9, "OVERWRITE": True, "BLOCK": projection.ROWS},
        4,
    ),
    (tangent.project_jvp_kernel, {**DEGREE_3, "BLOCK": projection.ROWS}, 4),
    (tangent.blend_jvp_kernel, {**TILE, "BATCH_SIZE": tangent.BATCH}, tangent.WARPS),
    (
        blend_moments.blend_moments_kernel,
        {**TILE, "CROSS": True, "BATCH_SIZE": blend_moments.BATCH},
        blend_moments.WARPS,
    ),
    (curvature.diagonal_kernel, {**DEGREE_3, "CROSS": True, "OVERWRITE": True, "BLOCK": curvature.DIAGONAL_ROWS}, 4),
    (
        statistics.blend_statistics_kernel,
        {**TILE, "CROSS": True, "BATCH_SIZE": statistics.BATCH},
        statistics.WARPS,
    ),
    (statistics.project_cross_kernel, {"OVERWRITE": True, "BLOCK": projection.ROWS}, 4),
    (statistics.observe_kernel, {"ABSOLUTE_TOO": True, "SPLITTING_TOO": True, "BLOCK": projection.ROWS}, 4),
    (curvature.blocks_kernel, {**DEGREE_3, "OVERWRITE": True, "BLOCK": curvature.BLOCK_ROWS}, 4),
]
"""Kernels of rendering, whose launches read what other kernels wrote, in their widest forms, and their warps."""


class DescribedDriver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> str:
    """Registers, spilled and shared bytes, as the assembler's own tool reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", listing))
    return f"registers={found['REG']} stack={found['STACK']} local={found['LOCAL']}"


def note(kernel: triton.compiler.CompiledKernel) -> None:
    """Print one kernel's line."""
    print(f"{kernel.metadata.name} {resources(kernel.asm['cubin'])} shared={kernel.metadata.shared}", flush=True)


def compile_rendering(capability: int) -> None:
    """Compile the kernels of rendering, each in its widest form."""
    for kernel, constants, warps in RENDERING:
        names = kernel.arg_names
        types = {name: PARAMETER_TYPES.get(name, "*i32" if name in INTEGERS else "*fp32") for name in names}
        source = ASTSource(kernel, {**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        note(triton.compile(source, target, {"num_warps": warps, "enable_fp_fusion": True}))


def compile_only(capability: int) -> None:
    """Let every launch compile and print what it took, and nothing run."""
    triton.runtime.driver.set_active(DescribedDriver(capability))
    compiled = triton.compiler.compile

    def noted(source: object, *args: object, **kwargs: object) -> object:
        kernel = compiled(source, *args, **kwargs)
        note(kernel)
        return kernel

    triton.compiler.compile = noted
    triton.runtime.jit.KernelInterface.__getitem__ = lambda self, grid: (
        lambda *args, **kwargs: self.run(*args, grid=grid, warmup=True, **kwargs)
    )


def launch_all() -> None:
    """Launch every kernel of losses, steps and neighbours once in each of its forms."""
    from splatopt.kernels import adam, block_step, hellinger, loss, neighbours, trust_region

    image, target = torch.rand(24, 32, 3), torch.zeros(24, 32, 3, dtype=torch.uint8)
    window = loss.SsimWindow((1 / 11,) * 11, 1e-4, 9e-4)
    slopes = loss.ResidualSlopes(1.0, 1.0, 0.1, 0.1)
    loss.photometric_loss(image, target, (0.8, 0.2), window)
    loss.photometric_loss(image, target, (0.8, 0.2), window, image)
    loss.residuals(image, target, slopes, window)
    loss.residual_jvp(image, target, image, slopes, window)
    loss.residual_vjp(image, target, torch.rand(2, 24, 32, 3), slopes, window)
    loss.residual_weights(image, target, slopes, window)

    rows = 160
    cloud = GaussianTensors(
        *(torch.rand(rows, *shape) for shape in [(3,), (3,), (4,), (), (3,), (15, 3)])
    )  # fmt: skip
    adam.adam_step(
        [adam.AdamGroup(value, value, value, value, 0.1) for value in cloud],
        beta1=0.9, beta2=0.999, epsilon=1e-15, step=1,
    )  # fmt: skip
    for conditional in (False, True):
        numbers = dict.fromkeys(hellinger.TrustBounds._fields, 0.1)
        bounds = hellinger.TrustBounds(**numbers | {"conditional_variance": conditional})
        trust_region.sign_step(bounds, cloud, cloud, cloud, decay=0.9)
    trust_region.adam_clipped_step(
        bounds, cloud, cloud, cloud, cloud, rates=[0.1] * 6, beta1=0.9, beta2=0.999, epsilon=1e-15, step=1
    )
    trust_region.curvature_step(bounds, cloud, cloud, cloud, cloud, decay=0.9, factor=1.0, damping=[0.1] * 6)
    for seen in (None, torch.ones(rows, dtype=torch.bool)):
        for measure_only in (False, True):
            block_step.block_step(
                bounds, cloud, cloud, cloud, torch.rand(10, 105, 16), seen, cloud.logit_opacities,
                decay=0.9, correction=1.0, scale=1.0, damping=0.1, factorisations=2, measure_only=measure_only,
            )  # fmt: skip
    block_step.fold_blocks(torch.rand(10, 105, 16), torch.rand(rows, 105), cloud.logit_opacities)
    block_step.block_form(torch.rand(rows, 105), cloud)
    for count in (3, 64):
        neighbours.nearest_neighbours(cloud.means, count)


if __name__ == "__main__":
    if sys.argv[2] in ("all", "rendering"):
        compile_rendering(int(sys.argv[1]))
    if sys.argv[2] in ("all", "launched"):
        compile_only(int(sys.argv[1]))
        launch_all()
