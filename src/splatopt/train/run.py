"""A run, opened again: its scene, its capture, its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from splatopt.core.checkpoint import Checkpoint, below, latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.frame import WORLD, Frame
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.raster.renderer import Renderer
from splatopt.runs.folder import RunFolder, write_json
from splatopt.runs.plugins import plugins_missing
from splatopt.runs.records import read_evaluation
from splatopt.runs.trained_on import changed_since, check_unchanged, training_frame
from splatopt.scene.exposure import Exposure, ExposureMaps
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.ply import load_ply, save_ply
from splatopt.scene.pose_refinement import POSES
from splatopt.train.checkpoint_content import check_degree, check_scene, maps_of, scene_of
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores, check_scorable, evaluate, evaluation_record
from splatopt.train.machine import Machine, on_this_machine, open_machine, with_own_instructions
from splatopt.train.refined_poses import saved_poses, state_of_poses, with_poses
from splatopt.train.setup import make_objective, open_capture


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it.

    Attributes:
        folder: Its files.
        config: What it was told.
        trained: The scene of its newest whole checkpoint, or of ``scene.ply`` where that is later: a disk that
            was full may have kept the last checkpoints away. In the training frame.
        frame: That frame.
        steps: Optimizer steps that the scene has seen.
        seconds: Seconds of training that it took.
        warnings: One sentence for each checkpoint that is damaged, and for a device that is not here.
        exposure: The colour maps of its photographs, of that checkpoint also where the scene is of ``scene.ply``; None
            where none were solved.
        poses: What that checkpoint holds of refined poses; nothing where ``poses.json`` is as late as the scene.
    """

    folder: RunFolder
    config: TrainConfig
    trained: GaussianCloud
    frame: Frame
    steps: int
    seconds: float
    warnings: tuple[str, ...]
    exposure: ExposureMaps | None = None
    poses: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def cloud(self) -> GaussianCloud:
        """The scene in the capture's own frame."""
        return self.trained.in_world(self.frame)

    @cached_property
    def machine(self) -> Machine:
        """What it is looked at with; raises InputError where that is not here."""
        return open_machine(self.config)

    def open_capture(self) -> Capture:
        """Load the capture that it was trained on, at the same size and split, in the training frame."""
        try:
            return open_capture(self.config).localised(self.frame)
        except InputError as error:
            missing = plugins_missing(self.config.processes.plugins)
            raise InputError(f"{error}{missing}") if missing else error from None

    def difference_from(self, capture: Capture) -> str | None:
        """Return in words how ``capture`` differs from what the run was trained on; None where nothing shows it."""
        return changed_since(self.folder, fingerprint_capture(self._local(capture)), apart=("points",))

    def check_capture(self, capture: Capture, what: str) -> None:
        """Raise InputError where ``capture`` is not what the run was trained on, so that ``what`` would mislead."""
        check_unchanged(self.folder, str(capture.path), fingerprint_capture(self._local(capture)), what)

    def _local(self, capture: Capture) -> Capture:
        """Return a capture, given in its own frame or in the training frame, in the latter."""
        return capture.localised(self.frame)

    def refined(self, capture: Capture) -> Capture:
        """Return a capture in the training frame, its training cameras where the run refined their poses to."""
        return with_poses(self._local(capture), saved_poses(self.poses, self.folder.poses, self.frame))

    def state_of_poses(self) -> dict[str, Tensor]:
        """Return what a checkpoint of the run's scene has to hold of refined poses; raises InputError where damaged."""
        return state_of_poses(self.poses, self.folder.poses, self.frame)

    def objective(self, capture: Capture, renderer: Renderer | None = None) -> PhotometricObjective:
        """Bind the scene to its capture, rendered as the last step rendered it.

        Args:
            capture: What it was trained on.
            renderer: What renders; the configuration's when None.
        """
        cloud, capture = self.trained if renderer else self.trained.to(self.machine.device), self.refined(capture)
        objective = make_objective(self.config, capture, cloud, renderer or self.machine.renderer)
        objective.sh_degree = self.config.scene.sh_degree_at(max(0, self.steps - 1))
        if self.exposure is not None:
            self.exposure.check_count(len(capture.cameras), str(self.folder.path))
        objective.exposure = self.exposure
        return objective

    def evaluate(
        self,
        capture: Capture,
        renderer: Renderer | None = None,
        watch: Callable[[int], None] | None = None,
        *,
        fitted: bool = False,
    ) -> Scores:
        """Score the held-out views and write ``eval.json``; scores from before training stay in it.

        Args:
            capture: What it was trained on.
            renderer: What renders; the configuration's when None.
            watch: Called after each view with the number of views done.
            fitted: Score right halves after a colour map fitted to the left ones as well, of a run without colour
                maps.

        Raises:
            InputError: The capture is another one than that, or another process is at work on the run.
        """
        self.check_capture(capture, "its scores")
        check_scorable(capture)
        with self.folder.locked():
            scores = evaluate(self.objective(capture, renderer), self._local(capture), watch, fitted=fitted)
            return self._write(scores)

    def _write(self, scores: Scores) -> Scores:
        record, _ = _record(self.folder)
        # A record of the same step also counts the writing of the checkpoint that we were read from.
        seconds = record.get("seconds", self.seconds) if record.get("steps") == self.steps else self.seconds
        before = Scores.from_json(record["before"], scores.split, scores.subset) if record.get("before") else None
        count = len(self.trained)
        record = evaluation_record(self.config, before, scores, steps=self.steps, seconds=seconds, gaussians=count)
        write_json(self.folder.evaluation, record)
        return scores

    def export(self, path: Path, *, local: bool = False) -> None:
        """Write the scene as a PLY that 3DGS viewers read.

        Args:
            path: The file, ending in .ply.
            local: Whether it is written in the training frame instead of the capture's own.

        Raises:
            InputError: It has another ending, or cannot be written.
        """
        if path.suffix.lower() != ".ply":
            raise InputError(f"scenes are written as .ply, got {path.name!r}; give a path such as scene.ply")
        save_ply(self.trained if local else self.cloud, path)


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
    config, frame = TrainConfig.read(folder), training_frame(folder) or WORLD
    folder.sweep_if_idle()
    warnings: list[str] = []
    if renderer is not None or device is not None:
        config = config.changed(renderer=renderer or "auto", device=device or "auto")
    elif config.processes.device.startswith("cuda"):
        config, _, changes = on_this_machine(config, config.changed(renderer="auto", device="auto"))
        warnings += changes
    config, elsewhere = with_own_instructions(config, config.changed(instructions="auto"))
    warnings += elsewhere
    checkpoint, damages = latest_checkpoint(folder.checkpoints, check_scene)
    record, spoilt = _record(folder)
    warnings += spoilt
    if checkpoint is not None and not _is_later(record, folder, checkpoint.step):
        warnings += damages
        return run_at(checkpoint, folder, config, frame, tuple(warnings))
    if not folder.scene.is_file():
        detail = f" ({damages[0]})" if damages else ""
        raise InputError(f"{folder.path} holds neither a whole checkpoint{detail} nor a scene.ply; train it first")
    warnings += [f"{damage}; using {folder.scene.name}" for damage in damages if checkpoint is None]
    cloud, steps = load_ply(folder.scene, warnings).in_local(frame), record.get("steps", config.schedule.total_steps)
    check_degree(cloud, config.scene.sh_degree, str(folder.scene))
    run = Run(folder, config, cloud, frame, steps, record.get("seconds", 0.0), tuple(warnings))
    return run if checkpoint is None else _with_older(run, checkpoint)


