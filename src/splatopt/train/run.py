"""A run, opened again: its scene, its capture, its scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.data import Capture
from splatopt.raster.renderer import Renderer
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.ply import load_ply, save_ply
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores, check_scorable, evaluate, evaluation_record
from splatopt.train.folder import RunFolder, read_json, write_json
from splatopt.train.setup import (
    make_objective,
    on_this_machine,
    open_capture,
    open_renderer,
    render_device,
    sh_degree_at,
)


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it.

    Attributes:
        folder: Its files.
        config: What it was told.
        cloud: The scene of its newest whole checkpoint, or of ``scene.ply`` where that is later: a disk that
            was full may have kept the last checkpoints away.
        steps: Optimizer steps that the scene has seen.
        seconds: Seconds of training that it took.
        warnings: One sentence for each checkpoint that is damaged, and for a device that is not here.
    """

    folder: RunFolder
    config: TrainConfig
    cloud: GaussianCloud
    steps: int
    seconds: float
    warnings: tuple[str, ...]

    def open_capture(self) -> Capture:
        """Load the capture that it was trained on, at the same size and split."""
        return open_capture(self.config)

    def objective(self, capture: Capture, renderer: Renderer | None = None) -> PhotometricObjective:
        """Bind the scene to its capture, rendered as the last step rendered it.

        Args:
            capture: What it was trained on.
            renderer: What renders; the configuration's when None.
        """
        cloud = self.cloud if renderer else self.cloud.to(render_device(self.config))
        objective = make_objective(self.config, capture, cloud, renderer or open_renderer(self.config))
        objective.sh_degree = sh_degree_at(self.config, max(0, self.steps - 1))
        return objective

    def evaluate(
        self, capture: Capture, renderer: Renderer | None = None, watch: Callable[[int], None] | None = None
    ) -> Scores:
        """Score the held-out views and write ``eval.json``; scores from before training stay in it.

        Args:
            capture: What it was trained on.
            renderer: What renders; the configuration's when None.
            watch: Called after each view with the number of views done.

        Raises:
            InputError: Another process is at work on the run.
        """
        check_scorable(capture)
        with self.folder.held():
            return self._score(capture, renderer, watch)

    def _score(self, capture: Capture, renderer: Renderer | None, watch: Callable[[int], None] | None) -> Scores:
        scores = evaluate(self.objective(capture, renderer), capture, watch)
        record = read_json(self.folder.evaluation)
        # A record of the same step also counts the writing of the checkpoint that we were read from.
        seconds = _seconds(record, self.seconds) if record.get("steps") == self.steps else self.seconds
        before = None
        # Scores that are damaged are left out: nothing can bring them back.
        with contextlib.suppress(InputError):
            if isinstance(record.get("before"), dict):
                before = Scores.from_json(record["before"], scores.split, scores.subset)
        write_json(
            self.folder.evaluation,
            evaluation_record(before, scores, steps=self.steps, seconds=seconds, gaussians=len(self.cloud)),
        )
        return scores

    def export(self, path: Path) -> None:
        """Write the scene as a PLY that 3DGS viewers read; raises InputError for another ending."""
        if path.suffix.lower() != ".ply":
            raise InputError(f"scenes are written as .ply, got {path.name!r}; give a path such as scene.ply")
        save_ply(self.cloud, path)


def open_run(path: Path | str, renderer: str | None = None, device: str | None = None) -> Run:
    """Open the run in folder ``path``.

    Args:
        path: A folder that ``splatopt train`` made.
        renderer: Use this renderer in place of the run's own.
        device: Compute here in place of where the run did; where that is not here, wherever it can be done.

    Raises:
        InputError: There is no run, or it holds no scene yet.
    """
    folder = RunFolder(Path(path))
    config = folder.read_config()
    folder.sweep_if_idle()
    warnings: list[str] = []
    if renderer is not None or device is not None:
        config = replace(config, renderer=renderer or "auto", device=device or "auto")
    elif config.device.startswith("cuda"):
        config, warnings = on_this_machine(config, replace(config, renderer="auto", device="auto"))
    checkpoint, damaged = latest_checkpoint(folder.checkpoints)
    warnings += damaged
    record = read_json(folder.evaluation)
    if checkpoint is not None and not _is_later(record, folder, checkpoint.step):
        tensors = {
            name.removeprefix("cloud."): value
            for name, value in checkpoint.tensors.items()
            if name.startswith("cloud.")
        }
        cloud, steps = GaussianCloud(**tensors).clone(), checkpoint.step
        return Run(folder, config, cloud, steps, float(checkpoint.scalars["seconds"]), tuple(warnings))
    if not folder.scene.is_file():
        raise InputError(f"{folder.path} holds neither a whole checkpoint nor a scene.ply; train it first")
    steps = record["steps"] if isinstance(record.get("steps"), int) else config.total_steps
    return Run(folder, config, load_ply(folder.scene), steps, _seconds(record, 0.0), tuple(warnings))


def _is_later(record: dict[str, Any], folder: RunFolder, step: int) -> bool:
    """Whether the run came to its end, with its scores and its scene, after the checkpoint of ``step``."""
    steps = record.get("steps")
    return "psnr" in record and isinstance(steps, int) and steps > step and folder.scene.is_file()


def _seconds(record: dict[str, Any], otherwise: float) -> float:
    """Seconds of training that ``eval.json`` names, where it is whole."""
    seconds = record.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else otherwise
