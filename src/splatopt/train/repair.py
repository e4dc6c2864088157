"""A scene on its way down: Gaussians are removed, and steps of an optimizer repair what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.core.checkpoint import Checkpoint
from splatopt.core.optimizer import Progress
from splatopt.core.processes import Processes
from splatopt.core.scene_edit import SceneEdit, apply_edit
from splatopt.data import Capture
from splatopt.density.removal import SCORES, cheapest
from splatopt.runs.checkpoint_content import OPTIMIZER, load_optimizer
from splatopt.runs.folder import MetricSums
from splatopt.runs.resumable import NonFiniteError, is_due
from splatopt.scene.exposure import Exposure
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.pose_refinement import POSES
from splatopt.train.checkpoint_content import CLOUD, EXPOSURE, scene_of
from splatopt.train.evaluate import Scores, evaluate
from splatopt.train.exposure import ExposureSolving
from splatopt.train.finite_rows import FiniteRows, RowResets
from splatopt.train.growth import metrics_of
from splatopt.train.preflight import check_memory
from splatopt.train.process_context import READ_AHEAD, ProcessContext
from splatopt.train.pruning import PruneOptions, PruneRound, pruned_schedule
from splatopt.train.run import Run
from splatopt.train.sampler import ViewSampler
from splatopt.train.setup import make_objective, make_optimizer, training_positions


class Repair:
    """The scene of a run that is pruned, with the optimizer that repairs it.

    Attributes:
        step: Steps that the scene has seen, the run's included.
        seconds: Seconds of training that it took; what was undone counts.
        scores: Of the scored views, when they were last measured.
        poses: What a checkpoint holds of the run's refined poses; nothing where none were refined, or none are left.
    """

    def __init__(
        self,
        run: Run,
        options: PruneOptions,
        capture: Capture,
        *,
        log: Callable[[dict[str, object]], None],
        warn: Callable[[str], None],
    ) -> None:
        """Begin with the run's scene; checks everything and writes nothing.

        Args:
            run: What is pruned.
            options: How.
            capture: What the run was trained on, in its training frame.
            log: Takes lines of metrics.
            warn: Takes sentences.

        Raises:
            InputError: The optimizer cannot be used here, or memory does not suffice.
        """
        self._run, self._options, self._capture, self._log, self._warn = run, options, capture, log, warn
        self._train = tuple(capture.split.train)
        self.step, self.seconds = run.steps, run.seconds
        self.scores: Scores | None = None
        self._sums = MetricSums()
        self._resets = RowResets(warn)
        schedule = pruned_schedule(run.config.schedule, 0, options, max(1, options.repair))
        self._config = run.config.changed(**schedule)
        self.context = ProcessContext(run.machine.device, capture, Processes())
        check_memory(self._config, capture, run.trained, run.machine.renderer, self.context)
        self._generator = torch.Generator().manual_seed(self._config.schedule.seed)
        self._sampler = ViewSampler(self._train, self._generator, training_positions(self._config, capture))
        self._exposure, self.poses = run.exposure, self._poses_left()
        self._bind(run.trained.clone())
        self._optimizer.check_batch(self._train)
        if self._exposure is None and run.config.scene.exposure is not Exposure.NONE:
            self._solve_exposure()

    def _poses_left(self) -> dict[str, torch.Tensor]:
        """Return what is left of the run's refined poses; warns where there should be some and are none."""
        poses = self._run.state_of_poses()
        if len(poses.get("world_to_camera", ())) == len(self._train):
            return poses
        if self._run.config.scene.refine_poses:
            self._warn(
                f"the poses that {self._run.folder.path} refined are gone with its checkpoints and poses.json; the "
                "scene is repaired from the capture's own, and the new run refines none"
            )
        return {}

    def _solve_exposure(self) -> None:
        """Solve the colour maps of a run whose own are gone, for its scene as it is."""
        ExposureSolving(self._run.config.scene.exposure, self._objective, self._train, Processes()).before_step(0)
        self._exposure = self._objective.exposure
        self._warn(
            f"the colour maps of {self._run.folder.path} are gone with its checkpoints; they are solved anew, for its "
            "scene as it is"
        )

    def _bind(self, cloud: GaussianCloud) -> None:
        """Make objective and optimizer around ``cloud``."""
        machine = self._run.machine
        cloud = cloud.to(machine.device)
        self._objective = make_objective(
            self._config, self._run.refined(self._capture), cloud, machine.renderer, self.context.images
        )
        self._objective.exposure = self._exposure
        self._set_degree(max(0, self.step - 1))
        self._guarded = FiniteRows(self.context.guard(self._objective, self._warn))
        self._optimizer = make_optimizer(self._options.optimizer, self._config, self._guarded, self._generator)
        self._optimizer.threads, self._optimizer.instructions = machine.threads, machine.instructions

    @property
    def cloud(self) -> GaussianCloud:
        """The scene as it is, in the training frame."""
        return self._objective.cloud

    def remove(self, target: int) -> None:
        """Remove the Gaussians with the lowest scores until ``target`` are left."""
        began = time.perf_counter()
        scores = SCORES[self._options.by](self._guarded, [(view,) for view in self._train])
        self._check_sound(0.0)
        self._guarded.forget()
        apply_edit(SceneEdit.keep(~cheapest(scores, len(scores) - target)), self._objective, self._optimizer)
        self.seconds += time.perf_counter() - began

    def repair(self) -> None:
        """Take a round's steps: the last part of a schedule that is as much longer as ``late`` says."""
        count = self._options.repair
        horizon = max(1, round(count / self._options.late))
        for step in range(count):
            began = time.perf_counter()
            self._take_step(Progress(horizon - count + step, horizon))
            self.seconds += time.perf_counter() - began
            if is_due(self.step, self._config.saving.log_every) or step == count - 1:
                self._log_line()

    def _take_step(self, progress: Progress) -> None:
        wanted = self._optimizer.batch_size
        batch = self._config.schedule.views_a_step
        views = self._sampler.draw(batch) if wanted is None else self._sampler.draw_distinct(wanted)
        self.context.expect(views, self._sampler.upcoming(READ_AHEAD))
        self._set_degree(self.step)
        evaluation = self._optimizer.step(views, progress)
        self._check_sound(evaluation.loss)
        reset, problem = self._resets.reset_broken(self._objective, self._optimizer, self._guarded, self.step + 1)
        self._guarded.forget()
        if problem:
            raise self._broken(problem)
        self.step += 1
        for notice in self._optimizer.warnings:
            self._warn(notice)
        self._optimizer.warnings.clear()
        self._sums.add(evaluation.loss, evaluation.metrics["psnr"])
        self._sums.reset_rows += reset

    def _set_degree(self, step: int) -> None:
        self._objective.sh_degree = self._config.scene.sh_degree_at(step)

    def _check_sound(self, loss: float) -> None:
        if self._guarded.problem or not math.isfinite(loss):
            raise self._broken(self._guarded.problem or f"the loss is {loss}")

    def _broken(self, problem: str) -> NonFiniteError:
        return NonFiniteError(f"pruning stopped: {problem} after step {self.step}, of {len(self.cloud):,} Gaussians")

    def _log_line(self) -> None:
        line: dict[str, object] = {
            "step": self.step,
            "optimizer": self._options.optimizer,
            "seconds": round(self.seconds, 4),
        }
        line |= metrics_of(self._sums, len(self.cloud), grows=False)
        self._log(line)
        self._sums = MetricSums()

    def measure(self, seconds: float = 0.0) -> PruneRound:
        """Return how good the scene is, on the training views and on the scored ones; ``seconds`` are the round's."""
        self._set_degree(max(0, self.step - 1))
        found = [(one.loss, one.metrics["psnr"]) for one in (self._guarded.gradient((view,)) for view in self._train)]
        loss, psnr = (sum(numbers) / len(found) for numbers in zip(*found, strict=True))
        self.scores = evaluate(self._objective, self._capture)
        return PruneRound(len(self.cloud), self.step, loss, psnr, self.scores.psnr, self.scores.ssim, seconds)

    # ------------------------------------------------------------------ one way back

    def checkpoint(self, stage: int) -> Checkpoint:
        """Return the scene and what it is repaired with, in copies.

        Args:
            stage: Position of the repair among the stages of the new run.
        """
        state = self._optimizer.state()
        tensors = {f"{CLOUD}{name}": value for name, value in self._objective.parameters.items()}
        tensors |= {f"{OPTIMIZER}{name}": value for name, value in state.tensors.items()}
        tensors |= {"sampler": self._sampler.state(), "generator": self._generator.get_state()}
        tensors |= {f"{POSES}{name}": value for name, value in self.poses.items()}
        scalars = {
            "seconds": self.seconds,
            "stage": stage,
            "optimizer": dict(state.scalars),
            "sums": MetricSums().to_json(),
            "resets": self._resets.to_json(),
        }
        if self._exposure is not None:  # which whoever goes on solves anew after a while
            tensors[f"{EXPOSURE}maps"] = self._exposure.maps
            scalars["exposure"] = {"seen": 0, "next": len(self._train)}
        return Checkpoint(self.step, {name: value.detach().clone() for name, value in tensors.items()}, scalars)

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Make the scene what it was when :meth:`checkpoint` was called; the seconds stay spent."""
        self.step = checkpoint.step
        self._bind(scene_of(checkpoint).clone())
        load_optimizer(self._optimizer, checkpoint)
        self._sampler.load_state(checkpoint.tensors["sampler"])
        self._generator.set_state(checkpoint.tensors["generator"])
        self._resets.load(checkpoint.scalars["resets"])
