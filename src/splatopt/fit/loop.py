"""The loop that fits a field: the same run folder, checkpoints and promises as for scenes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from splatopt.core.checkpoint import Checkpoint, latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, Tensors
from splatopt.core.optimizer import Progress
from splatopt.core.version import __version__
from splatopt.fields.radiance import RadianceTask
from splatopt.fields.task import Task
from splatopt.fit.checkpoint_content import FIELD, check_fit, load_field
from splatopt.fit.config import TASK_DEFAULTS, FitConfig
from splatopt.fit.events import FitCallback, FitScored, FitStarted, FitStepped
from splatopt.fit.preflight import check_field_memory
from splatopt.fit.results import write_results
from splatopt.fit.sampler import ExampleSampler
from splatopt.fit.setup import OpenedTask, open_task
from splatopt.optim.field_optimizers import find_field_optimizer, make_field_optimizer
from splatopt.runs.checkpoint_content import OPTIMIZER, load_optimizer
from splatopt.runs.events import Warned
from splatopt.runs.finite_checks import non_finite
from splatopt.runs.folder import FIELD_FORMAT, MetricsLog, RunFolder, write_json
from splatopt.runs.memory import resident_megabytes
from splatopt.runs.plugins import load_again, plugins_missing, recorded_plugins
from splatopt.runs.records import read_evaluation
from splatopt.runs.resumable import ResumableRun, checkpoint_to_resume, is_due
from splatopt.runs.trained_on import check_resumed, check_unchanged
from splatopt.scene.microbatches import is_exhaustion


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
        OutOfMemoryError: Memory ran out; the last checkpoint is kept.
    """
    checkpoint: Checkpoint | None = None
    warnings: list[str] = []
    if config.saving.resume:
        config, checkpoint, warnings = _reopen(config)
    else:
        config = config.resolved()
        RunFolder(config.folder, FIELD_FORMAT).check_free()
    with _threads(config.processes.threads):
        fitter = _Fitter(config, tuple(callbacks), task)
        if config.saving.resume and fitter.trained_on:
            warnings += check_resumed(fitter.folder, config.data.target, fitter.trained_on)
        with fitter.keep_others_out():
            fitter.begin(checkpoint)
            for warning in (*fitter.warnings, *warnings):
                fitter.tell(Warned(warning))
            return fitter.run()


def open_field(folder: Path | str) -> tuple[FitConfig, Task, int]:
    """Open the fit in ``folder``: its configuration, its task with the field as trained, and the steps it has seen.

    Raises:
        InputError: There is no fit, its target is gone or another one, or it holds no checkpoint.
    """
    run = RunFolder(Path(folder), FIELD_FORMAT)
    config = FitConfig.read(run).resolved()
    run.sweep_if_idle()
    checkpoint, damages = latest_checkpoint(run.checkpoints, check_fit)
    if checkpoint is None:
        detail = f" ({damages[0]})" if damages else ""
        raise InputError(f"{run.path} holds no whole checkpoint{detail}; fit it first")
    try:
        opened = open_task(config, torch.Generator().manual_seed(config.schedule.seed))
    except InputError as error:
        missing = plugins_missing(config.processes.plugins)
        raise InputError(f"{error}{missing}") if missing else error from None
    check_unchanged(run, config.data.target, opened.fingerprint, "its scores and pictures")
    load_field(opened.task, checkpoint)
    return config, opened.task, checkpoint.step


def _reopen(config: FitConfig) -> tuple[FitConfig, Checkpoint | None, list[str]]:
    """Find the run that ``config`` wants to resume, and its last good checkpoint."""
    folder = RunFolder(config.resolved().folder, FIELD_FORMAT)
    again = load_again(recorded_plugins(folder), f"the run in {folder.path}")
    saved = FitConfig.read(folder).changed(plugins=again.plugins)
    saved.check_known(str(folder.config))
    folder.check_idle()
    resumed = config.changed(out=folder.path).resuming(saved)
    checkpoint, warnings = checkpoint_to_resume(folder, check_fit)
    warnings += again.warnings
    return resumed.resolved(), checkpoint, warnings


