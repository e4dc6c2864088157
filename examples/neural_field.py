"""A photograph as a SIREN, fitted with Adam and with ESGD: once through splatopt, once in a loop of one's own.

Run it with ``python examples/neural_field.py``; it takes a few seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image
from skimage import data

import splatopt
from splatopt.fields import Architecture, make_field
from splatopt.optim.curvature_diagonal import ESGD

SIDE, WIDTH, STEPS = 48, 64, 100


def through_splatopt(image_file: Path, folder: Path) -> None:
    for name in ("adam", "esgd"):
        settings = splatopt.FitConfig.of(
            str(image_file), field="sine", optimizer=name, width=WIDTH, steps=STEPS, out=folder / name
        )
        result = splatopt.fit_field(settings)
        print(f"{name}: {result.before['psnr']:.2f} -> {result.after['psnr']:.2f} dB in {result.seconds:.1f} s")


def in_a_loop_of_ones_own() -> None:
    generator = torch.Generator().manual_seed(0)
    field = make_field("sine", Architecture(inputs=1, outputs=1, width=WIDTH), generator)
    x = torch.linspace(-1, 1, 256)[:, None]
    y = torch.sin(20 * x**2)
    optimizer = ESGD(field.parameters(), generator=generator)
    losses = [float(optimizer.step(lambda: (field(x) - y).square().mean())) for _ in range(STEPS)]
    print(f"loop: {losses[0]:.4f} -> {losses[-1]:.6f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        image_file = Path(folder) / "astronaut.png"
        Image.fromarray(data.astronaut()).resize((SIDE, SIDE)).save(image_file)
        through_splatopt(image_file, Path(folder))
    in_a_loop_of_ones_own()


if __name__ == "__main__":
    main()
