"""What random exposures cost, with and without colour maps: `python -m benchmarks.exposure CAPTURE`.

Every photograph of a copy of the capture is multiplied by a gain, drawn between 0.6 and 1.6 evenly in its logarithm,
and each channel by a cast between 0.9 and 1.1, clipped and rounded as a camera would. The capture as it is and the copy
are trained without and with ``--exposure affine``. Test views are scored under the fitted protocol (a colour map fitted
to the left half, the right half scored): against the photographs that each run was given, and against those of the
capture as it is, where the scores can be compared. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from splatopt.data import Capture
from splatopt.data.images import read_pixels
from splatopt.scene.exposure import Exposure, apply_map
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import evaluate
from splatopt.train.loop import train
from splatopt.train.run import open_run

GAINS = (0.6, 1.6)
CASTS = (0.9, 1.1)


def draw_maps(count: int, seed: int) -> torch.Tensor:
    """Return a gain and cast for each of ``count`` photographs as a colour map, (count, 3, 4)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.empty(count, channels, dtype=torch.float64).uniform_(*map(math.log, bounds), generator=generator).exp()
        for channels, bounds in ((1, GAINS), (3, CASTS))
    ]
    return torch.cat([torch.diag_embed(rows[0] * rows[1]), torch.zeros(count, 3, 1, dtype=torch.float64)], dim=2)


def disturb(capture: Path, copy: Path, seed: int) -> None:
    """Write a copy of a capture with a folder ``images``, whose photographs each have an exposure of their own."""
    shutil.copytree(capture, copy)
    paths = sorted((capture / "images").iterdir())
    for path, color_map in zip(paths, draw_maps(len(paths), seed), strict=True):
        pixels = torch.from_numpy(read_pixels(path, (0.0, 0.0, 0.0))).float()
        changed = apply_map(color_map, pixels).round().clamp(0, 255).to(torch.uint8)
        Image.fromarray(changed.numpy()).save(copy / "images" / path.name, format="PNG", compress_level=1)


def scores_of(config: TrainConfig, plain: Capture | None) -> list[float]:
    """Train, and return PSNR as rendered, PSNR under the fitted protocol, and that against the plain photographs."""
    train(config)
    run = open_run(config.folder)
    own = run.open_capture()
    objective = run.objective(own)
    scores = evaluate(objective, own, fitted=True)
    if plain is not None:
        objective.images = plain.images
    return [scores.psnr, scores.fitted_psnr, evaluate(objective, own, fitted=True).fitted_psnr]


def main(words: Sequence[str] | None = None) -> None:
    """Train the three runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=Path)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--optimizer", default="learned")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the exposures and of the runs")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    settings = {"optimizer": given.optimizer, "steps": given.steps, "seed": given.seed, "threads": given.threads}
    settings["downscale"] = given.downscale
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "disturbed"
        disturb(given.capture, copy, given.seed)
        runs = {
            "as it is, none": (given.capture, Exposure.NONE),
            "disturbed, none": (copy, Exposure.NONE),
            "as it is, affine": (given.capture, Exposure.AFFINE),
            "disturbed, affine": (copy, Exposure.AFFINE),
        }
        print("| photographs, exposure | PSNR | fitted PSNR | fitted PSNR, photographs as they are |")
        print("|---|---|---|---|")
        plain = None
        for number, (name, (capture, exposure)) in enumerate(runs.items()):
            out = Path(folder) / f"run-{number}"
            config = TrainConfig.of(str(capture), out=out, exposure=exposure, **settings)
            found = scores_of(config, plain)
            plain = plain or open_run(out).open_capture()
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
