"""Compile kernels for a GPU that is not there: to its machine code, as their callers launch them, without a launch.

    python tests/kernels/compiling.py 90    # NVIDIA's compute capability 9.0

prints a line for each kernel that was compiled: its name, its registers a thread, the bytes of its stack (spilled
registers), local and shared memory, and the processor time that compiling took (less where Triton's cache has it; the
assembler's own is not in it). The machine code is of the pinned Triton; whoever has a GPU runs the tests themselves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget


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


def compile_only(capability: int) -> None:
    """Let every launch compile and print what it took, and nothing run."""
    triton.runtime.driver.set_active(DescribedDriver(capability))
    compiled = triton.compiler.compile

    def noted(source: object, *args: object, **kwargs: object) -> object:
        began = time.process_time()
        kernel = compiled(source, *args, **kwargs)
        seconds = time.process_time() - began
        used = f"{resources(kernel.asm['cubin'])} shared={kernel.metadata.shared}"
        print(f"{kernel.metadata.name} {used} seconds={seconds:.1f}", flush=True)
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
    loss.photometric_loss(image, target, 0.2, window)
    loss.photometric_loss(image, target, 0.2, window, image)
    loss.residuals(image, target, slopes, window)
    loss.residual_jvp(image, target, image, slopes, window)
    loss.residual_vjp(image, target, torch.rand(2, 24, 32, 3), slopes, window)
    loss.residual_weights(image, target, slopes, window)

    rows = 160
    cloud = hellinger.Cloud(
        *(torch.rand(rows, *shape) for shape in [(3,), (3,), (4,), (), (3,), (15, 3)])
    )  # fmt: skip
    adam.adam_step(
        [adam.AdamGroup(value, value, value, value, 0.1) for value in cloud],
        beta1=0.9, beta2=0.999, epsilon=1e-15, step=1,
    )  # fmt: skip
    for conditional in (False, True):
        bounds = hellinger.TrustBounds(*(0.1,) * 10, conditional)
        trust_region.sign_step(bounds, cloud, cloud, cloud, decay=0.9)
    trust_region.adam_clipped_step(
        bounds, cloud, cloud, cloud, cloud, rates=[0.1] * 6, beta1=0.9, beta2=0.999, epsilon=1e-15, step=1
    )
    trust_region.curvature_step(bounds, cloud, cloud, cloud, cloud, decay=0.9, factor=1.0, damping=[0.1] * 6)
    for seen in (None, torch.ones(rows, dtype=torch.bool)):
        for measure_only in (False, True):
            block_step.block_step(
                bounds, cloud, cloud, cloud, torch.rand(10, 105, 16), cloud.sh_rest, seen, cloud.logit_opacities,
                decay=0.9, correction=1.0, scale=1.0, damping=0.1, factorisations=2, measure_only=measure_only,
            )  # fmt: skip
    block_step.fold_blocks(torch.rand(10, 105, 16), torch.rand(rows, 105), cloud.logit_opacities)
    block_step.block_form(torch.rand(rows, 105), cloud)
    for count in (3, 16):
        neighbours.nearest_neighbours(cloud.means, count)


if __name__ == "__main__":
    compile_only(int(sys.argv[1]))
    launch_all()
