"""What keeps a run from being lost: checkpoints, one way back, stops by hand; of scenes and of fields alike."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from splatopt.core.checkpoint import Checkpoint, latest_checkpoint, latest_path, save_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.objective import Tensors
from splatopt.core.processes import Processes
from splatopt.core.stop_signals import resume_hint, stop_requests
from splatopt.runs.events import Ended, Saved, Warned
from splatopt.runs.finite_checks import non_finite
from splatopt.runs.folder import MetricsLog, NoLog, RunFolder
from splatopt.runs.program import program
from splatopt.runs.records import read_edits, read_evaluation, read_metrics


class InterruptedRunError(KeyboardInterrupt):
    """A run was stopped by hand; the message says at which step, and how to go on."""


class LostRunError(InputError):
    """A run ended because one of its processes was lost; the message says how to go on."""


class OutOfMemoryError(InputError):
    """A run ended because memory ran out; the message says how much is needed and how to go on."""


class NonFiniteError(InputError):
    """A gradient, a loss or a parameter became NaN or infinite for the second time in a run."""


class ResumableRun(ABC):
    """A run in progress that loses at most the steps since its last checkpoint; subclasses take the steps."""

    verb: ClassVar[str]
    """What the run does, for messages: training, fitting."""

    command: ClassVar[str]
    """The command that goes on with it."""

    examples: ClassVar[str]
    """What its sampler draws, for messages."""

    check: ClassVar[Callable[[Checkpoint], None]]
    """Raises DamagedCheckpointError where a checkpoint does not hold what the run goes on from."""

    remedies: ClassVar[str]
    """What takes less memory, for messages."""

    log: MetricsLog | NoLog

    def __init__(
        self,
        folder: RunFolder,
        target: str,
        callbacks: Sequence[Callable[..., None]],
        processes: Processes | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        """Begin at step 0 with nothing saved.

        Args:
            folder: The run's folder.
            target: What the command is given to go on.
            callbacks: Called with every event of the run.
            processes: Those that share the run; this one alone when None. Only the first writes.
            resumed: Whether the folder holds the run already.
        """
        self.processes = processes or Processes()
        self.folder, self.target, self.callbacks = folder, target, callbacks
        self.resumed = resumed
        self.step = 0
        self.seconds = self.saved_at_seconds = 0.0
        self.rolled_back: str | None = None
        self.saved: Path | None = None
        self.save_failure: OSError | None = None
        self.requests: list[int] = []
        self.whole = True
        self.over = False

    def tell(self, event: object) -> None:
        """Tell all callbacks; one that raises KeyboardInterrupt stops the run when the step is whole."""
        for callback in self.callbacks:
            try:
                callback(event)
            except KeyboardInterrupt:
                self.requests.append(signal.SIGINT)

    # ------------------------------------------------------------------ what a subclass gives

    @property
    @abstractmethod
    def parameters(self) -> Tensors:
        """What is trained."""

    @property
    @abstractmethod
    def planned(self) -> int:
        """Steps that the run is to have at its end."""

    @abstractmethod
    def _checkpoint(self) -> Checkpoint:
        """Return all that the run needs to go on bit-exactly."""

    @abstractmethod
    def _restore(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was when ``checkpoint`` was written, ``over`` too."""

    @abstractmethod
    def _shuffle(self) -> None:
        """Forget the order at hand and what was to be drawn, so that steps taken again see something else."""

    @property
    def has_order(self) -> bool:
        """Whether a step sees a part of the examples, so that they may come in another order."""
        return True

    @abstractmethod
    def _start(self) -> None:
        """Score and note what there is before the first step."""

    @abstractmethod
    def _advance(self) -> None:
        """Take one step and whatever is due after it; sets ``over`` with the last one, which it saves."""

    # ------------------------------------------------------------------ what is the same for all

    @property
    def logs(self) -> tuple[MetricsLog | NoLog, ...]:
        """All files of lines that the run writes; a checkpoint waits for them, and a way back cuts them."""
        return (self.log,)

    def trim_logs(self) -> None:
        """Drop the lines after the step at hand."""
        for log in self.logs:
            log.trim(self.step)

    @contextlib.contextmanager
    def keep_others_out(self) -> Iterator[None]:
        """Hold the run's folder, cleared of what a kill left, until the block is done.

        Raises:
            InputError: Another process is at work there, or began a run there since we looked.
        """
        if not self.processes.is_first:
            yield
            return
        with self.folder.locked():
            if not self.resumed:
                self.folder.check_free()
            with resume_hint(self.resume_hint):
                yield

    def take_steps(self, quiet: AbstractContextManager[None]) -> None:
        """Take the remaining steps; raises InterruptedRunError when asked to stop, after the step at hand.

        Args:
            quiet: Entered around all steps.
        """
        with stop_requests(self.requests), quiet:
            if self.step == 0:
                self._start()
                self._save()
            stopping = self._is_asked_to_stop()
            while not self.over and not stopping:
                self.whole = False
                self._advance()
                self.whole = True
                stopping = self._is_asked_to_stop()
            if stopping:
                raise KeyboardInterrupt

    def _is_asked_to_stop(self) -> bool:
        """Whether any of the processes was; all of them stop after the same step."""
        return self.processes.sum_numbers([float(bool(self.requests))])[0] > 0

    def keep(self, every: int, every_seconds: float, at_once: bool) -> None:
        """Write a checkpoint if one is due, or go back where a parameter broke down; its time counts.

        Args:
            every: Steps from one to the next; 0 for none by steps.
            every_seconds: Seconds from one to the next; 0 for none by time.
            at_once: Whether one is due whatever the others say.
        """
        began = time.perf_counter()
        late = 0 < every_seconds <= self.seconds - self.saved_at_seconds
        if at_once or late or is_due(self.step, every):
            broken = non_finite("parameter", self.parameters)
            if broken:
                self.roll_back(f"{broken} after step {self.step}")
            else:
                self._save()
        self.seconds += time.perf_counter() - began

    def _save(self) -> None:
        """Write a checkpoint; where the disk refuses, warn and go on with the ones from before."""
        for log in self.logs:
            log.sync()
        self.saved_at_seconds = self.seconds
        if not self.processes.is_first:
            return
        try:
            self.saved = save_checkpoint(self.folder.checkpoints, self._checkpoint())
        except OSError as error:
            self.save_failure = error
            failure = f"the checkpoint of step {self.step} could not be written ({error.strerror})"
            self.tell(Warned(f"{failure}; {self._kept()}"))
        else:
            self.save_failure = None
            self.tell(Saved(self.step, self.saved))

    def _kept(self) -> str:
        if self.saved:
            return f"{self.verb} goes on, and {self.saved.name} is kept"
        return f"{self.verb} goes on without any checkpoint; free some space on the disk"

    def roll_back(self, problem: str) -> None:
        """Go back to the last good checkpoint once; stop with what was seen the second time."""
        if self.rolled_back:
            raise NonFiniteError(
                f"{self.verb} stopped: {problem}, after it had already gone back once ({self.rolled_back}); "
                f"the last good checkpoint is kept in {self.folder.checkpoints}; lower the optimizer's rates"
            )
        checkpoint, _ = latest_checkpoint(self.folder.checkpoints, type(self).check)
        if checkpoint is None:
            raise NonFiniteError(f"{self.verb} stopped: {problem}, and there is no checkpoint to go back to")
        self.rolled_back = problem
        spent = self.seconds
        self._restore(checkpoint)
        self.seconds = self.saved_at_seconds = spent
        self._shuffle()
        self.trim_logs()
        reordered = f", with a new order of {self.examples}" if self.has_order else ""
        self.tell(Warned(f"{problem}; went back to the checkpoint of step {self.step}{reordered}"))

    def interrupted(self) -> InterruptedRunError:
        """Keep what can be kept and say how to go on."""
        if self.whole and non_finite("parameter", self.parameters) is None:
            self._save()
        if self.saved is None and self.processes.is_first:
            return InterruptedRunError(f"stopped at step {self.step}, before there was a checkpoint to go on from")
        return InterruptedRunError(f"stopped at step {self.step} of {self.planned}, {self.resume_hint()}")

    def lost(self) -> LostRunError:
        """Say that another process was lost, and how to go on."""
        return LostRunError(f"another process of the run was lost at step {self.step}; {self.resume_hint()}")

    def exhausted(self, where: str, needed: str) -> OutOfMemoryError:
        """Say that memory ran out, and how to go on.

        Args:
            where: Over what it ran out, with a blank behind it; empty where that is not known.
            needed: The estimate, as a sentence.
        """
        return OutOfMemoryError(
            f"memory ran out {where}in step {self.step + 1}: {needed}; take {self.remedies}; {self.resume_hint()}"
        )

    def resume_hint(self) -> str:
        """Say which checkpoint is kept, and what to type to go on from it."""
        kept = self.saved or latest_path(self.folder.checkpoints)
        target, out = shlex.quote(self.target), shlex.quote(str(self.folder.path))
        typed = f"{program()} {self.command} {target} --out {out}"
        if kept is not None:
            return f"{kept.name} is kept; go on with: {typed} --resume"
        begun = " --resume" if self.folder.is_run else ""
        return f"there is no checkpoint to go on from; begin again with: {typed}{begun}"

    def close(self) -> None:
        """Close the log and tell that the run has ended, whichever way."""
        for log in self.logs:
            log.close()
        self.tell(Ended())


def checkpoint_to_resume(folder: RunFolder, check: Callable[[Checkpoint], None]) -> tuple[Checkpoint | None, list[str]]:
    """Return the last good checkpoint in a run's folder, and warnings.

    A run that was stopped before its first checkpoint has done no step; it begins again, without one.

    Args:
        folder: The run's folder.
        check: Raises DamagedCheckpointError where a checkpoint does not hold what the run goes on from.

    Raises:
        InputError: The run has progress, but no checkpoint is whole; or its metrics or scores are damaged.
    """
    read_metrics(folder.metrics)
    read_edits(folder.density)
    read_evaluation(folder.evaluation)
    checkpoint, warnings = latest_checkpoint(folder.checkpoints, check)
    if checkpoint is not None:
        return checkpoint, warnings
    if warnings or folder.has_progress:
        detail = f" ({warnings[0]})" if warnings else ""
        problem = f"{folder.path} holds no checkpoint to resume from{detail}"
        raise InputError(f"{problem}; start a new run with another --out")
    return None, [f"{folder.path} was stopped before its first checkpoint; it begins at step 0"]


def is_due(step: int, every: int) -> bool:
    """Whether something that comes every so many steps comes after this one; never for 0."""
    return every > 0 and step % every == 0
