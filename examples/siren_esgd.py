"""A SIREN fitted to a photograph with ESGD, in plain PyTorch: one import, one closure, any scheduler.

Run it with ``python examples/siren_esgd.py [STEPS]``; it takes a few seconds.
"""

from __future__ import annotations

import math
import sys

import torch
from skimage import data, transform
from torch import Tensor, nn

from splatopt.optim import ESGD

SIDE, WIDTH, OMEGA = 48, 64, 30.0


class Sine(nn.Module):
    """sin(ω(Wx + b)), with SIREN's initialization (Sitzmann et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * self.linear(x))


def main(steps: int = 150) -> None:
    torch.manual_seed(0)
    image = torch.from_numpy(transform.resize(data.astronaut(), (SIDE, SIDE))).float().view(-1, 3)
    axis = torch.linspace(-1, 1, SIDE)
    pixels = torch.cartesian_prod(axis, axis)
    net = nn.Sequential(Sine(2, WIDTH, first=True), Sine(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    optimizer = ESGD(net.parameters(), lr=0.15)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = torch.randperm(len(pixels))[:512]
        loss = optimizer.step(lambda batch=batch: (net(pixels[batch]) - image[batch]).square().mean())
        scheduler.step()
        if step in (0, steps - 1):
            print(f"step {step + 1}: {-10 * math.log10(loss.item()):.2f} dB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
