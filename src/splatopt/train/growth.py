"""A density strategy at work in a run: what it wants is done, counted, written down and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splatopt.core.checkpoint import Checkpoint, damage_in
from splatopt.core.checks import InputError
from splatopt.core.devices import gibibytes
from splatopt.core.frame import Frame
from splatopt.core.optimizer import Optimizer, Progress
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.scene_edit import SceneEdit, apply_edit
from splatopt.density.penalised import Penalised
from splatopt.density.schedule import EditSchedule
from splatopt.density.strategy import DensityLimits, DensityStrategy, StepTaken
from splatopt.runs.checkpoint_content import load_stateful
from splatopt.runs.events import Warned
from splatopt.runs.folder import MetricsLog, MetricSums, NoLog
from splatopt.runs.memory import resident_megabytes
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.checkpoint_content import DENSITY
from splatopt.train.config import TrainConfig
from splatopt.train.density_options import DensityOptions
from splatopt.train.events import Edited
from splatopt.train.process_context import ProcessContext
from splatopt.train.setup import make_strategy

_ROOM, _MAX_ROOM = "room", 2**53
"""Number of a checkpoint: the Gaussians that there was memory for, once there was none for more."""

SAMPLES = 64
"""Positions of added and of removed Gaussians that a line of ``density.jsonl`` holds, at most."""


class NoRoomError(InputError):
    """An edit wants more Gaussians than are allowed."""


class NoMemoryError(NoRoomError):
    """An edit wants more Gaussians than there is memory for."""


@dataclass(frozen=True)
class Surroundings:
    """What a strategy's edits are done in.

    Attributes:
        context: What this process computes with, beside others that edit alike.
        row_bytes: What one Gaussian more takes.
        frame: That of the training.
        tell: Takes events.
    """

    context: ProcessContext
    row_bytes: int
    frame: Frame
    tell: Callable[[object], None]


class Growth:
    """Asks a strategy after every step, and carries out what it answers.

    Attributes:
        strategy: The strategy.
        log: Takes a line for each edit; set by whoever runs it.
    """

    log: MetricsLog | NoLog

    def __init__(
        self, name: str, strategy: DensityStrategy, objective: PhotometricObjective, surroundings: Surroundings
    ) -> None:
        """Take up the strategy.

        Args:
            name: The strategy's, for messages.
            strategy: Made for ``objective``, or for one around it.
            objective: Whose rows are edited.
            surroundings: What it is done in.
        """
        self.strategy = strategy
        self.log = NoLog()
        self._name, self._objective, self._around = name, objective, surroundings
        self._processes = surroundings.context.processes
        self._warned: set[str] = set()
        self._own: GradientStatistics | None = None
        self._room: int | None = None

    def follow(self, density: DensityOptions) -> None:
        """Go on with other options, and with no more Gaussians than these allow and there was memory for."""
        self.strategy.options = density.density_options
        most = density.max_gaussians or 0
        most = most if self._room is None else min(most, self._room)
        self.strategy.limits = replace(self.strategy.limits, max_gaussians=most)

    def before_step(self, progress: Progress) -> None:
        """Have the gradient passes of the next step fill the strategy's statistics, where it wants them.

        Of several processes each counts its own views, in statistics that begin with zeros.

        Args:
            progress: Steps done, and the steps of the whole run.
        """
        shared = self.strategy.gradient_statistics if self.strategy.observes(progress) else None
        self._own = None
        if shared is not None and self._processes.world_size > 1:
            asked = {"absolute": shared.absolute is not None, "splitting": shared.splitting is not None}
            self._own = GradientStatistics(self._objective.parameters, **asked)
        self._objective.observed = self._own or shared

    def _add_up(self) -> None:
        """Add what all processes have counted in a step to the strategy's statistics, in all of them alike.

        From then on no gradient adds to them, until the next step begins.
        """
        shared, own = self.strategy.gradient_statistics, self._own
        self._own = self._objective.observed = None
        if shared is None or own is None:
            return
        sums = own.tensors()
        (largest,) = (sums.pop(name) for name in list(sums) if name.endswith("max_radius"))
        self._processes.sum(sums.values())
        self._processes.max([largest])
        total = shared.tensors()
        for name, value in sums.items():
            total[name].add_(value)
        torch.maximum(shared.max_radius, largest, out=shared.max_radius)

    def after_step(self, step: StepTaken, optimizer: Optimizer, sums: MetricSums, *, is_last: bool = False) -> None:
        """Have the strategy move and edit the scene after a step.

        Args:
            step: The step.
            optimizer: Follows.
            sums: What is added and removed is counted there.
            is_last: Whether the run ends with it: an edit that no step settles is left out.
        """
        self._add_up()
        with optimizer.at_last_iterate():
            self.strategy.move(step)
        edit: object = self.strategy.edit(step)
        if edit is not None and not is_last:
            self._carry_out(self._checked(edit), optimizer, step.progress.step, sums)

    def remove(self, rows: Tensor, optimizer: Optimizer, step: int, sums: MetricSums) -> None:
        """Remove Gaussians that broke down.

        Args:
            rows: Which, (N,) bool.
            optimizer: Follows.
            step: Steps done.
            sums: They are counted there.
        """
        self._add_up()  # what was counted is of the rows before
        sums.broken_rows += int(rows.count_nonzero())
        self._carry_out(SceneEdit.keep(~rows), optimizer, step, sums)

    def _carry_out(self, edit: SceneEdit, optimizer: Optimizer, step: int, sums: MetricSums) -> None:
        before = self._objective.parameters["means"]
        if not len(edit):
            self._warn("wants to remove all Gaussians", "that edit is left out")
            return
        new, gone = _changes(edit, len(before))
        gone_at = _sample(before, gone, self._around.frame)
        try:
            apply_edit(edit, self._objective, optimizer, self.strategy, check_memory=self._check_room)
        except NoRoomError as error:
            self._warn("adds no more Gaussians", str(error))
            if isinstance(error, NoMemoryError):
                # So that its next edits are within what there is, and remove and move Gaussians as before.
                self._room = len(before)
                self.strategy.limits = replace(self.strategy.limits, max_gaussians=self._room)
            return
        sums.added += len(new)
        sums.removed += len(gone)
        told = {"step": step, "added": len(new), "removed": len(gone), "gaussians": len(edit)}
        new_at = _sample(self._objective.parameters["means"], new, self._around.frame)
        self.log.append({**told, "added_at": new_at, "removed_at": gone_at})
        self._around.tell(Edited(**told))

    def _checked(self, edit: object) -> SceneEdit:
        """Return a strategy's answer; raises InputError where it is no edit of the rows that there are."""
        who, count = f"the density strategy {self._name!r}", len(self._objective.cloud)
        if not isinstance(edit, SceneEdit):
            raise InputError(f"{who} must answer with a SceneEdit or None, got a {type(edit).__name__}")
        if len(edit) and (last := int(edit.source.max())) >= count:
            raise InputError(f"{who} copies the row {last:,} of a scene of {count:,} Gaussians")
        parameters = self._objective.parameters
        unknown = sorted({*edit.values, *edit.resets, *edit.factors} - set(parameters))
        if unknown:
            raise InputError(f"{who} edits {', '.join(unknown)}, and a scene has {', '.join(parameters)}")
        for name, written in edit.values.items():
            wanted = (len(written.rows), *parameters[name].shape[1:])
            if tuple(written.values.shape) != wanted:
                raise InputError(f"{who} writes {name} as {tuple(written.values.shape)}, expected {wanted}")
            if len(written.rows) and not 0 <= int(written.rows.min()) <= int(written.rows.max()) < len(edit):
                raise InputError(f"{who} writes {name} in rows that an edit to {len(edit):,} Gaussians has not")
        return edit

    def _warn(self, what: str, why: str) -> None:
        """Tell of something that the strategy wants and does not get, the first time."""
        if what not in self._warned:
            self._around.tell(Warned(f"the density strategy {self._name} {what}: {why}"))
        self._warned.add(what)

    def _check_room(self, gaussians: int) -> None:
        """Raise NoRoomError, in all processes alike, where one has no memory for so many, or they are not allowed."""
        more = gaussians - len(self._objective.cloud)
        if more <= 0:
            return
        most = self.strategy.limits.max_gaussians
        if gaussians > most:
            raise NoRoomError(f"it wants {gaussians:,}, and --max-gaussians allows {most:,}")
        copied = gaussians * sum(value[0].nbytes for value in self._objective.parameters.values())
        needed, free = more * self._around.row_bytes + copied, self._around.context.free_memory()
        if self._processes.sum_numbers([float(needed > free)])[0] > 0:
            raise NoMemoryError(
                f"{gaussians:,} of them take about {gibibytes(needed)} GiB of memory more, and {gibibytes(free)} are "
                "free"
            )

    def follow_level(self, ratio: float) -> None:
        """Have the strategy go on with photographs of ``ratio`` times as many pixels a side."""
        self.strategy.follow_level(ratio)

    def state(self) -> tuple[dict[str, Tensor], dict[str, float | int]]:
        """Return what a checkpoint holds of the strategy: its tensors under their prefix, and its numbers."""
        state = self.strategy.state()
        room = {} if self._room is None else {_ROOM: self._room}
        return {f"{DENSITY}{name}": value for name, value in state.tensors.items()}, {**state.scalars, **room}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; raises DamagedCheckpointError where it does not fit."""
        load_stateful(self.strategy, checkpoint, DENSITY, "density")
        numbers = checkpoint.fields.object("density")
        if _ROOM in numbers:
            with damage_in(numbers.where):
                self._room = numbers.count(_ROOM, maximum=_MAX_ROOM)
            most = min(self.strategy.limits.max_gaussians, self._room)
            self.strategy.limits = replace(self.strategy.limits, max_gaussians=most)


def open_growth(
    config: TrainConfig,
    views: Sequence[int],
    objective: PhotometricObjective,
    penalised: Penalised,
    surroundings: Surroundings,
    generator: torch.Generator,
) -> Growth:
    """Return a run's strategy at work.

    Args:
        config: Names it, with its options and its bound.
        views: Those that are trained on.
        objective: Whose rows are edited.
        penalised: Around it: what the strategy asks, and optimizers ask or around that.
        surroundings: What edits are done in.
        generator: The run's source of randomness.

    Raises:
        InputError: The strategy cannot be used on this objective.
    """
    limits = DensityLimits(config.density.max_gaussians or 0, tuple(views), objective.options.background)
    strategy = make_strategy(config, penalised, limits, generator)
    return Growth(config.density.density, strategy, objective, surroundings)


def warn_of_no_edits(config: TrainConfig, planned: int) -> list[str]:
    """Return a sentence where a strategy edits at steps that a run of ``planned`` steps does not have."""
    options = config.density.density_options
    if config.schedule.is_planned or not isinstance(options, EditSchedule):
        return []
    schedule = options.of_run(config.schedule.horizon or planned)
    if schedule.first is not None and schedule.first < planned:
        return []
    name = config.density.density
    return [
        f"--density {name} adds and removes nothing in {planned:,} steps: it edits every {schedule.every} steps after "
        f"step {schedule.start} and before {schedule.until}; give more --steps, or a smaller --{name}.every"
    ]


def metrics_of(sums: MetricSums, gaussians: int, *, grows: bool) -> dict[str, float | int]:
    """Return what a line of metrics tells of the steps since the last one.

    Args:
        sums: Of these steps.
        gaussians: How many there are.
        grows: Whether a strategy is at work.
    """
    line: dict[str, float | int] = {"loss": sums.loss / sums.count, "psnr": sums.psnr / sums.count}
    line |= {"gaussians": gaussians, "memory_mb": round(resident_megabytes(), 1)}
    if grows:
        line |= {"added": sums.added, "removed": sums.removed}
    broken = {"reset_rows": sums.reset_rows, "broken_rows": sums.broken_rows}
    return line | {name: count for name, count in broken.items() if count}


def _changes(edit: SceneEdit, count: int) -> tuple[Tensor, Tensor]:
    """Return which new rows are added, the first copy of a row aside, and which of ``count`` old ones have no copy."""
    places = torch.arange(len(edit), device=edit.source.device)
    first = torch.full((count,), len(edit), device=places.device).scatter_reduce(0, edit.source, places, "amin")
    return (first[edit.source] != places).nonzero().squeeze(1), (first == len(edit)).nonzero().squeeze(1)


def _sample(means: Tensor, rows: Tensor, frame: Frame) -> list[list[float]]:
    """Return the positions of some of ``rows``, evenly chosen, in the capture's own frame."""
    places = torch.linspace(0, len(rows) - 1, min(SAMPLES, len(rows)), dtype=torch.float64, device=rows.device)
    chosen = rows[places.round().long()]
    positions = frame.to_world(means[chosen].detach()).cpu()
    finite = positions[torch.isfinite(positions).all(dim=1)]
    return [[float(f"{value:.9g}") for value in position] for position in finite.tolist()]