class _Fitter(ResumableRun):
    """One fit in progress."""

    verb, command, examples, check = "fitting", "fit", "examples", check_fit
    remedies = "a smaller --batch, a smaller --width, or an optimizer that keeps less"

    def __init__(self, config: FitConfig, callbacks: tuple[FitCallback, ...], task: Task | None) -> None:
        super().__init__(
            RunFolder(config.folder, FIELD_FORMAT), config.data.target, callbacks, resumed=config.saving.resume
        )
        self.config = config
        self.generator = torch.Generator().manual_seed(config.schedule.seed)
        opened = OpenedTask(task, {}) if task else open_task(config, self.generator)
        self.task, self.warnings, self.trained_on = opened.task, opened.warnings, opened.fingerprint
        self.sampler = ExampleSampler(self.task.size, self._batch(), self.generator)
        self.optimizer = make_field_optimizer(
            config.schedule.optimizer,
            self.task,
            config.network.field,
            config.schedule.optimizer_options,
            self.generator,
        )
        self.steps = config.schedule.steps or (config.schedule.epochs or 1) * self.sampler.per_epoch
        self.loss_sum, self.loss_count = 0.0, 0
        self.before: Mapping[str, float] | None = None
        self.scored: tuple[int, Mapping[str, float]] | None = None
        # Before anything is written.
        self.needed = check_field_memory(self.config, self.task, self.sampler.batch)

    @property
    def parameters(self) -> Tensors:
        """The field's."""
        return self.task.parameters

    @property
    def planned(self) -> int:
        """Steps of all epochs."""
        return self.steps

    def _batch(self) -> int:
        """Examples a step."""
        optimizer, batch = self.config.schedule.optimizer, self.config.schedule.batch
        if not find_field_optimizer(optimizer).full_batch:
            return batch or TASK_DEFAULTS[self.config.data.task].batch
        if isinstance(self.task, RadianceTask):
            raise InputError(
                f"{optimizer} needs all examples in one batch, and the {self.task.size:,} rays of a "
                f"capture are too many; take another optimizer"
            )
        # Autograd keeps what each layer is made of and makes: some three numbers for each feature of each example.
        needed = 12 * self.task.size * self.config.network.width * (self.config.network.depth + 1)
        free = psutil.virtual_memory().available
        if needed > free:
            raise InputError(
                f"{optimizer} needs all {self.task.size:,} examples in one batch, about "
                f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; make them fewer with --max-side or "
                f"--points, or take another optimizer"
            )
        return self.task.size

    def _eval_every(self) -> int:
        if self.config.scoring.eval_every is not None:
            return self.config.scoring.eval_every
        if isinstance(self.task, RadianceTask):
            return max(1, self.steps // 5)
        return 10 * self.sampler.per_epoch

    # ------------------------------------------------------------------ checkpoints

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Start anew, or go on from ``checkpoint``; checks everything before it writes anything."""
        if checkpoint is not None:
            self._restore(checkpoint)
            self.saved = self.folder.checkpoints / f"step-{self.step:06d}"
            self.before = read_evaluation(self.folder.evaluation).get("before")
        self.folder.write_config(self.config, __version__, self.trained_on or None)
        self.log = MetricsLog(self.folder.metrics)
        if checkpoint is not None:
            self.log.trim(self.step)

    def _checkpoint(self) -> Checkpoint:
        state = self.optimizer.state()
        tensors = {f"{FIELD}{name}": value for name, value in self.task.parameters.items()}
        tensors |= {f"{OPTIMIZER}{name}": value for name, value in state.tensors.items()}
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
        check_fit(checkpoint)
        scalars = checkpoint.scalars
        load_field(self.task, checkpoint)
        load_optimizer(self.optimizer, checkpoint)
        self.sampler.load_state(scalars["sampler"])
        self.step, self.seconds, self.scored = checkpoint.step, scalars["seconds"], None
        self.saved_at_seconds = self.seconds
        self.loss_sum, self.loss_count = scalars["loss"]
        self.over = self.step >= self.steps
        # Last, so that nothing above draws from what the next step begins with.
        self.generator.set_state(checkpoint.tensors["generator"])

    def _shuffle(self) -> None:
        self.sampler.shuffle()

    @property
    def has_order(self) -> bool:
        """Whether a batch is less than everything."""
        return self.sampler.per_epoch > 1

    # ------------------------------------------------------------------ run

    def run(self) -> FitResult:
        """Take the remaining steps and leave scores and pictures."""
        count = sum(value.numel() for value in self.task.parameters.values())
        self.tell(FitStarted(self.config, self.step, self.steps, self.task.size, count))
        try:
            self.take_steps(nullcontext())
            return self._finish()
        except KeyboardInterrupt:
            raise self.interrupted() from None
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            raise self.exhausted("", self.needed.sentence) from error
        finally:
            self.close()

    def _start(self) -> None:
        self.before = self._score()
        self._write_scores(None)

    def _advance(self) -> None:
        """Take one step and whatever is due after it."""
        began = time.perf_counter()
        batch = self.task.draw(self.sampler.draw(), self.generator)
        evaluation = self.optimizer.step(batch, Progress(self.step, self.steps))
        problem = self._non_finite(evaluation)
        if problem:
            self.roll_back(problem)
            return
        self.step += 1
        self.loss_sum += evaluation.loss
        self.loss_count += 1
        self.seconds += time.perf_counter() - began
        self._after_step()
        self.tell(FitStepped(self.step, self.steps, self.seconds, evaluation.loss, evaluation.metrics))

    def _after_step(self) -> None:
        self.over = self.step >= self.steps
        due = is_due(self.step, self._eval_every()) or self.step in self.config.scoring.eval_at
        scores: Mapping[str, float] = {}
        if due or self.over:
            broken = non_finite("parameter", self.parameters)
            if not broken:
                scores = self._score()
                broken = next((f"the {name} is no number" for name, value in scores.items() if math.isnan(value)), None)
            if broken:
                self.roll_back(f"{broken} after step {self.step}")
                return
        if due or self.over or is_due(self.step, self.config.saving.log_every):
            self._log_line({} if self.over else scores)
        self.keep(0, self.config.saving.checkpoint_seconds, self.over)

    def _log_line(self, scores: Mapping[str, float]) -> None:
        loss = self.loss_sum / self.loss_count
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.sampler.per_epoch, 4),
            "seconds": round(self.seconds, 4),
            "loss": loss,
            "memory_mb": round(resident_megabytes(), 1),
        }
        line |= self.task.metrics(loss)
        self.log.append(line | {f"score_{name}": value for name, value in scores.items()})
        self.loss_sum, self.loss_count = 0.0, 0

    def _non_finite(self, evaluation: Evaluation) -> str | None:
        broken = non_finite("gradient of", evaluation.gradient)
        if broken is None and math.isfinite(evaluation.loss):
            return None
        return f"{broken or f'the loss is {evaluation.loss}'} at step {self.step + 1}"

    def _score(self) -> Mapping[str, float]:
        """Score the field as it is, once for each step; its time is not counted."""
        if self.scored is None or self.scored[0] != self.step:
            self.scored = self.step, self.task.score()
            self.tell(FitScored(*self.scored))
        return self.scored[1]

    def _write_scores(self, after: Mapping[str, float] | None) -> None:
        record: dict[str, Any] = {"task": self.config.data.task.value, "steps": self.step, "seconds": self.seconds}
        write_json(self.folder.evaluation, record | dict(after or {}) | {"before": self.before})

    def _finish(self) -> FitResult:
        after = self._score()
        self._write_scores(after)
        write_results(self.folder.path, self.config, self.task)
        config, task = self.config, self.task
        return FitResult(self.folder.path, config, task, self.step, self.seconds, self.before, after)


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
