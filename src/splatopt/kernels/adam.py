"""Adam on the GPU: one launch for a whole cloud, each number read and written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton.language as tl
from torch import Tensor
from triton import cdiv

from splatopt.kernels.jit import jit

BLOCK = 1024
"""Numbers that a program takes; eight for each thread of four warps, two vectors of 16 bytes."""


class AdamGroup(NamedTuple):
    """One tensor, what Adam keeps of it, and its rate; all four tensors in one shape.

    Attributes:
        parameter: θ.
        gradient: g.
        exp_avg: m.
        exp_avg_sq: v.
        rate: Learning rate.
    """

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rate: float


@jit
def adam_change(gradient, exp_avg, exp_avg_sq, step_size, decay1, beta2, decay2, root, epsilon):
    """Return the step that is taken away, m and v; the operations in the order of ``torch.optim.Adam``."""
    exp_avg += (gradient - exp_avg) * decay1
    exp_avg_sq = beta2 * exp_avg_sq + decay2 * gradient * gradient
    below = tl.div_rn(tl.sqrt_rn(exp_avg_sq), root) + epsilon
    return step_size * tl.div_rn(exp_avg, below), exp_avg, exp_avg_sq


@jit
def _adam(
    parameters, gradients, exp_avgs, exp_avg_sqs, counts, blocks, step_sizes, decay1, beta2, decay2, root, epsilon,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Group g is of the ``blocks[g]`` programs that follow those of the groups before."""
    program = tl.program_id(0)
    begin = 0
    for group in tl.static_range(GROUPS):
        if (program >= begin) & (program < begin + blocks[group]):
            at = (program - begin).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = at < counts[group]
            change, exp_avg, exp_avg_sq = adam_change(
                tl.load(gradients[group] + at, mask=inside), tl.load(exp_avgs[group] + at, mask=inside),
                tl.load(exp_avg_sqs[group] + at, mask=inside),
                step_sizes[group], decay1, beta2, decay2, root, epsilon,
            )  # fmt: skip
            value = tl.load(parameters[group] + at, mask=inside)
            tl.store(parameters[group] + at, value - change, mask=inside)
            tl.store(exp_avgs[group] + at, exp_avg, mask=inside)
            tl.store(exp_avg_sqs[group] + at, exp_avg_sq, mask=inside)
        begin += blocks[group]


def adam_step(groups: Sequence[AdamGroup], *, beta1: float, beta2: float, epsilon: float, step: int) -> None:
    """Take one Adam step in place on contiguous float32 tensors of one device.

    With t = ``step`` counted from 1: m ← m + (1-β₁)(g-m), v ← β₂v + (1-β₂)g²,
    θ ← θ - rate/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε).
    """
    moved = [group for group in groups if group.parameter.numel()]
    if not moved:
        return
    counts = tuple(group.parameter.numel() for group in moved)
    blocks = tuple(cdiv(count, BLOCK) for count in counts)
    _adam[(sum(blocks),)](
        *(tuple(group[kind] for group in moved) for kind in range(4)), counts, blocks,
        tuple(group.rate / (1 - beta1**step) for group in moved),
        1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, epsilon, GROUPS=len(moved), BLOCK=BLOCK,
    )  # fmt: skip
