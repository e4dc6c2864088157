"""Short runs whose strategies edit often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splatopt.core import plugins
from splatopt.core.plugins import Origin
from splatopt.density.strategy import STRATEGIES
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from splatopt.train.result import TrainResult

OFTEN = {"start": 0, "until": 10_000, "every": 1, "horizon": 0}
"""An edit after every step."""

OPTIONS = {
    "adc": {**OFTEN, "min_gradient": 5e-3, "reset_every": 0},
    "mcmc": {**OFTEN, "growth": 0.02},
    "gain": {"every": 1, "begin": 0.0, "until": 1.0},
}
"""Options of each strategy with which it edits after every step of a few."""


def options_of(strategy: str, **changes) -> dict:
    return OPTIONS.get(strategy, {}) | changes


def grown(scene, strategy: str, folder: Path, callbacks=(), *, own=None, **changes) -> TrainResult:
    settings = {"steps": 20, "checkpoint_every": 10, "log_every": 4, "threads": 1}
    settings |= {"max_gaussians": 300 if strategy == "gain" else 150} | changes
    options = options_of(strategy, **(own or {}))
    config = TrainConfig.of(str(scene), out=folder, density=strategy, density_options=options, **settings)
    return train(config, callbacks)


def edits(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "density.jsonl").read_text().splitlines()]


def gone_on(folder: Path, **changes) -> TrainResult:
    capture = json.loads((folder / "config.json").read_text())["capture"]
    return train(TrainConfig.of(capture, out=folder, resume=True, threads=1, **changes))


def same_scene(first: Path, second: Path) -> bool:
    return (first / "scene.ply").read_bytes() == (second / "scene.ply").read_bytes()


def strategies() -> tuple[str, ...]:
    """splatopt's own."""
    return STRATEGIES.names(Origin.OWN)


@contextmanager
def plugins_forgotten() -> Iterator[None]:
    """Forget at its end the files that are loaded within it, and the strategies that they register."""
    files, before = dict(plugins._files), set(STRATEGIES.names())
    try:
        yield
    finally:
        for name in set(STRATEGIES.names(Origin.GIVEN)) - before:
            STRATEGIES.forget(name)
        plugins._files.clear()
        plugins._files.update(files)
