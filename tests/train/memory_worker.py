"""Trains for two steps in a process for each optimizer and prints what it was estimated to take and took, bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A longer run loads these on first use, and that is not counted.
import scipy.optimize
import scipy.spatial  # noqa: F401

from splatopt.data import CaptureOptions, load_capture
from splatopt.raster.render import make_renderer
from splatopt.runs.memory import peak_megabytes, resident_megabytes
from splatopt.train import trainer as trainer_module
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train


def measure(folder: Path, optimizer: str, count: int) -> None:
    """Train, and print a line."""
    capture = load_capture(folder / "capture", CaptureOptions())
    estimates = []
    check = trainer_module.check_memory

    def noted(*arguments):
        estimates.append(check(*arguments))
        return estimates[-1]

    trainer_module.check_memory = noted
    config = TrainConfig.of(
        str(folder / "capture"),
        optimizer=optimizer,
        steps=2,
        init="random",
        random_points=count,
        out=folder / optimizer,
        view_batch=2,
        threads=1,
    )
    # Warm up what is loaded on first use, so that it is not counted.
    warm = TrainConfig.of(
        str(folder / "capture"),
        optimizer=optimizer,
        steps=1,
        init="random",
        random_points=50,
        out=folder / f"warm-{optimizer}",
    )
    train(warm, capture=capture, renderer=make_renderer("native", 1))
    before = resident_megabytes()
    train(config, capture=capture, renderer=make_renderer("native", 1))
    print(optimizer, estimates[-1].total, round((peak_megabytes() - before) * 1e6), estimates[-1].sentence, flush=True)


if __name__ == "__main__":
    for name in sys.argv[3:]:
        child = os.fork()  # its peak is its own, and nothing is imported again
        if child == 0:
            measure(Path(sys.argv[1]), name, int(sys.argv[2]))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} failed")
