"""What masks over half of each photograph cost: `python -m benchmarks.masking CAPTURE`.

A copy of a capture with a folder ``images`` is given masks: the photographs are cut into square cells, of which half,
drawn at random, are masked and filled with noise. The capture as it is and the copy are trained alike, and both are
scored on all pixels of the held-out photographs as they are. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from splatopt.data import Capture
from splatopt.data.images import read_pixels
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import evaluate
from splatopt.train.loop import train
from splatopt.train.run import open_run


def draw_mask(height: int, width: int, cell: int, generator: np.random.Generator) -> np.ndarray:
    """Return a mask (height, width) of 0 and 255, of whose cells half, rounded down, are 0."""
    rows, columns = -(-height // cell), -(-width // cell)
    cells = np.full(rows * columns, 255, dtype=np.uint8)
    cells[: len(cells) // 2] = 0
    grid = generator.permutation(cells).reshape(rows, columns)
    return grid.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]


def cover(capture: Path, copy: Path, cell: int, seed: int) -> None:
    """Write a copy of a capture whose photographs are half noise, with masks over that."""
    shutil.copytree(capture, copy)
    (copy / "masks").mkdir()
    generator = np.random.default_rng(seed)
    for path in sorted((capture / "images").iterdir()):
        pixels = read_pixels(path, (0.0, 0.0, 0.0))
        mask = draw_mask(*pixels.shape[:2], cell, generator)
        noise = generator.integers(0, 256, pixels.shape, dtype=np.uint8)
        covered = np.where(mask[:, :, None] > 0, pixels, noise)
        Image.fromarray(covered).save(copy / "images" / path.name, format="PNG", compress_level=1)
        Image.fromarray(mask).save(copy / "masks" / f"{path.name}.png")


def scores_of(config: TrainConfig, plain: Capture | None) -> tuple[float, float]:
    """Train, and return PSNR and SSIM of the held-out photographs as they are."""
    train(config)
    run = open_run(config.folder)
    capture = run.open_capture()
    objective = run.objective(capture)
    if plain is not None:
        objective.images, objective.weights = plain.images, None
    scores = evaluate(objective, capture)
    return scores.psnr, scores.ssim


def main(words: Sequence[str] | None = None) -> None:
    """Train both runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--cell", type=int, default=40, help="side of a cell, pixels of the photographs as they lie")
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--optimizer", default="learned")
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--seed", type=int, default=0, help="of the masks and of the runs")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "covered"
        cover(given.capture, copy, given.cell, given.seed)
        print("| photographs | steps | PSNR, dB | SSIM |\n|---|---|---|---|")
        for steps in given.steps:
            settings = {"optimizer": given.optimizer, "steps": steps, "seed": given.seed, "threads": given.threads}
            plain = None
            for name, capture in (("as they are", given.capture), ("half masked", copy)):
                out = Path(folder) / f"{capture.name}-{steps}"
                config = TrainConfig.of(str(capture), out=out, downscale=given.downscale, **settings)
                psnr, ssim = scores_of(config, plain)
                plain = plain or open_run(out).open_capture()
                print(f"| {name} | {steps} | {psnr:.2f} | {ssim:.4f} |", flush=True)


if __name__ == "__main__":
    main()
