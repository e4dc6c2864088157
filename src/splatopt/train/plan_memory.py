"""What a run that plans itself remembers beside its decisions, as its checkpoints hold it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from splatopt.core.checks import InputError
from splatopt.core.reading import Json
from splatopt.core.typed import read_dataclass

PLAN = "plan"
"""The entry of a checkpoint that it is."""


@dataclass(frozen=True)
class PlateauMemory:
    """What :class:`~splatopt.train.plan_plateau.Plateau` has taken in.

    Attributes:
        total: Sum of the losses of the stretch at hand.
        count: How many they are.
        lowest: The lowest mean of a stretch; None before the first.
        since: Stretches since then.
    """

    total: float = 0.0
    count: int = 0
    lowest: float | None = None
    since: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can have taken in."""
        if self.count < 0 or self.since < 0 or not all(map(math.isfinite, (self.total, self.lowest or 0.0))):
            raise InputError("losses must be finite, and their numbers at least 0")


@dataclass(frozen=True)
class PlanMemory:
    """What decisions are taken by.

    Attributes:
        optimizer: Whose steps were timed.
        scale: The pace that was expected before the first of them, over the usual one's.
        stretches: Of steps: how many, seconds, pixels and Gaussians of each; see ``plan_costs``.
        scoring: Seconds that scoring took, and of how many Gaussians.
        plateau: Whether training still improves.
    """

    optimizer: str
    scale: float = 1.0
    stretches: tuple[tuple[int, float, float, float], ...] = ()
    scoring: tuple[float, int] = (0.0, 1)
    plateau: PlateauMemory = field(default_factory=PlateauMemory)

    def __post_init__(self) -> None:
        """Refuse what no clock can have measured."""
        numbers = [self.scale, *(number for stretch in self.stretches for number in stretch), self.scoring[0] + 1.0]
        if not all(0 < number < math.inf for number in numbers) or self.scoring[1] < 0:
            raise InputError("steps, seconds, pixels and Gaussians that were measured must be above 0 and finite")

    def to_json(self) -> dict[str, Json]:
        """Return what :func:`read_memory` reads."""
        return asdict(self)


def read_memory(value: Json, where: str) -> PlanMemory:
    """Return the memory that a checkpoint holds; raises InputError where it is none."""
    plateau = value.get("plateau", {}) if isinstance(value, dict) else {}
    whole = {name: one for name, one in value.items() if name != "plateau"} if isinstance(value, dict) else value
    losses = read_dataclass(plateau, PlateauMemory, "number", f"{where}: plateau")
    memory = read_dataclass(whole, PlanMemory, "entry", where)
    return PlanMemory(memory.optimizer, memory.scale, memory.stretches, memory.scoring, losses)