def _with_older(run: Run, checkpoint: Checkpoint) -> Run:
    """Return a run whose scene is later than its last whole checkpoint with what that alone holds, and a warning."""
    exposure = _exposure_of(checkpoint, run.config)
    poses = {} if run.folder.poses.is_file() else below(checkpoint.tensors, POSES)
    older = [name for name, found in (("colour maps", exposure), ("refined poses", poses)) if found]
    if not older:
        return run
    warning = (
        f"{run.folder.scene.name} is of step {run.steps} and the last whole checkpoint of step {checkpoint.step}: the "
        f"{' and the '.join(older)} are of the latter"
    )
    return replace(run, warnings=(*run.warnings, warning), exposure=exposure, poses=poses)


def run_at(
    checkpoint: Checkpoint, folder: RunFolder, config: TrainConfig, frame: Frame, warnings: tuple[str, ...] = ()
) -> Run:
    """Return a run as one of its checkpoints holds it.

    Args:
        checkpoint: Whose form was checked.
        folder: The run's.
        config: What it was told.
        frame: In which it was trained.
        warnings: What there is to say of it.

    Raises:
        InputError: The scene has other colours than ``config`` says.
    """
    cloud = scene_of(checkpoint).clone()
    check_degree(cloud, config.scene.sh_degree, checkpoint.where)
    seconds, exposure = float(checkpoint.scalars["seconds"]), _exposure_of(checkpoint, config)
    poses = below(checkpoint.tensors, POSES)
    return Run(folder, config, cloud, frame, checkpoint.step, seconds, warnings, exposure, poses)


def _exposure_of(checkpoint: Checkpoint, config: TrainConfig) -> ExposureMaps | None:
    """Return the colour maps that a checkpoint holds; None where there are none, or none were asked for."""
    maps = maps_of(checkpoint)
    return None if maps is None or config.scene.exposure is Exposure.NONE else ExposureMaps(maps)


def _record(folder: RunFolder) -> tuple[dict[str, Any], list[str]]:
    """Scores that a run left, and a warning where they are damaged: nothing can bring them back."""
    try:
        return read_evaluation(folder.evaluation), []
    except InputError as error:
        return {}, [f"{error}; it is not looked at"]


def _is_later(record: dict[str, Any], folder: RunFolder, step: int) -> bool:
    """Whether the run came to its end, with its scores and its scene, after the checkpoint of ``step``."""
    return "psnr" in record and record.get("steps", 0) > step and folder.scene.is_file()
