"""What a run takes where it was told nothing: its recipe's where it plans itself, else what is usual."""

from __future__ import annotations

from splatopt.core.bounds import flag
from splatopt.core.checks import InputError
from splatopt.train.density_options import AUTO, NO_DENSITY, DensityOptions
from splatopt.train.options import USUAL_OPTIMIZER, USUAL_SH_INTERVAL, SceneOptions, ScheduleOptions
from splatopt.train.recipe import DEFAULT_MINUTES, DEFAULT_RECIPE, find_recipe
from splatopt.train.stages import Stage, written

_SUITED_VIEWS = {"learned": 8}
"""Views a step of optimizers whose results are of more than one, where no Gaussians are added: docs/results/learned.md.
Their colours take all bands from the start."""

_ENDS = ("steps", "stages", "horizon", "max_seconds")
"""Settings that say how a run ends that does not plan itself."""


def left_open(schedule: ScheduleOptions, scene: SceneOptions, density: DensityOptions) -> dict[str, object]:
    """Return the settings that were left to be chosen, as they are chosen."""
    return _planned(schedule, density) if schedule.is_planned else _plain(schedule, scene, density)


def check_given(schedule: ScheduleOptions) -> None:
    """Make sure that what a new run was given says its end once.

    Raises:
        InputError: Settings contradict each other.
    """
    given = [name for name in _ENDS if getattr(schedule, name)]
    if schedule.plan is not None:
        more = ["minutes"] * (schedule.minutes is not None) + ["until_plateau"] * schedule.until_plateau
        if contradicting := (*given, *more):
            name = flag(contradicting[0])
            raise InputError(
                f"--plan {schedule.plan} says all steps of the run, and {name} contradicts it; leave {name} out"
            )
    elif schedule.minutes is not None and given:
        name = flag(given[0])
        raise InputError(
            f"--minutes {schedule.minutes:g} has the run plan its own end, and {name} says another; give one of the two"
        )
    elif not schedule.is_planned:
        for name, default in (("until_plateau", False), ("recipe", DEFAULT_RECIPE)):
            if getattr(schedule, name) != default:
                raise InputError(f"{flag(name)} is of runs that plan themselves; add --minutes, or leave it out")


def _planned(schedule: ScheduleOptions, density: DensityOptions) -> dict[str, object]:
    recipe = find_recipe(schedule.recipe)
    stages = schedule.all_stages
    chosen: dict[str, object] = {
        "optimizer": stages[0].optimizer,
        "density": recipe.density if density.density == AUTO else density.density,
        "view_batch": schedule.view_batch or recipe.view_batch,
    }
    if len(stages) > 1:  # how many steps each has is for the plan to say
        chosen["stages"] = written(tuple(Stage(one.optimizer, place, 1) for place, one in enumerate(stages)))
    if schedule.plan is None and schedule.minutes is None:
        chosen |= {"minutes": DEFAULT_MINUTES, "until_plateau": True}
    return chosen


def _plain(schedule: ScheduleOptions, scene: SceneOptions, density: DensityOptions) -> dict[str, object]:
    name = NO_DENSITY if density.density == AUTO else density.density
    usual = usual_choices(schedule.optimizers[0] if len(schedule.all_stages) == 1 else "", name)
    return {
        "optimizer": USUAL_OPTIMIZER if schedule.optimizer == AUTO else schedule.optimizer,
        "density": name,
        "view_batch": schedule.view_batch or usual["view_batch"],
        "sh_interval": usual["sh_interval"] if scene.sh_interval is None else scene.sh_interval,
    }


def usual_choices(optimizer: str, density: str) -> dict[str, int]:
    """Return the views of a step, and the steps between two degrees of the colour, of a run whose steps were given.

    Args:
        optimizer: The run's only one; empty for stages.
        density: The strategy, or none.
    """
    views = _SUITED_VIEWS.get(optimizer, 1) if density == NO_DENSITY else 1
    return {"view_batch": views, "sh_interval": 0 if views > 1 else USUAL_SH_INTERVAL}


def check_end(asked: ScheduleOptions, saved: ScheduleOptions) -> None:
    """Make sure that a resumed run that plans itself goes on doing so, and no other begins to.

    Raises:
        InputError: What was asked for says otherwise.
    """
    given = [flag(name) for name in _ENDS if getattr(asked, name)]
    minutes = asked.minutes is not None or asked.until_plateau
    if saved.plan is not None and (given or minutes):
        raise InputError(
            f"the run repeats the plan {saved.plan}, and ends with it; leave {' and '.join(given) or '--minutes'} out"
        )
    if saved.minutes is not None and given:
        raise InputError(f"the run plans its own steps; leave {' and '.join(given)} out, or give it more --minutes")
    if saved.minutes is None and saved.plan is None and minutes:
        raise InputError("the run was started with its steps given, and cannot begin to plan itself; give --steps")
