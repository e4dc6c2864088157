"""What meta-training logs: one JSON object a line, of two kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict


class TrainLine(TypedDict):
    """How training stands; means are over the last hundred episodes, absent before the first."""

    kind: Literal["train"]
    step: int
    hours: float
    learning_rate: float
    depths: list[int]
    deepest: int
    meta_loss: NotRequired[float]
    psnr: NotRequired[float]
    gate: NotRequired[float]
    moved: NotRequired[float]


class ValidationLine(TypedDict):
    """What a validation came to: PSNR in dB by the steps that were taken."""

    kind: Literal["validation"]
    step: int
    hours: float
    psnr: dict[str, float]


LogLine = TrainLine | ValidationLine


def validations(log: Sequence[LogLine]) -> list[ValidationLine]:
    """Return the validations of a log, in their order."""
    return [line for line in log if line["kind"] == "validation"]
