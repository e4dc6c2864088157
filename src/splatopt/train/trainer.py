"""A training run in progress: its steps, and everything that keeps it from being lost."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence

import torch

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.core.checkpoint import Checkpoint
from splatopt.core.objective import Evaluation, Tensors
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.processes import LostProcessError, Processes
from splatopt.core.version import __version__
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.density.penalised import Penalised
from splatopt.density.strategy import StepTaken
from splatopt.raster.threads import quiet_torch
from splatopt.runs.events import Warned
from splatopt.runs.folder import MetricsLog, MetricSums, NoLog, RunFolder, write_json
from splatopt.runs.records import read_evaluation
from splatopt.runs.resumable import ResumableRun, is_due
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import points_file
from splatopt.scene.microbatches import ExhaustedError, is_exhaustion
from splatopt.scene.ply import save_ply
from splatopt.train.checkpoint_content import check_degree, check_training, scene_of
from splatopt.train.checkpointing import checkpoint_of, load_parts
from splatopt.train.coarse_to_fine import CoarseToFine
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores, evaluate, evaluation_record, scored_views, scores_before
from splatopt.train.events import Callback, Evaluated, Scoring, Started, Stepped
from splatopt.train.exposure import ExposureSolving, warn_of_see_through
from splatopt.train.finite_rows import FiniteRows, RowResets
from splatopt.train.growth import Growth, Surroundings, metrics_of, open_growth, warn_of_no_edits
from splatopt.train.machine import Machine
from splatopt.train.pacing import Pacing
from splatopt.train.plan import Decision
from splatopt.train.preflight import MemoryEstimate, check_memory
from splatopt.train.process_context import READ_AHEAD
from splatopt.train.refined_poses import open_refinement, write_poses
from splatopt.train.result import CheckpointError, TrainResult
from splatopt.train.sampler import ViewSampler
from splatopt.train.setup import make_objective, make_optimizer, starting_cloud, training_positions
from splatopt.train.stages import Stage, stage_at

_MAX_NAMES = 8
"""Views that a message names."""


class Trainer(ResumableRun):
    """One run in progress."""

    verb, command, examples, check = "training", "train", "views", check_training
    remedies = "smaller photographs (--downscale), fewer Gaussians, or an optimizer that keeps less"

    def __init__(
        self,
        config: TrainConfig,
        capture: Capture,
        machine: Machine,
        callbacks: tuple[Callback, ...],
        processes: Processes,
        pacing: Pacing,
    ) -> None:
        resumed = config.saving.resume
        super().__init__(RunFolder(config.folder), config.data.capture, callbacks, processes, resumed=resumed)
        self.machine = machine
        self.context, self.pacing = pacing.context, pacing
        self.needed: MemoryEstimate | None = None
        self.config = config
        self.stages = config.schedule.all_stages
        self.capture = capture
        self.renderer = machine.renderer
        self.generator = torch.Generator().manual_seed(config.schedule.seed)
        self.sampler = ViewSampler(tuple(capture.split.train), self.generator, training_positions(config, capture))
        self.sums = MetricSums()
        self.resets = RowResets(lambda sentence: self.tell(Warned(sentence)))
        self.growth: Growth | None = None
        self.before: Scores | None = None
        self.is_open = False
        self.is_noted = True
        self.looked_at_seconds = 0.0

    @property
    def parameters(self) -> Tensors:
        """The Gaussians."""
        return self.objective.parameters

    @property
    def planned(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].end

    # ------------------------------------------------------------------ begin

    def begin(self, checkpoint: Checkpoint | None) -> tuple[str, ...]:
        """Start anew, or go on from ``checkpoint``; checks everything, writes nothing and returns what to warn of."""
        warnings: list[str] = []
        if checkpoint is None:
            cloud = starting_cloud(self.config, self.capture, self.generator, warnings)
            self.config = self.pacing.begin(self.config, self.capture, cloud, self.renderer)
            self._bind(cloud)
            self._follow(self.pacing.decision)
            self._begin_stage(0)
        else:
            self.pacing.used_before = float(checkpoint.scalars.get("used", 0.0))
            self._restore(checkpoint)
            self.before = scores_before(read_evaluation(self.folder.evaluation))
        warnings += warn_of_see_through(self.config.scene.exposure, self.capture)
        warnings += warn_of_no_edits(self.config, self.planned)
        return (*warnings, *self._check_stages())

    def open_folder(self, checkpoint: Checkpoint | None) -> None:
        """Write what the run was told, and open its log behind ``checkpoint``."""
        if self.processes.is_first:
            if checkpoint is None:  # an older version's, in another frame, of a run that begins anew
                shutil.rmtree(self.folder.checkpoints / "step-000000", ignore_errors=True)
            self._write_settings()
        self.is_open = True
        self.log = MetricsLog(self.folder.metrics) if self.processes.is_first else NoLog()
        if self.growth is not None and self.processes.is_first:
            self.growth.log = MetricsLog(self.folder.density)
        if checkpoint is not None:
            self.saved = self.folder.checkpoints / f"step-{self.step:06d}"
            self.trim_logs()

    def _write_settings(self) -> None:
        """Write what the run was told, and what it has decided so far."""
        self.folder.write_config(self.config, __version__, trained_on := fingerprint_capture(self.capture))
        self.pacing.write(self.folder, trained_on)

    def _follow(self, decision: Decision | None) -> None:
        """Go on as a decision of the plan says, if there is one."""
        if decision is None:
            return
        self.config = decision.applied(self.config)
        self.stages = self.config.schedule.all_stages
        self.levels.replan(self.config.schedule.levels)
        if self.growth is not None:
            self.growth.follow(self.config.density)
        if self.is_open and self.processes.is_first:
            self._note_settings()

    def _note_settings(self) -> None:
        """Write what was decided; where the disk refuses, say so, and try again before the next checkpoint."""
        try:
            self._write_settings()
        except OSError as error:
            why = f"what the run has decided could not be written ({error.strerror})"
            self.tell(Warned(f"{why}; it goes on, and tries again before the next checkpoint"))
            self.is_noted = False
        else:
            self.is_noted = True

    @property
    def logs(self) -> tuple[MetricsLog | NoLog, ...]:
        """Metrics, and edits where a strategy is at work."""
        return (self.log,) if self.growth is None else (self.log, self.growth.log)

    def _bind(self, cloud: GaussianCloud) -> None:
        """Make the objective around ``cloud``, and what optimizers ask in its place."""
        if self.needed is None:
            self.needed = check_memory(self.config, self.capture, cloud, self.renderer, self.context)
        cloud = cloud.to(self.context.device)
        self.objective = make_objective(self.config, self.capture, cloud, self.renderer, self.context.images)
        views = self.capture.split.train
        self.exposure = ExposureSolving(self.config.scene.exposure, self.objective, views, self.processes)
        self.poses = open_refinement(self.config, self.objective, self.capture, self.processes)
        self.levels = CoarseToFine(self.config.schedule.levels, self.objective, self.capture, self.context)
        shared = self.context.guard(self.objective, lambda sentence: self.tell(Warned(sentence)))
        if not self.config.density.is_at_work:
            self.guarded = FiniteRows(shared)
            return
        penalised = Penalised(shared)
        self.guarded = FiniteRows(penalised)
        log = NoLog() if self.growth is None else self.growth.log
        around = Surroundings(self.context, self.needed.row_bytes, self.capture.frame, self.tell)
        self.growth = open_growth(self.config, views, self.objective, penalised, around, self.generator)
        self.growth.log = log

    def _begin_stage(self, position: int) -> None:
        """Start the optimizer of one stage anew."""
        self.position = position
        self.optimizer = self._make_optimizer(self.stage.optimizer, self.generator)

    @property
    def stage(self) -> Stage:
        """The stage at work."""
        return self.stages[self.position]

    def _make_optimizer(self, name: str, generator: torch.Generator) -> Optimizer:
        optimizer = make_optimizer(name, self.config, self.guarded, generator)
        optimizer.threads, optimizer.instructions = self.machine.threads, self.machine.instructions
        return optimizer

    def _check_stages(self) -> tuple[str, ...]:
        """Refuse before the first step what an optimizer of a later stage would refuse after hours."""
        aside = torch.Generator().manual_seed(self.config.schedule.seed)  # the run's is where the last step left it
        optimizers = {name: self._make_optimizer(name, aside) for name in self.config.schedule.optimizers}
        for optimizer in optimizers.values():
            optimizer.check_batch(tuple(self.capture.split.train))
        if self.config.schedule.views_a_step == 1 or any(one.batch_size is None for one in optimizers.values()):
            return ()
        return (f"--view-batch is not read by {' and '.join(optimizers)}, which takes views of its own number",)

    # ------------------------------------------------------------------ checkpoints

    def _checkpoint(self) -> Checkpoint:
        if not self.is_noted:  # a checkpoint is of no use without the decisions before it
            self._write_settings()
            self.is_noted = True
        return checkpoint_of(self)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was when ``checkpoint`` was written."""
        check_training(checkpoint)
        cloud = scene_of(checkpoint).clone()
        check_degree(cloud, self.config.scene.sh_degree, checkpoint.where)
        if self.needed is None:
            self.config = self.pacing.begin(self.config, self.capture, cloud, self.renderer)
        self._bind(cloud)
        self._follow(self.pacing.restore(checkpoint, len(cloud)))
        self._begin_stage(stage_at(self.stages, checkpoint.step))
        load_parts(self, checkpoint)
        self.over = self._is_over()
        # Last, so that nothing above draws from what the next step begins with.
        self.generator.set_state(checkpoint.tensors["generator"])

    @property
    def has_order(self) -> bool:
        """Whether a step sees fewer views than all."""
        wanted, count = self.optimizer.batch_size, len(self.capture.split.train)
        return 0 < (self.config.schedule.views_a_step if wanted is None else wanted) < count

    def _shuffle(self) -> None:
        self.sampler.shuffle()

    # ------------------------------------------------------------------ run

    def run(self) -> TrainResult:
        """Take the remaining steps and leave scene and scores."""
        config, views, device = self.config, len(self.capture.split.train), str(self.context.device)
        gaussians, world_size = len(self.objective.cloud), self.processes.world_size
        origin = points_file(config.scene.initialization, self.capture)
        found = tuple(str(one) for one in self.capture.found if one.used)
        self.tell(Started(config, self.step, gaussians, views, self.renderer.name, device, world_size, origin, found))
        try:
            self._check_alike()
            self.take_steps(quiet_torch(self.renderer))
            return self._finish()
        except KeyboardInterrupt:
            raise self.interrupted() from None
        except LostProcessError as error:
            raise self.lost() from error
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            needed = self.needed.sentence if self.needed else ""
            where = "over a single view " if isinstance(error, ExhaustedError) else "beside the views "
            raise self.exhausted(where, needed) from error
        finally:
            self.context.close()
            self.close()

    def _start(self) -> None:
        self.levels.begin(self.capture.split.test, self.sampler.upcoming(READ_AHEAD))
        began = self.pacing.used
        self.before = self._evaluate()
        self._write_scores(None)
        with self.levels.full_size():
            decision = self.pacing.measured(began, self.objective, self.capture.split.train[0])
        self._follow(decision)

    def _advance(self) -> None:
        """Take one step and whatever is due after it."""
        began = time.perf_counter()
        position, views = self.position, self._draw()
        self.levels.before_step(self.step, self.optimizer, self.growth, self.poses)
        self.context.expect(views, self.sampler.upcoming(READ_AHEAD))
        self._set_degree(self.step)
        self.exposure.before_step(len(views))
        progress = self.pacing.stage_progress(self.step, position, self.stage, self.config.schedule.horizon)
        if self.growth is not None:
            self.growth.before_step(self._whole_progress)
        self.poses.before_step(self._whole_progress)
        evaluation = self.optimizer.step(views, progress)
        problem = self._non_finite(evaluation, views) or self._mend_rows()
        self.guarded.forget()
        if problem:
            self.roll_back(problem)
            return
        self.step += 1
        self.poses.after_step()
        self._grow(progress, evaluation.loss)
        for notice in self.optimizer.warnings:
            self.tell(Warned(notice))
        self.optimizer.warnings.clear()
        self.sums.add(evaluation.loss, psnr := evaluation.metrics["psnr"])
        seconds = self.seconds + time.perf_counter() - began
        times = (seconds, self.saved_at_seconds, self.looked_at_seconds, self.pacing.used)
        self.seconds, self.saved_at_seconds, self.looked_at_seconds, used = self.context.seconds(*times)
        cloud = self.objective.cloud
        self._follow(self.pacing.after_step(self.step, len(cloud), used, evaluation.loss))
        self._after_step(evaluation)
        stage, left = self.stages[position], self.pacing.seconds_left
        self.tell(Stepped(self.step, self.planned, self.seconds, evaluation.loss, psnr, cloud, stage, left))

    def _mend_rows(self) -> str | None:
        """Let Gaussians that broke down in the step at hand begin anew, or remove them where a strategy is at work.

        Returns:
            What broke down as a whole.
        """
        growth, step = self.growth, self.step + 1
        remove = None if growth is None else lambda rows: growth.remove(rows, self.optimizer, step, self.sums)
        count, problem = self.resets.reset_broken(self.objective, self.optimizer, self.guarded, step, remove)
        self.sums.reset_rows += count if growth is None else 0
        return problem

    @property
    def _whole_progress(self) -> Progress:
        """Where the run stands over all stages."""
        return self.pacing.whole_progress(self.step, self.config.schedule.horizon or self.planned)

    def _grow(self, progress: Progress, loss: float) -> None:
        """Have the density strategy, where there is one, do what it wants after a step."""
        if self.growth is None:
            return
        taken = StepTaken(self._whole_progress, self.optimizer.position_rate(progress), loss)
        self.growth.after_step(taken, self.optimizer, self.sums, is_last=self.step >= self.planned)
        self.guarded.forget()

    def _draw(self) -> tuple[int, ...]:
        """Return the views of the next step: as many as its optimizer wants, or else the configuration."""
        wanted, views = self.optimizer.batch_size, self.config.schedule.views_a_step
        return self.sampler.draw(views) if wanted is None else self.sampler.draw_distinct(wanted)

    def _after_step(self, evaluation: Evaluation) -> None:
        saving, step, stage = self.config.saving, self.step, self.stage
        self.over = self._is_over()
        evaluation_due = self._is_evaluation_due() and not self.over
        if evaluation_due or is_due(step, saving.log_every) or step == stage.end or self.over:
            scores = self._evaluate() if evaluation_due else None
            self._log_line(evaluation, scores)
        if step == stage.end and not self.over:
            self._begin_stage(self.position + 1)
        at_once = step == stage.end or self.over
        if at_once or is_due(step, saving.checkpoint_every):
            self._check_alike()
        self.keep(saving.checkpoint_every, saving.checkpoint_seconds, at_once)

    def _check_alike(self) -> None:
        """Make sure that all processes are in the same state."""
        if self.processes.world_size > 1:
            self.context.check_alike(self._checkpoint().tensors, self.step)

    def _is_over(self) -> bool:
        """Whether all steps were taken, or the time is up."""
        return self.step >= self.planned or 0 < self.config.schedule.max_seconds <= self.seconds

    def _is_evaluation_due(self) -> bool:
        """Whether the held-out views are to be scored after this step; each time that was asked for comes once."""
        passed, self.looked_at_seconds = self.looked_at_seconds, self.seconds
        scoring, views = self.config.scoring, len(scored_views(self.capture))
        return scoring.is_due(self.step, self.planned, views) or scoring.is_due_by_time(passed, self.seconds)

    def _log_line(self, evaluation: Evaluation, scores: Scores | None) -> None:
        head = {"step": self.step, "optimizer": self.stage.optimizer, "seconds": round(self.seconds, 4)}
        tail = {name: value for name, value in evaluation.metrics.items() if name != "psnr"}
        tail |= {"test_psnr": scores.psnr, "test_ssim": scores.ssim} if scores else {}
        grows = self.growth is not None
        self.log.append({**head, **metrics_of(self.sums, len(self.objective.cloud), grows=grows), **tail})
        self.sums = MetricSums()

    def _non_finite(self, evaluation: Evaluation, views: Sequence[int]) -> str | None:
        broken = self.guarded.problem
        if broken is None and math.isfinite(evaluation.loss):
            return None
        names = [self.capture.cameras[view].name for view in views[:_MAX_NAMES]]
        more = f" and {len(views) - len(names)} more" if len(views) > len(names) else ""
        return f"{broken or f'the loss is {evaluation.loss}'} at step {self.step + 1} (view {', '.join(names)}{more})"

    def _set_degree(self, step: int) -> None:
        self.objective.sh_degree = self.config.scene.sh_degree_at(step)

    def _evaluate(self) -> Scores:
        """Score the held-out views as the last step rendered; its time is not counted."""
        self._set_degree(max(0, self.step - 1))
        with self.levels.full_size():
            found = self.context.scores(lambda: evaluate(self.objective, self.capture, lambda n: self.tell(Scoring(n))))
        self.tell(Evaluated(self.step, self.seconds, found, self.objective.cloud))
        return found

    def _write_scores(self, after: Scores | None) -> None:
        if not self.processes.is_first:
            return
        scored, count = (self.config, self.before, after), len(self.objective.cloud)
        record = evaluation_record(*scored, steps=self.step, seconds=self.seconds, gaussians=count)
        write_json(self.folder.evaluation, record)

    def _finish(self) -> TrainResult:
        (self.seconds,) = self.context.seconds(self.seconds)
        self._write_scores(after := self._evaluate())
        cloud = self.objective.cloud.in_world(self.capture.frame)
        if self.processes.is_first:
            save_ply(cloud, self.folder.scene)
        if self.save_failure and not self.saved:
            raise CheckpointError(
                f"training came to its end and left {self.folder.scene}, but no checkpoint could be written to "
                f"{self.folder.checkpoints} ({self.save_failure.strerror}); free some space on the disk"
            )
        return TrainResult(
            folder=self.folder.path,
            config=self.config,
            capture=self.capture.own or self.capture,
            frame=self.capture.frame,
            cloud=cloud,
            steps=self.step,
            seconds=self.seconds,
            before=self.before,
            after=after,
            cameras_moved=write_poses(self.folder, self.capture, self.poses),
        )
