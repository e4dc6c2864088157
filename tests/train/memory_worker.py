"""Trains for two steps in a process of its own and prints what it was estimated to take and what it took, bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from splatopt.data import CaptureOptions, load_capture
from splatopt.raster.render import make_renderer
from splatopt.runs.memory import peak_megabytes, resident_megabytes
from splatopt.train import trainer as trainer_module
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train

if __name__ == "__main__":
    folder, optimizer, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
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
    print(estimates[-1].total, round((peak_megabytes() - before) * 1e6), estimates[-1].sentence)
