"""The training loop: steps, and everything that keeps a run from being lost."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import splatopt.optim  # noqa: F401 - registers the optimizers
from splatopt import __version__
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, Tensors
from splatopt.core.optimizer import Optimizer, OptimizerState, Progress, find_optimizer
from splatopt.data import Capture
from splatopt.raster.renderer import Renderer
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import save_ply
from splatopt.train.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores, check_scorable, evaluate, evaluation_record
from splatopt.train.events import Callback, Ended, Evaluated, Event, Saved, Started, Stepped, Warned
from splatopt.train.folder import MetricsLog, MetricSums, RunFolder, read_json, write_json
from splatopt.train.guards import non_finite, quiet_torch, stop_requests
from splatopt.train.memory import resident_megabytes
from splatopt.train.program import program
from splatopt.train.sampler import ViewSampler
from splatopt.train.setup import (
    make_objective,
    open_capture,
    open_renderer,
    sh_degree_at,
    starting_cloud,
    training_positions,
)
from splatopt.train.stages import Stage, check_continues, stage_at

_MOST_NAMES = 8
"""Views that a message names."""

_CLOUD, _OPTIMIZER = "cloud.", "optimizer."


class InterruptedRunError(KeyboardInterrupt):
    """A run was stopped by hand; the message says at which step, and how to go on."""


class NonFiniteError(InputError):
    """A gradient, a loss or a parameter became NaN or infinite for the second time in a run."""


class CheckpointError(InputError):
    """A run ended and not one checkpoint could be written."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        folder: The run's folder.
        config: What it was told, resolved.
        capture: What it was trained on.
        cloud: The trained scene.
        steps: Optimizer steps taken.
        seconds: Seconds of training, evaluation not counted.
        before: Scores before the first step.
        after: Scores at the end.
    """

    folder: Path
    config: TrainConfig
    capture: Capture
    cloud: GaussianCloud
    steps: int
    seconds: float
    before: Scores | None
    after: Scores


def train(
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    capture: Capture | None = None,
    renderer: Renderer | None = None,
) -> TrainResult:
    """Train a scene and leave a run's folder.

    Args:
        config: What to do.
        callbacks: Called with every event of the run.
        capture: Used in place of the one that ``config`` names; loaded from there when None.
        renderer: Used in place of the one that ``config`` names.

    Returns:
        The trained scene and its scores.

    Raises:
        InputError: Something that was given cannot be used, or the numbers broke down twice.
        InterruptedRunError: Ctrl-C or a request to terminate; a checkpoint was written.
    """
    warnings: list[str] = []
    checkpoint = None
    if config.resume:
        config, capture, checkpoint, warnings = _reopen(config, capture)
    else:
        if config.out is not None:
            RunFolder(config.folder).check_free()
        capture = capture or open_capture(config)
        config = config.resolved(capture.name, capture.background)
        RunFolder(config.folder).check_free()
    check_scorable(capture)
    trainer = _Trainer(config, capture, renderer or open_renderer(config), tuple(callbacks))
    trainer.begin(checkpoint)
    for warning in (*capture.warnings, *warnings):
        trainer.tell(Warned(warning))
    return trainer.run()


def _reopen(config: TrainConfig, capture: Capture | None) -> tuple[TrainConfig, Capture, Checkpoint | None, list[str]]:
    """Find the run that ``config`` wants to resume, and its last good checkpoint.

    A run that was stopped before its first checkpoint has done no step; it begins again, without one.
    """
    if config.out is None:
        capture = capture or open_capture(config)
        config = replace(config, out=config.resolved(capture.name, capture.background).out)
    folder = RunFolder(config.folder)
    saved = folder.read_config()
    resumed = config.resuming(saved)
    checkpoint, warnings = latest_checkpoint(folder.checkpoints)
    if checkpoint is not None and len(saved.plan) + len(resumed.plan) > 2:
        check_continues(resumed.plan, saved.plan, checkpoint.step)
    if checkpoint is None:
        if warnings or folder.has_progress:
            detail = f" ({warnings[0]})" if warnings else ""
            raise InputError(
                f"{folder.path} holds no checkpoint to resume from{detail}; start a new run with another --out"
            )
        warnings = [f"{folder.path} was stopped before its first checkpoint; it begins at step 0"]
    return resumed, capture or open_capture(resumed), checkpoint, warnings


class _Trainer:
    """One run in progress."""

    def __init__(
        self, config: TrainConfig, capture: Capture, renderer: Renderer, callbacks: tuple[Callback, ...]
    ) -> None:
        self.config = config
        self.plan = config.plan
        self.capture = capture
        self.renderer = renderer
        self.callbacks = callbacks
        self.folder = RunFolder(config.folder)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sampler = ViewSampler(tuple(capture.split.train), self.generator, training_positions(config, capture))
        self.step = 0
        self.seconds = 0.0
        self.sums = MetricSums()
        self.before: Scores | None = None
        self.rolled_back: str | None = None
        self.saved: Path | None = None
        self.save_failure: OSError | None = None
        self.saved_at_seconds = 0.0
        self.looked_at_seconds = 0.0
        self.over = False
        self.requests: list[int] = []
        self.whole = True

    def tell(self, event: Event) -> None:
        """Tell all callbacks; one that raises KeyboardInterrupt stops the run when the step is whole."""
        for callback in self.callbacks:
            try:
                callback(event)
            except KeyboardInterrupt:
                self.requests.append(signal.SIGINT)

    # ------------------------------------------------------------------ begin

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Start anew, or go on from ``checkpoint``; checks everything before it writes anything."""
        if checkpoint is None:
            self._bind(starting_cloud(self.config, self.capture, self.generator))
            self._begin_stage(0)
        else:
            self._restore(checkpoint)
            self.before = self._saved_scores()
        self._check_stages()
        self.folder.write_config(self.config, __version__)
        self.log = MetricsLog(self.folder.metrics)
        if checkpoint is not None:
            self.saved = self.folder.checkpoints / f"step-{self.step:06d}"
            self.log.trim(self.step)

    def _bind(self, cloud: GaussianCloud) -> None:
        """Make the objective around ``cloud``."""
        self.objective = make_objective(self.config, self.capture, cloud, self.renderer)

    def _begin_stage(self, position: int) -> None:
        """Start the optimizer of one stage anew."""
        self.position = position
        self.optimizer = self._make_optimizer(self.stage.optimizer)

    @property
    def stage(self) -> Stage:
        """The stage at work."""
        return self.plan[self.position]

    def _make_optimizer(self, name: str) -> Optimizer:
        entry = find_optimizer(name)
        optimizer = entry.optimizer(self.objective, self.config.options_by_name[name], self.generator)
        optimizer.threads = self.config.threads
        return optimizer

    def _check_stages(self) -> None:
        """Refuse before the first step what an optimizer of a later stage would refuse after hours."""
        for name in self.config.optimizers:
            self._make_optimizer(name).check_batch(tuple(self.capture.split.train))

    def _saved_scores(self) -> Scores | None:
        """Scores from before the first step, as a resumed run finds them."""
        record = read_json(self.folder.evaluation)
        if not record.get("before"):
            return None
        return Scores.from_json(record["before"], record.get("split", ""), record.get("subset", ""))

    # ------------------------------------------------------------------ checkpoints

    def _checkpoint(self) -> Checkpoint:
        state = self.optimizer.state()
        tensors = {f"{_CLOUD}{name}": value for name, value in self.objective.parameters.items()}
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in state.tensors.items()}
        tensors |= {"sampler": self.sampler.state(), "generator": self.generator.get_state()}
        scalars = {
            "seconds": self.seconds,
            "stage": self.position,
            "optimizer": dict(state.scalars),
            "sums": self.sums.to_json(),
        }
        return Checkpoint(self.step, tensors, scalars)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was when ``checkpoint`` was written."""
        try:
            tensors, scalars = checkpoint.tensors, checkpoint.scalars
            self._bind(GaussianCloud(**_below(tensors, _CLOUD)).clone())
            self._begin_stage(stage_at(self.plan, checkpoint.step))
            # A run that had come to its end may go on with another stage, which starts anew.
            if self.position == scalars.get("stage", 0):
                self.optimizer.load_state(OptimizerState(_below(tensors, _OPTIMIZER), scalars["optimizer"]))
            self.sampler.load_state(tensors["sampler"])
            self.generator.set_state(tensors["generator"])
            self.step = checkpoint.step
            self.seconds = self.saved_at_seconds = self.looked_at_seconds = scalars["seconds"]
            self.sums = MetricSums(**scalars["sums"])
            self.over = self._is_over()
        except (KeyError, TypeError) as error:
            raise InputError(f"the checkpoint of step {checkpoint.step} lacks {error}; start a new run") from error

    def _save(self) -> None:
        """Write a checkpoint; where the disk refuses, warn and go on with the ones from before."""
        self.log.sync()
        try:
            self.saved = save_checkpoint(self.folder.checkpoints, self._checkpoint())
        except OSError as error:
            self.save_failure = error
            failure = f"the checkpoint of step {self.step} could not be written ({error.strerror})"
            self.tell(Warned(f"{failure}; {self._kept()}"))
        else:
            self.save_failure = None
            self.tell(Saved(self.step, self.saved))
        self.saved_at_seconds = self.seconds

    def _kept(self) -> str:
        if self.saved:
            return f"training goes on, and {self.saved.name} is kept"
        return "training goes on without any checkpoint; free some space on the disk"

    def _roll_back(self, problem: str) -> None:
        """Go back to the last good checkpoint once; stop with the facts the second time."""
        if self.rolled_back:
            raise NonFiniteError(
                f"training stopped: {problem}, after it had already gone back once ({self.rolled_back}); "
                f"the last good checkpoint is kept in {self.folder.checkpoints}; lower the optimizer's rates"
            )
        checkpoint, _ = latest_checkpoint(self.folder.checkpoints)
        if checkpoint is None:
            raise NonFiniteError(f"training stopped: {problem}, and there is no checkpoint to go back to")
        self.rolled_back = problem
        spent = self.seconds
        self._restore(checkpoint)
        self.seconds = self.saved_at_seconds = spent
        self.sampler.shuffle()
        self.log.trim(self.step)
        self.tell(Warned(f"{problem}; went back to the checkpoint of step {self.step}, with a new order of views"))

    # ------------------------------------------------------------------ run

    def run(self) -> TrainResult:
        """Take the remaining steps and leave scene and scores."""
        config = self.config
        self.tell(
            Started(config, self.step, len(self.objective.cloud), len(self.capture.split.train), self.renderer.name)
        )
        try:
            with stop_requests(self.requests), quiet_torch(self.renderer):
                if self.step == 0:
                    self.before = self._evaluate()
                    self._write_scores(None)
                    self._save()
                while not self.over and not self.requests:
                    self.whole = False
                    self._advance()
                    self.whole = True
                if self.requests:
                    raise KeyboardInterrupt
                return self._finish()
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            self.log.close()
            self.tell(Ended())

    def _advance(self) -> None:
        """Take one step and whatever is due after it."""
        began = time.perf_counter()
        stage = self.stage
        views = self._draw()
        self._set_degree(self.step)
        evaluation = self.optimizer.step(views, Progress(self.step - stage.begin, self.config.horizon or stage.steps))
        problem = self._non_finite(evaluation, views)
        if problem:
            self._roll_back(problem)
            return
        self.step += 1
        psnr = evaluation.facts["psnr"]
        self.sums.add(evaluation.loss, psnr)
        self.seconds += time.perf_counter() - began
        self._after_step(evaluation)
        self.tell(
            Stepped(self.step, self.plan[-1].end, self.seconds, evaluation.loss, psnr, self.objective.cloud, stage)
        )

    def _draw(self) -> tuple[int, ...]:
        """Return the views of the next step: as many as its optimizer wants, or else the configuration."""
        wanted = self.optimizer.batch_size
        return self.sampler.draw(self.config.view_batch) if wanted is None else self.sampler.draw_distinct(wanted)

    def _after_step(self, evaluation: Evaluation) -> None:
        config, step, stage = self.config, self.step, self.stage
        self.over = self._is_over()
        evaluation_due = self._is_evaluation_due() and not self.over
        if evaluation_due or _is_due(step, config.log_every) or step == stage.end or self.over:
            scores = self._evaluate() if evaluation_due else None
            self._log_line(evaluation, scores)
        if step == stage.end and not self.over:
            self._begin_stage(self.position + 1)
        began = time.perf_counter()
        late = 0 < config.checkpoint_seconds <= self.seconds - self.saved_at_seconds
        if _is_due(step, config.checkpoint_every) or late or step == stage.end or self.over:
            broken = non_finite("parameter", self.objective.parameters)
            if broken:
                self._roll_back(f"{broken} after step {step}")
            else:
                self._save()
        self.seconds += time.perf_counter() - began

    def _is_over(self) -> bool:
        """Whether all steps were taken, or the time is up."""
        return self.step >= self.plan[-1].end or 0 < self.config.max_seconds <= self.seconds

    def _is_evaluation_due(self) -> bool:
        """Whether the held-out views are to be scored after this step; each time that was asked for comes once."""
        passed, self.looked_at_seconds = self.looked_at_seconds, self.seconds
        return (
            _is_due(self.step, self.config.eval_every)
            or self.step in self.config.eval_at
            or any(passed < moment <= self.seconds for moment in self.config.eval_at_seconds)
        )

    def _log_line(self, evaluation: Evaluation, scores: Scores | None) -> None:
        line = {
            "step": self.step,
            "optimizer": self.stage.optimizer,
            "seconds": round(self.seconds, 4),
            "loss": self.sums.loss / self.sums.count,
            "psnr": self.sums.psnr / self.sums.count,
            "gaussians": len(self.objective.cloud),
            "memory_mb": round(resident_megabytes(), 1),
        }
        line |= {name: value for name, value in evaluation.facts.items() if name != "psnr"}
        if scores:
            line |= {"test_psnr": scores.psnr, "test_ssim": scores.ssim}
        self.log.append(line)
        self.sums = MetricSums()

    def _non_finite(self, evaluation: Evaluation, views: Sequence[int]) -> str | None:
        broken = non_finite("gradient of", evaluation.gradient)
        if broken is None and math.isfinite(evaluation.loss):
            return None
        names = [self.capture.cameras[view].name for view in views[:_MOST_NAMES]]
        more = f" and {len(views) - len(names)} more" if len(views) > len(names) else ""
        where = f"step {self.step + 1} (view {', '.join(names)}{more})"
        return f"{broken or f'the loss is {evaluation.loss}'} at {where}"

    def _set_degree(self, step: int) -> None:
        degree = sh_degree_at(self.config, step)
        if self.objective.sh_degree != degree:
            self.objective.sh_degree = degree

    def _evaluate(self) -> Scores:
        """Score the held-out views as the last step rendered; its time is not counted."""
        self._set_degree(max(0, self.step - 1))
        scores = evaluate(self.objective, self.capture)
        self.tell(Evaluated(self.step, self.seconds, scores, self.objective.cloud))
        return scores

    def _write_scores(self, after: Scores | None) -> None:
        record = evaluation_record(
            self.before, after, steps=self.step, seconds=self.seconds, gaussians=len(self.objective.cloud)
        )
        write_json(self.folder.evaluation, record)

    def _finish(self) -> TrainResult:
        after = self._evaluate()
        self._write_scores(after)
        save_ply(self.objective.cloud, self.folder.scene)
        if self.save_failure and not self.saved:
            raise CheckpointError(
                f"training came to its end and left {self.folder.scene}, but no checkpoint could be written to "
                f"{self.folder.checkpoints} ({self.save_failure.strerror}); free some space on the disk"
            )
        return TrainResult(
            folder=self.folder.path,
            config=self.config,
            capture=self.capture,
            cloud=self.objective.cloud,
            steps=self.step,
            seconds=self.seconds,
            before=self.before,
            after=after,
        )

    def _interrupted(self) -> InterruptedRunError:
        """Keep what can be kept and say how to go on."""
        if self.whole and non_finite("parameter", self.objective.parameters) is None:
            self._save()
        if self.saved is None:
            return InterruptedRunError(f"stopped at step {self.step}, before there was a checkpoint to go on from")
        capture, out = shlex.quote(self.config.capture), shlex.quote(str(self.folder.path))
        return InterruptedRunError(
            f"stopped at step {self.step} of {self.plan[-1].end}, {self.saved.name} is kept; "
            f"go on with: {program()} train {capture} --out {out} --resume"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
