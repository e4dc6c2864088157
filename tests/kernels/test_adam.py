"""Adam's kernel against the same step in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.interpreter import NO_TRITON

pytest.importorskip("triton", reason=NO_TRITON)

from splatopt.kernels import adam
from splatopt.optim.first_order import AdamOptions
from splatopt.optim.parts.adam import adam_update

SHAPES = [(7, 3), (7, 0, 3), (7,), (40, 15, 3)]
RATES = [1e-2, 1.0, 3e-3, 2e-4]


def drawn(seed: int) -> list[torch.Tensor]:
    """One tensor of each shape, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator) * torch.exp(6 * torch.randn(shape, generator=generator))
        for shape in SHAPES
    ]


def after(device: torch.device, steps: list[int], factor: float = 1.0, **options: float) -> tuple[list, list]:
    """Parameters and both means after some steps, from the kernel, its rates times a factor, and in float64."""
    chosen = AdamOptions(**options)
    start, exact = [value.to(device) for value in drawn(0)], [value.double() for value in drawn(0)]
    kept = [[torch.zeros_like(value) for value in start] for _ in range(2)]
    expected = [[torch.zeros_like(value) for value in exact] for _ in range(2)]
    for step in steps:
        gradient = drawn(step)
        groups = [
            adam.AdamGroup(value, g.to(device), *means, factor * rate)
            for value, g, *means, rate in zip(start, gradient, *kept, RATES, strict=True)
        ]
        adam.adam_step(groups, beta1=chosen.beta1, beta2=chosen.beta2, epsilon=chosen.epsilon, step=step)
        for value, g, *means, rate in zip(exact, gradient, *expected, RATES, strict=True):
            adam_update(value, g.double(), *means, rate=rate, step=step, options=chosen)
    return [start, *kept], [exact, *expected]


def agree(found: list, expected: list, steps: list[int]) -> bool:
    """Whether all is within float32's rounding of the numbers that were added up."""
    agrees = True
    largest = [torch.stack(gradients).abs().amax(dim=0) for gradients in zip(*map(drawn, steps), strict=True)]
    for kind, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        for value, truth, gradient, before, rate in zip(ours, exact, largest, drawn(0), RATES, strict=True):
            allowed = [1e-5 * rate * len(steps) + 3e-7 * before.abs(), 1e-6 * gradient, 1e-6 * gradient**2][kind]
            agrees &= bool(((value.double().cpu() - truth).abs() <= allowed).all())
    return agrees


@pytest.mark.parametrize("options", [{}, {"beta1": 0.0, "beta2": 0.5, "epsilon": 1e-2}, {"beta1": 0.99}])
@pytest.mark.parametrize("block", [16, 1024])
def test_the_kernel_is_the_step(device, monkeypatch, options, block):
    monkeypatch.setattr(adam, "BLOCK", block)
    steps = [1, 2, 3] if block > 16 else [1]
    found, expected = after(device, steps, **options)
    assert agree(found, expected, steps)
    for value, before in zip(found[0], drawn(0), strict=True):
        assert not value.numel() or not torch.equal(value.cpu(), before)


def test_the_comparison_sees_a_wrong_rate(device):
    assert not agree(*after(device, [1, 2], factor=1 + 1e-3), [1, 2])


def test_late_steps_and_gradients_of_zero(device):
    """The bias corrections fade; where the gradient has always been 0 nothing moves."""
    value = torch.ones(5, device=device)
    gradient = torch.tensor([0.0, 1.0, -1.0, 1e-20, 1e20], device=device)
    means = [torch.zeros_like(value), torch.zeros_like(value)]
    adam.adam_step([adam.AdamGroup(value, gradient, *means, 0.1)], beta1=0.9, beta2=0.999, epsilon=1e-15, step=10**6)
    exact = torch.ones(5, dtype=torch.float64)
    adam_update(
        exact, gradient.double().cpu(), *(torch.zeros_like(exact) for _ in range(2)),
        rate=0.1, step=10**6, options=AdamOptions(),
    )  # fmt: skip
    assert value[0] == 1
    torch.testing.assert_close(value.double().cpu()[:4], exact[:4], rtol=1e-6, atol=1e-6)


def test_nothing_to_move(device):
    empty = torch.zeros(0, 3, device=device)
    adam.adam_step([adam.AdamGroup(empty, empty, empty, empty, 1.0)], beta1=0.9, beta2=0.999, epsilon=1e-15, step=1)
    adam.adam_step([], beta1=0.9, beta2=0.999, epsilon=1e-15, step=1)
