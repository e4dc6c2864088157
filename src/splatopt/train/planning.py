"""From a configuration to whoever plans the run, and the time that a plan counts from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import psutil  # type: ignore[import-untyped]

from splatopt.core.checks import InputError
from splatopt.data import Capture
from splatopt.density.gain import GainOptions
from splatopt.scene.photometric import PhotometricObjective
from splatopt.train.config import TrainConfig
from splatopt.train.plan import PlanFile
from splatopt.train.plan_by_clock import ByClock, PlanFacts
from splatopt.train.plan_costs import growth_of
from splatopt.train.planner import Planner, Repeated
from splatopt.train.recipe import MAX_CAP, PIXELS_A_GAUSSIAN, find_recipe

Clock = Callable[[], float]
"""Returns the seconds since a run was asked for."""

_MAX_START_SECONDS = 600.0
"""A process that says that it began longer ago was not begun for the run."""


def clock_from_now() -> Clock:
    """Return a clock that begins now."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began


def clock_of_process(words: list[str]) -> Clock:
    """Return a clock that begins with the process, where it was begun for this command alone, else now.

    Args:
        words: The command's words; those of the process end with them.
    """
    own = sys.argv[len(sys.argv) - len(words) :] == words and len(sys.argv) == len(words) + 2
    before = time.time() - psutil.Process().create_time() if own else 0.0
    before = before if 0 <= before <= _MAX_START_SECONDS else 0.0
    clock = clock_from_now()
    return lambda: before + clock()


def open_planner(
    told: TrainConfig, capture: Capture, gaussians: int, now: float, kept: PlanFile | None
) -> Planner | None:
    """Return who plans a run; None where its steps were given.

    Args:
        told: What the run was told, without what it decided itself.
        capture: What it is trained on.
        gaussians: How many there are.
        now: Seconds since it was asked for.
        kept: A plan to repeat or to go on with.
    """
    schedule = told.schedule
    if schedule.plan is not None:
        assert kept is not None  # it was read
        return Repeated(kept.plan)
    if schedule.minutes is None:
        return None
    return ByClock(_facts(told, capture, gaussians), gaussians, now, kept.plan if kept else None)


def _facts(told: TrainConfig, capture: Capture, gaussians: int) -> PlanFacts:
    schedule, density, recipe = told.schedule, told.density, find_recipe(told.schedule.recipe)
    assert schedule.minutes is not None
    if schedule.stages is None:
        recipe = replace(recipe, stages=((schedule.optimizer, 1.0),))
    batch = min(schedule.views_a_step, len(capture.split.train))
    recipe = replace(recipe, density=density.density, view_batch=batch)
    cameras = [capture.cameras[view] for view in capture.split.train]
    pixels = sum(camera.width * camera.height for camera in cameras)
    most = None
    if density.is_at_work:
        usual = max(gaussians, min(MAX_CAP, pixels // PIXELS_A_GAUSSIAN))
        most = density.cap(gaussians, told.scene.sh_degree) if density.is_bound else usual
    return PlanFacts(
        seconds=60 * schedule.minutes,
        recipe=recipe,
        views=len(cameras),
        pixels=batch * pixels // len(cameras),
        side=max(max(camera.width, camera.height) for camera in cameras),
        max_gaussians=most,
        is_bound=density.is_bound,
        levels=schedule.levels or None,
        sh_degree=told.scene.sh_degree,
        sh_interval=told.scene.sh_interval,
        growth=growth_of(density.density_options),
        plans_edits=density.density_options == GainOptions(),
        until_plateau=schedule.until_plateau,
    )


def affordable(
    told: TrainConfig, planner: ByClock, gaussians: int, check: Callable[[TrainConfig], object]
) -> TrainConfig:
    """Return the configuration of a run that grows, with as many Gaussians as it may come to need memory for.

    Args:
        told: What the run was told.
        planner: Plans it anew; a smaller bound is noted there.
        gaussians: How many there are.
        check: Raises InputError where a configuration takes more memory than there is.

    Raises:
        InputError: There is no memory for those that there are, or that were asked for.
    """
    while True:
        most = planner.facts.max_gaussians or gaussians
        config = told.changed(max_gaussians=most)
        try:
            check(config)
        except InputError:
            if planner.facts.is_bound or most <= gaussians:
                raise
            planner.limit(max(gaussians, most // 2))
        else:
            return config


def time_gradient(objective: PhotometricObjective, view: int, clock: Clock) -> float:
    """Return the seconds that the gradient of one view takes, its photograph being decoded; nothing changes by it."""
    objective.gradient((view,))
    began = clock()
    objective.gradient((view,))
    return clock() - began
