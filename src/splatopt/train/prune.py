"""Pruning a run: Gaussians are removed in rounds, with steps of repair in between, and a new run is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from splatopt.core.checkpoint import Checkpoint, save_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.stop_signals import resume_hint
from splatopt.core.version import __version__
from splatopt.data import Capture
from splatopt.data.fingerprint import fingerprint_capture
from splatopt.raster.threads import quiet_torch
from splatopt.runs.events import Warned
from splatopt.runs.folder import MetricsLog, RunFolder, write_json
from splatopt.runs.records import read_evaluation, read_metrics
from splatopt.runs.resumable import NonFiniteError
from splatopt.scene.microbatches import is_exhaustion
from splatopt.scene.ply import save_ply
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores, check_scorable, evaluation_record, scores_before
from splatopt.train.pruning import PruneCurve, PruneOptions, PruneRound, RoundPlan, pruned_schedule
from splatopt.train.refined_poses import write_saved_poses
from splatopt.train.repair import Repair
from splatopt.train.run import Run

Listener = Callable[[PruneRound | Warned], None]
"""Told of the scene before, of each round as it ends, and of warnings."""


@dataclass(frozen=True)
class PruneResult:
    """What pruning leaves.

    Attributes:
        folder: The new run's folder.
        rounds: The scene before, and after each round; those that broke the budget were undone.
        scores: Of the scored views, of the scene that is left.
    """

    folder: Path
    rounds: tuple[PruneRound, ...]
    scores: Scores

    @property
    def left(self) -> PruneRound:
        """The scene that is left."""
        return [one for one in self.rounds if one.kept][-1]


def prune(
    run: Run, options: PruneOptions, out: Path, *, capture: Capture | None = None, tell: Listener | None = None
) -> PruneResult:
    """Remove Gaussians from a run's scene and leave a new run; the run itself is only read.

    The new run is whole after every round, so that whatever ends the work keeps the rounds before.

    Args:
        run: What is pruned.
        options: How far, and how.
        out: Folder of the new run, which holds nothing yet.
        capture: What the run was trained on; loaded from there when None.
        tell: Told of rounds and warnings.

    Raises:
        InputError: Something that was given cannot be used, memory ran out, or numbers broke down.
    """
    options.check_count(len(run.trained), run.folder.path)
    folder = RunFolder(out)
    if folder.config.exists():
        raise InputError(f"{out} holds a run already, and nothing in it is overwritten; give another folder with --out")
    folder.check_free()
    capture = (capture or run.open_capture()).localised(run.frame)
    run.check_capture(capture, "what its Gaussians cost")
    check_scorable(capture)
    return _Pruning(run, options, folder, capture, tell or (lambda _: None)).go()


class _Pruning:
    """The rounds, and the new run's files."""

    def __init__(self, run: Run, options: PruneOptions, folder: RunFolder, capture: Capture, tell: Listener) -> None:
        self.run, self.options, self.folder, self.capture, self.tell = run, options, folder, capture, tell
        self.rounds: list[PruneRound] = []
        self.before = self._scores_before_training()
        self.scene = Repair(run, options, capture, log=self._append, warn=self._warn)

    def _warn(self, sentence: str) -> None:
        self.tell(Warned(sentence))

    def _append(self, line: dict[str, object]) -> None:
        self.log.append(line)

    def go(self) -> PruneResult:
        """Take all rounds."""
        try:
            with self._files(), quiet_torch(self.run.machine.renderer):
                scores = self._take_rounds()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._kept_so_far()}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            raise InputError(f"memory ran out; take an optimizer that keeps less; {self._kept_so_far()}") from error
        return PruneResult(self.folder.path, tuple(self.rounds), scores)

    def _take_rounds(self) -> Scores:
        """Return the scores of what is left."""
        first = self.scene.measure()
        kept, scores = self._keep(first)
        plan = RoundPlan.of(self.options, first.gaussians)
        while (target := plan.target(len(self.scene.cloud))) is not None:
            before = self.scene.seconds
            self.scene.remove(target)
            self.scene.repair()
            one = self.scene.measure(self.scene.seconds - before)
            if self.options.allows(first, one):
                kept, scores = self._keep(one)
            else:
                self._undo(one, kept)
                plan.halve(len(self.scene.cloud))
        return scores

    # ------------------------------------------------------------------ the new run's files

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        """Hold the new run's folder until the block is done, with the lines of metrics that led to the run's scene."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.scene.context.close)
            stack.enter_context(self.folder.locked())
            self.folder.check_free()
            stack.enter_context(resume_hint(self._kept_so_far))
            self._write_config()
            if self.scene.poses:
                write_saved_poses(self.folder, self.capture, self.scene.poses["world_to_camera"])
            self.log = MetricsLog(self.folder.metrics)
            stack.callback(self.log.close)
            for line in self._lines_so_far():
                self.log.append(line)
            yield

    def _lines_so_far(self) -> list[dict[str, object]]:
        try:
            return [line for line in read_metrics(self.run.folder.metrics) if line["step"] <= self.run.steps]
        except InputError as error:
            self._warn(f"{error}; the metrics of the new run begin with the repair")
            return []

    def _scores_before_training(self) -> Scores | None:
        try:
            return scores_before(read_evaluation(self.run.folder.evaluation))
        except InputError as error:
            self._warn(f"{error}; the new run has no scores of before training")
            return None

    def _config(self) -> TrainConfig:
        """What the new run has seen."""
        run, repaired = self.run, self.scene.step - self.run.steps
        schedule = pruned_schedule(run.config.schedule, run.steps, self.options, repaired)
        return run.config.changed(**schedule, out=self.folder.path, refine_poses=bool(self.scene.poses))

    def _write_config(self) -> int:
        """Write what the new run has seen; returns the position of the repair among its stages."""
        config, repaired = self._config(), self.scene.step - self.run.steps
        self.folder.write_config(config, __version__, fingerprint_capture(self.capture))
        # Without a repair there is no such stage, and whoever goes on begins with an optimizer without a state.
        return len(config.schedule.all_stages) - 1 if repaired else len(config.schedule.all_stages)

    def _keep(self, one: PruneRound) -> tuple[Checkpoint, Scores]:
        """Write the scene after a round as what the new run is; returns it with its scores."""
        scene, scores = self.scene, self.scene.scores
        assert scores is not None  # it was measured
        self.log.sync()
        checkpoint = scene.checkpoint(self._write_config())
        save_checkpoint(self.folder.checkpoints, checkpoint)
        save_ply(scene.cloud.in_world(self.run.frame), self.folder.scene)
        scored, count = (self._config(), self.before, scores), len(scene.cloud)
        record = evaluation_record(*scored, steps=scene.step, seconds=scene.seconds, gaussians=count)
        write_json(self.folder.evaluation, record)
        self.rounds.append(one)
        self._write_curve(scores)
        self.tell(one)
        return checkpoint, scores

    def _undo(self, one: PruneRound, kept: Checkpoint) -> None:
        """Go back to the scene before a round that broke the budget; the curve has it all the same."""
        scores = self.scene.scores
        assert scores is not None  # it was measured
        self.rounds.append(one.undone())
        self.scene.go_back(kept)
        self.log.trim(kept.step)
        self._write_curve(scores)
        self.tell(one.undone())

    def _write_curve(self, scores: Scores) -> None:
        PruneCurve.of(self.run.folder.path, scores.subset, self.options, self.rounds).write(self.folder.pruning)

    def _kept_so_far(self) -> str:
        """Say what there is of the new run, whatever is being written of it now."""
        if not self.rounds:
            return f"nothing was removed, and {self.folder.path} may be deleted"
        return f"{self.folder.path} is a whole run, of the last round that ended; prune it to go on from there"
