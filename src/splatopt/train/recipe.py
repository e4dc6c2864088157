"""Recipes: how a run that plans itself spends its time, all in shares of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from splatopt.core.checks import InputError, nearest_names
from splatopt.density.gain import GainOptions

DEFAULT_RECIPE = "default"
DEFAULT_MINUTES = 5.0
"""Of a run that is told nothing; it ends sooner where nothing improves any more."""

PIXELS_A_GAUSSIAN = 100
"""A capture is trained with at most one Gaussian for so many pixels of its training views; own choice."""

MAX_CAP = 2_000_000
"""Gaussians at most that a plan asks for by itself."""

_EDITS = 12
"""Edits that growth is spread over, at least."""


@dataclass(frozen=True)
class Recipe:
    """What a run does with its time; the plan turns shares into steps, by the speed that it measures.

    Attributes:
        stages: Optimizers, each with its share of the time; shares sum to 1.
        density: The strategy by which Gaussians are added, or none.
        levels: Factors by which photographs are shrunk, each until a share of the run, the largest factor first.
        min_side: A level is left out where it would leave photographs whose longer side has fewer pixels.
        view_batch: Views a step.
        sh_share: Share of the run after which the colours' degree rises by one, and again after as much; 0 for all
            from the start.
        steps_per_gaussian: A scene grows to as many Gaussians as leave it so many steps for each.
    """

    stages: tuple[tuple[str, float], ...] = (("block-gn", 1.0),)
    density: str = "gain"
    levels: tuple[tuple[int, float], ...] = ((4, 0.1), (2, 0.3))
    min_side: int = 400
    view_batch: int = 1
    sh_share: float = 0.25
    steps_per_gaussian: float = 1 / 40

    def levels_for(self, side: int) -> tuple[tuple[int, float], ...]:
        """Return the levels for photographs whose longer side has so many pixels."""
        return tuple((factor, until) for factor, until in self.levels if side >= factor * self.min_side)


_LEARNED = Recipe(stages=(("learned", 1.0),), steps_per_gaussian=3 / 80)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        DEFAULT_RECIPE: Recipe(),
        "fewer-gaussians": Recipe(steps_per_gaussian=3 / 80),
        "more-gaussians": Recipe(steps_per_gaussian=3 / 160),
        "later-colours": Recipe(sh_share=0.33),
        "all-sizes": Recipe(levels=()),
        "all-colours": Recipe(sh_share=0.0),
        "learned": _LEARNED,
        "learned-more-gaussians": replace(_LEARNED, steps_per_gaussian=3 / 160),
        "learned-no-growth": replace(_LEARNED, density="none", view_batch=8, sh_share=0.0),
        "learned-block-gn": replace(_LEARNED, stages=(("learned", 0.75), ("block-gn", 0.25))),
        "adam-mcmc": Recipe(stages=(("adam", 1.0),), density="mcmc"),
    }
)
"""Candidates by name; docs/results/planned-runs.md has what chose the default."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of ``name``; raises InputError with the nearest names if there is none."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; {nearest_names(name, RECIPES)}")
    return RECIPES[name]


def edit_every(steps: int) -> int:
    """Return the steps between two edits of ``gain`` in a run of so many: fewer in short ones, so that they grow."""
    growing = (GainOptions.until - GainOptions.begin) * steps
    return max(1, min(GainOptions.every, round(growing / _EDITS)))
