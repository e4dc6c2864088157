"""The plan of a run in progress: what the trainer asks of it, and the time that it counts by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from splatopt.core.checkpoint import Checkpoint
from splatopt.core.optimizer import Progress
from splatopt.data import Capture
from splatopt.raster.renderer import Renderer
from splatopt.runs.folder import RunFolder
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.config import TrainConfig
from splatopt.train.levels import parse_levels
from splatopt.train.outlook import Course, Outlook
from splatopt.train.plan import Decision, PlanFile, write_plan
from splatopt.train.plan_by_clock import ByClock
from splatopt.train.plan_costs import growth_of
from splatopt.train.plan_memory import PLAN, PlanMemory, read_memory
from splatopt.train.planner import Planner, Repeated, Taken
from splatopt.train.planning import Clock, affordable, open_planner, time_gradient
from splatopt.train.preflight import check_memory
from splatopt.train.process_context import ProcessContext
from splatopt.train.stages import Stage


class Pacing:
    """How far a run is by its plan, or by its steps where these were given.

    Attributes:
        planner: Who plans it; None where its steps were given, and before it begins.
        context: What this process computes with.
        used_before: Seconds that processes before this one took.
    """

    def __init__(self, clock: Clock, kept: PlanFile | None, context: ProcessContext) -> None:
        """Begin without a plan.

        Args:
            clock: Seconds since this process was asked for the run.
            kept: The plan that the run repeats or goes on with.
            context: Shares times, so that several processes decide alike.
        """
        self._clock, self._kept, self.context = clock, kept, context
        self._told: TrainConfig | None = None
        self.planner: Planner | None = None
        self._outlook: Outlook | None = None
        self.used_before = 0.0
        self._taken = Taken(0, 0, 0.0, 0.0)

    @property
    def used(self) -> float:
        """Seconds since the run was asked for, those of processes before this one included."""
        return self.used_before + self._clock()

    def begin(self, config: TrainConfig, capture: Capture, cloud: GaussianCloud, renderer: Renderer) -> TrainConfig:
        """Find out who plans the run; returns its configuration with the most Gaussians that it may come to.

        Args:
            config: What it is to do.
            capture: What it is trained on.
            cloud: Where it begins.
            renderer: What renders.

        Raises:
            InputError: It begins with more Gaussians than were allowed, or than there is memory for.
        """
        config = self._planned(config, capture, cloud, renderer)
        if not isinstance(self.planner, ByClock):
            self._outlook = Outlook(_course_of(config, capture, self.planner))
        return config

    def _planned(self, config: TrainConfig, capture: Capture, cloud: GaussianCloud, renderer: Renderer) -> TrainConfig:
        told, kept = config, self._kept
        if kept is not None and config.schedule.plan is None:
            # What the run was told, without what it has decided since.
            free = {"minutes": config.schedule.minutes, "until_plateau": config.schedule.until_plateau}
            told = kept.config.changed(**free)
        # By a time that all processes know; what has passed since is seen at the first look at the clock.
        self.planner = planner = open_planner(told, capture, len(cloud), self.used_before, kept)
        self._told = told
        if planner is not None:  # memory is counted with the photographs of its levels
            config = config.changed(levels=planner.current.levels)
        if not config.density.is_at_work:
            return config
        if isinstance(planner, ByClock):
            check = partial(check_memory, capture=capture, cloud=cloud, renderer=renderer, context=self.context)
            return affordable(config, planner, len(cloud), check)
        if planner is not None:
            return config.changed(max_gaussians=planner.plan.decisions[-1].max_gaussians)
        return config.changed(max_gaussians=config.density.cap(len(cloud), cloud.sh_degree))

    def restore(self, checkpoint: Checkpoint, gaussians: int) -> Decision | None:
        """Return the decision that a run goes on with from a checkpoint; None where its steps were given.

        Args:
            checkpoint: Whose form was checked.
            gaussians: How many there are.
        """
        planner, step = self.planner, checkpoint.step
        if self._outlook is not None:
            self._outlook.go_back()
        if planner is None:
            return None
        decision = planner.go_back(step)
        if isinstance(planner, ByClock) and PLAN in checkpoint.scalars:  # older checkpoints have none
            planner.recall(read_memory(checkpoint.scalars[PLAN], checkpoint.where))
        if isinstance(planner, ByClock) and step >= decision.steps and self._has_more_time:
            return planner.go_on(step, gaussians, self.used_before)
        return decision

    @property
    def memory(self) -> PlanMemory | None:
        """What decisions are taken by, for a checkpoint; None where no clock is looked at."""
        return self.planner.memory if isinstance(self.planner, ByClock) else None

    @property
    def _has_more_time(self) -> bool:
        """Whether a run that goes on was given more minutes than it had."""
        if self._told is None or self._kept is None:
            return False
        return (self._told.schedule.minutes or 0.0) > (self._kept.config.schedule.minutes or 0.0)

    def measured(self, began: float, objective: PhotometricObjective, view: int) -> Decision | None:
        """Return a decision after the first scoring, which began at ``began``, by the time of one view's gradient."""
        planner = self.planner
        if not isinstance(planner, ByClock):
            if self._outlook is not None:
                self._outlook.scoring = self.used - began
                if self._outlook.course.levels:
                    self._outlook.try_out(len(objective.cloud), time_gradient(objective, view, self._clock))
            return None
        scoring, gradient = self.used - began, time_gradient(objective, view, self._clock)
        most = planner.facts.max_gaussians
        if most is not None and (shared := self.context.smallest(most)) < most:  # another process has memory for fewer
            planner.limit(shared)
        return planner.measured(*self.context.seconds(self.used, scoring, gradient))

    def after_step(self, step: int, gaussians: int, used: float, loss: float) -> Decision | None:
        """Return a decision after a step, where one is due; see :class:`Taken`."""
        self._taken = taken = Taken(step, gaussians, used, loss)
        if self._outlook is not None:
            self._outlook.note(step, gaussians, used)
        return None if self.planner is None else self.planner.after_step(taken)

    @property
    def seconds_left(self) -> float | None:
        """The seconds after the last step until the run is done; None before enough steps were taken to tell."""
        if self._outlook is not None:
            return self._outlook.seconds_left(self._taken.now)
        return None if self.planner is None else self.planner.seconds_left(self._taken)

    @property
    def decision(self) -> Decision | None:
        """The decision that holds now; None where there is no plan."""
        return None if self.planner is None else self.planner.current

    def whole_progress(self, step: int, horizon: int) -> Progress:
        """Return where the run stands over all stages; ``horizon`` where no plan says so."""
        return Progress(step, horizon) if self.planner is None else self.planner.current.whole_progress(step)

    def stage_progress(self, step: int, position: int, stage: Stage, horizon: int | None) -> Progress:
        """Return where a stage stands, of ``horizon`` steps or its own where no plan says so."""
        if self.planner is None:
            return Progress(step - stage.begin, horizon or stage.steps)
        return self.planner.current.stage_progress(step, position)

    def write(self, folder: RunFolder, trained_on: Mapping[str, str]) -> None:
        """Write the plan, where there is one."""
        if self.planner is not None and self._told is not None:
            write_plan(folder.plan, self.planner.plan, self._told, trained_on)


def _course_of(config: TrainConfig, capture: Capture, planner: Planner | None) -> Course:
    """What a run of known steps does, or one that repeats a plan, whose last decision tells all steps."""
    cameras = [capture.cameras[view] for view in capture.split.train]
    views, mean = config.schedule.views_a_step, sum(one.width * one.height for one in cameras) / len(cameras)
    stages, levels, most = config.schedule.all_stages, config.schedule.levels, config.density.max_gaussians
    if isinstance(planner, Repeated):
        last = planner.plan.decisions[-1]
        stages, levels, most = last.parts, last.levels, last.max_gaussians
    growth = growth_of(config.density.density_options)
    most = most if config.density.is_at_work else None
    return Course(stages, views * mean, views, parse_levels(levels), growth, most)
