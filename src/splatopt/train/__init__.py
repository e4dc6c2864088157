"""Training: configuration, the loop, checkpoints, evaluation and what is said while it runs."""

from __future__ import annotations

from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores
from splatopt.train.loop import TrainResult, train
from splatopt.train.run import Run, open_run

__all__ = ["Run", "Scores", "TrainConfig", "TrainResult", "open_run", "train"]
