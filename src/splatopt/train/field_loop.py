"""The loop that fits a field: the same run folder, checkpoints and promises as for scenes."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from splatopt import __version__
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation
from splatopt.core.optimizer import OptimizerState, Progress
from splatopt.fields.radiance import RadianceTask
from splatopt.fields.task import Task
from splatopt.optim.field_optimizers import find_field_optimizer, make_field_optimizer
from splatopt.train.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from splatopt.train.events import Ended, Saved, Warned
from splatopt.train.field_config import TASK_DEFAULTS, FitConfig
from splatopt.train.field_events import FitCallback, FitEvent, FitScored, FitStarted, FitStepped
from splatopt.train.field_results import write_results
from splatopt.train.field_sampler import ExampleSampler
from splatopt.train.field_setup import open_task
from splatopt.train.folder import FIELD_FORMAT, MetricsLog, RunFolder, read_json, write_json
from splatopt.train.guards import non_finite, stop_requests
from splatopt.train.loop import InterruptedRunError, NonFiniteError
from splatopt.train.memory import resident_megabytes
from splatopt.train.program import program

_FIELD, _OPTIMIZER = "field.", "optimizer."


@dataclass(frozen=True)
class FitResult:
    """What a finished fit leaves.

    Attributes:
        folder: The run's folder.
        config: What it was told, resolved.
        task: What was fitted; its ``module`` is the field.
        steps: Optimizer steps taken.
        seconds: Seconds of training, scores not counted.
        before: Scores before the first step.
        after: Scores at the end.
    """

    folder: Path
    config: FitConfig
    task: Task
    steps: int
    seconds: float
    before: Mapping[str, float] | None
    after: Mapping[str, float]


def fit_field(config: FitConfig, callbacks: Sequence[FitCallback] = (), *, task: Task | None = None) -> FitResult:
    """Fit a field and leave a run's folder.

    Args:
        config: What to do.
        callbacks: Called with every event of the run.
        task: Used in place of the one that ``config`` names; opened from there when None.

    Returns:
        The field and its scores.

    Raises:
        InputError: Something that was given cannot be used, or the numbers broke down twice.
        InterruptedRunError: Ctrl-C or a request to terminate; a checkpoint was written.
    """
    checkpoint: Checkpoint | None = None
    warnings: list[str] = []
    if config.resume:
        config, checkpoint, warnings = _reopen(config)
    else:
        config = config.resolved()
        RunFolder(config.folder, FIELD_FORMAT).check_free()
    with _threads(config.threads):
        fitter = _Fitter(config, tuple(callbacks), task)
        fitter.begin(checkpoint)
        for warning in (*fitter.warnings, *warnings):
            fitter.tell(Warned(warning))
        return fitter.run()


def open_field(folder: Path | str) -> tuple[FitConfig, Task, int]:
    """Open the fit in ``folder``: its configuration, its task with the field as trained, and the steps it has seen.

    Raises:
        InputError: There is no fit, its target is gone, or it holds no checkpoint.
    """
    run = RunFolder(Path(folder), FIELD_FORMAT)
    config = replace(FitConfig.from_json(run.read_settings(), str(run.config)), out=run.path)
    checkpoint, _ = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise InputError(f"{run.path} holds no whole checkpoint; fit it first")
    task, _ = open_task(config, torch.Generator().manual_seed(config.seed))
    _load_field(task, checkpoint)
    return config, task, checkpoint.step


def _reopen(config: FitConfig) -> tuple[FitConfig, Checkpoint | None, list[str]]:
    """Find the run that ``config`` wants to resume, and its last good checkpoint."""
    folder = RunFolder(config.resolved().folder, FIELD_FORMAT)
    saved = replace(FitConfig.from_json(folder.read_settings(), str(folder.config)), out=folder.path)
    resumed = replace(config, out=folder.path).resuming(saved)
    checkpoint, warnings = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if warnings or folder.has_progress:
            detail = f" ({warnings[0]})" if warnings else ""
            raise InputError(
                f"{folder.path} holds no checkpoint to resume from{detail}; start a new run with another --out"
            )
        warnings = [f"{folder.path} was stopped before its first checkpoint; it begins at step 0"]
    return resumed.resolved(), checkpoint, warnings


class _Fitter:
    """One fit in progress."""

    def __init__(self, config: FitConfig, callbacks: tuple[FitCallback, ...], task: Task | None) -> None:
        self.config, self.callbacks = config, callbacks
        self.folder = RunFolder(config.folder, FIELD_FORMAT)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.task, self.warnings = (task, ()) if task else open_task(config, self.generator)
        self.sampler = ExampleSampler(self.task.size, self._batch(), self.generator)
        self.optimizer = make_field_optimizer(
            config.optimizer, self.task, config.field, config.optimizer_options, self.generator
        )
        self.steps = config.steps or (config.epochs or 1) * self.sampler.per_epoch
        self.step, self.seconds, self.saved_at_seconds = 0, 0.0, 0.0
        self.loss_sum, self.loss_count = 0.0, 0
        self.before: Mapping[str, float] | None = None
        self.rolled_back: str | None = None
        self.saved: Path | None = None
        self.requests: list[int] = []
        self.whole = True

    def _batch(self) -> int:
        """Examples a step."""
        if not find_field_optimizer(self.config.optimizer).full_batch:
            return self.config.batch or TASK_DEFAULTS[self.config.task].batch
        if isinstance(self.task, RadianceTask):
            raise InputError(
                f"{self.config.optimizer} needs all examples in one batch, and the {self.task.size:,} rays of a "
                f"capture are too many; take another optimizer"
            )
        return self.task.size

    def _eval_every(self) -> int:
        if self.config.eval_every is not None:
            return self.config.eval_every
        if isinstance(self.task, RadianceTask):
            return max(1, self.steps // 5)
        return 10 * self.sampler.per_epoch

    def tell(self, event: FitEvent) -> None:
        """Tell all callbacks; one that raises KeyboardInterrupt stops the run when the step is whole."""
        for callback in self.callbacks:
            try:
                callback(event)
            except KeyboardInterrupt:
                self.requests.append(signal.SIGINT)

    # ------------------------------------------------------------------ checkpoints

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Start anew, or go on from ``checkpoint``; checks everything before it writes anything."""
        if checkpoint is not None:
            self._restore(checkpoint)
            self.saved = self.folder.checkpoints / f"step-{self.step:06d}"
            self.before = read_json(self.folder.evaluation).get("before")
        self.folder.write_config(self.config, __version__)
        self.log = MetricsLog(self.folder.metrics)
        if checkpoint is not None:
            self.log.trim(self.step)

    def _checkpoint(self) -> Checkpoint:
        state = self.optimizer.state()
        tensors = {f"{_FIELD}{name}": value for name, value in self.task.parameters.items()}
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in state.tensors.items()}
        tensors["generator"] = self.generator.get_state()
        scalars = {
            "seconds": self.seconds,
            "optimizer": dict(state.scalars),
            "sampler": self.sampler.state(),
            "loss": [self.loss_sum, self.loss_count],
        }
        return Checkpoint(self.step, tensors, scalars)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was when ``checkpoint`` was written."""
        try:
            tensors, scalars = checkpoint.tensors, checkpoint.scalars
            _load_field(self.task, checkpoint)
            kept = {name[len(_OPTIMIZER) :]: value for name, value in tensors.items() if name.startswith(_OPTIMIZER)}
            self.optimizer.load_state(OptimizerState(kept, scalars["optimizer"]))
            self.generator.set_state(tensors["generator"])
            self.sampler.load_state(scalars["sampler"])
            self.step, self.seconds = checkpoint.step, scalars["seconds"]
            self.saved_at_seconds = self.seconds
            self.loss_sum, self.loss_count = scalars["loss"]
        except (KeyError, TypeError) as error:
            raise InputError(f"the checkpoint of step {checkpoint.step} lacks {error}; start a new run") from error

    def _save(self) -> None:
        """Write a checkpoint; where the disk refuses, warn and go on with the ones from before."""
        self.log.sync()
        try:
            self.saved = save_checkpoint(self.folder.checkpoints, self._checkpoint())
        except OSError as error:
            kept = f"{self.saved.name} is kept" if self.saved else "there is none before it"
            failure = f"the checkpoint of step {self.step} could not be written ({error.strerror})"
            self.tell(Warned(f"{failure}; fitting goes on, and {kept}"))
        else:
            self.tell(Saved(self.step, self.saved))
        self.saved_at_seconds = self.seconds

    def _roll_back(self, problem: str) -> None:
        """Go back to the last good checkpoint once; stop with the facts the second time."""
        checkpoint, _ = latest_checkpoint(self.folder.checkpoints)
        if self.rolled_back or checkpoint is None:
            again = f", after it had already gone back once ({self.rolled_back})" if self.rolled_back else ""
            raise NonFiniteError(
                f"fitting stopped: {problem}{again}; the last good checkpoint is kept in {self.folder.checkpoints}; "
                f"lower the optimizer's rate"
            )
        self.rolled_back = problem
        spent = self.seconds
        self._restore(checkpoint)
        self.seconds = self.saved_at_seconds = spent
        self.sampler.shuffle()
        self.log.trim(self.step)
        self.tell(Warned(f"{problem}; went back to the checkpoint of step {self.step}, with a new order of examples"))

    # ------------------------------------------------------------------ run

    def run(self) -> FitResult:
        """Take the remaining steps and leave scores and pictures."""
        count = sum(value.numel() for value in self.task.parameters.values())
        self.tell(FitStarted(self.config, self.step, self.steps, self.task.size, count))
        try:
            with stop_requests(self.requests):
                if self.step == 0:
                    self.before = self._score()
                    self._write_scores(None)
                    self._save()
                while self.step < self.steps and not self.requests:
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
        batch = self.task.draw(self.sampler.draw(), self.generator)
        evaluation = self.optimizer.step(batch, Progress(self.step, self.steps))
        problem = self._non_finite(evaluation)
        if problem:
            self._roll_back(problem)
            return
        self.step += 1
        self.loss_sum += evaluation.loss
        self.loss_count += 1
        self.seconds += time.perf_counter() - began
        self._after_step()
        self.tell(FitStepped(self.step, self.steps, self.seconds, evaluation.loss, evaluation.facts))

    def _after_step(self) -> None:
        last = self.step == self.steps
        scored = _is_due(self.step, self._eval_every()) and not last
        if scored or last or _is_due(self.step, self.config.log_every):
            self._log_line(self._score() if scored else {})
        began = time.perf_counter()
        late = 0 < self.config.checkpoint_seconds <= self.seconds - self.saved_at_seconds
        if late or last:
            broken = non_finite("parameter", self.task.parameters)
            if broken:
                self._roll_back(f"{broken} after step {self.step}")
            else:
                self._save()
        self.seconds += time.perf_counter() - began

    def _log_line(self, scores: Mapping[str, float]) -> None:
        loss = self.loss_sum / self.loss_count
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.sampler.per_epoch, 4),
            "seconds": round(self.seconds, 4),
            "loss": loss,
            "memory_mb": round(resident_megabytes(), 1),
        }
        line |= self.task.facts(loss)
        self.log.append(line | {f"score_{name}": value for name, value in scores.items()})
        self.loss_sum, self.loss_count = 0.0, 0

    def _non_finite(self, evaluation: Evaluation) -> str | None:
        broken = non_finite("gradient of", evaluation.gradient)
        if broken is None and math.isfinite(evaluation.loss):
            return None
        return f"{broken or f'the loss is {evaluation.loss}'} at step {self.step + 1}"

    def _score(self) -> Mapping[str, float]:
        """Score the field as it is; its time is not counted."""
        scores = self.task.score()
        self.tell(FitScored(self.step, scores))
        return scores

    def _write_scores(self, after: Mapping[str, float] | None) -> None:
        record: dict[str, Any] = {"task": self.config.task.value, "steps": self.step, "seconds": self.seconds}
        write_json(self.folder.evaluation, record | dict(after or {}) | {"before": self.before})

    def _finish(self) -> FitResult:
        after = self._score()
        self._write_scores(after)
        write_results(self.folder.path, self.config, self.task)
        config, task = self.config, self.task
        return FitResult(self.folder.path, config, task, self.step, self.seconds, self.before, after)

    def _interrupted(self) -> InterruptedRunError:
        """Keep what can be kept and say how to go on."""
        if self.whole and non_finite("parameter", self.task.parameters) is None:
            self._save()
        if self.saved is None:
            return InterruptedRunError(f"stopped at step {self.step}, before there was a checkpoint to go on from")
        target, out = shlex.quote(self.config.target), shlex.quote(str(self.folder.path))
        return InterruptedRunError(
            f"stopped at step {self.step} of {self.steps}, {self.saved.name} is kept; "
            f"go on with: {program()} fit {target} --out {out} --resume"
        )


def _load_field(task: Task, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's parameters into the task's field; raises InputError where they do not fit."""
    for name, value in task.parameters.items():
        kept = checkpoint.tensors.get(f"{_FIELD}{name}")
        if kept is None or kept.shape != value.shape:
            raise InputError(f"the checkpoint's field differs from the configuration's at {name}; start a new run")
        value.copy_(kept)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch work on so many threads; 0 leaves its own choice."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
