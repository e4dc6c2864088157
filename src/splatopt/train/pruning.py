"""What pruning a run is told, in which rounds it goes, and the file that holds its curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from splatopt.core.bounds import bounds
from splatopt.core.checks import InputError
from splatopt.core.optimizer import find_optimizer
from splatopt.core.reading import read_object
from splatopt.core.typed import Fields, Json
from splatopt.density.removal import Criterion
from splatopt.runs.config import SettingGroup
from splatopt.runs.folder import write_json
from splatopt.train.density_options import NO_DENSITY
from splatopt.train.options import ScheduleOptions
from splatopt.train.recipe import DEFAULT_RECIPE
from splatopt.train.stages import Stage, written

_SMALLEST_PART = 1 / 8
"""Of a round's share at first: where removing so little breaks the budget, pruning has come to its end."""


@dataclass(frozen=True)
class PruneOptions(SettingGroup):
    """How far a scene is pruned, and how."""

    to: int | None = field(default=None, metadata=bounds(1))
    """Remove Gaussians until so many are left. Unit: Gaussians."""

    max_loss: float | None = field(default=None, metadata=bounds(0, 100))
    """Remove Gaussians for as long as the mean PSNR over the training views, after repair, lies at most so far below
    what it was; leave the fewest that keep to it. Unit: dB."""

    by: Criterion = Criterion.COST
    """Which go first: those whose removal costs the loss least (cost), the most transparent (opacity), or those with
    the lowest score of PUP 3D-GS (pup); the last two to compare with."""

    round_share: float = field(default=0.15, metadata=bounds(0.001, 0.9))
    """Share of the Gaussians that goes in one round, at most; scores are taken anew in each. Unit: fraction.
    Source: docs/results/density.md."""

    repair: int = field(default=400, metadata=bounds(0))
    """Optimizer steps after each round. Unit: steps. Source: docs/results/density.md."""

    optimizer: str = "block-gn"
    """Name of the optimizer that repairs; it has the run's options where the run used it. Source:
    docs/results/density.md."""

    late: float = field(default=0.2, metadata=bounds(0.001, 1))
    """Share of the optimizer's schedule, its end, that the steps of a round go through: small steps, since the scene is
    nearly good. Unit: fraction. Source: docs/results/density.md."""

    average: float = field(default=20.0, metadata=bounds(0))
    """Keep the running average of the repair's iterates, weighted like the step to this power; 0 for the last one.
    Where the learned optimizer is among the stages there is none beside its own. Unit: none. Source:
    docs/results/density.md."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        super().__post_init__()
        find_optimizer(self.optimizer)
        if (self.to is None) == (self.max_loss is None):
            given = "neither" if self.to is None else "both"
            raise InputError(f"pruning takes either --to N or --max-loss dB, got {given}; give one of them")

    def check_count(self, count: int, where: Path) -> None:
        """Raise InputError where the run in ``where``, of ``count`` Gaussians, has nothing to remove."""
        if self.to is not None and self.to >= count:
            raise InputError(f"--to must lie below the {count:,} Gaussians of {where}, got {self.to:,}")
        if count < 2:
            raise InputError(f"{where} holds {count} Gaussians, and pruning leaves at least one; give another run")

    def allows(self, first: PruneRound, one: PruneRound) -> bool:
        """Whether a round may be kept: training views have lost at most ``max_loss``; no others are asked."""
        return self.max_loss is None or first.train_psnr - one.train_psnr <= self.max_loss


@dataclass
class RoundPlan:
    """How many Gaussians each round leaves.

    Attributes:
        share: Of those that are there, what goes in a round.
        fewest: Not fewer are left.
        smallest_share: There is no round of a smaller share.
    """

    share: float
    fewest: int
    smallest_share: float = 0.0

    @classmethod
    def of(cls, options: PruneOptions, count: int) -> RoundPlan:
        """Return the plan for a scene of ``count`` Gaussians: towards ``to`` the fewest rounds, each of one share."""
        if options.to is None:
            return cls(options.round_share, 1, _SMALLEST_PART * options.round_share)
        rounds = math.ceil(math.log(options.to / count) / math.log1p(-options.round_share))
        return cls(1 - (options.to / count) ** (1 / rounds), options.to)

    def target(self, count: int) -> int | None:
        """Return how many of ``count`` are left by the next round; None where there is none."""
        if count <= self.fewest or self.share < self.smallest_share:
            return None
        return max(self.fewest, min(count - 1, math.floor(count * (1 - self.share))))

    def halve(self, count: int) -> None:
        """Take half as many of ``count`` from now on, as a round broke the budget and was undone."""
        broke = self.target(count)
        self.share /= 2
        if self.target(count) == broke:
            self.share = 0.0  # that was a single Gaussian


@dataclass(frozen=True)
class PruneRound:
    """The scene after one round of removal and repair; the first of a curve is the scene before.

    Attributes:
        gaussians: How many there are.
        steps: Optimizer steps that the scene has seen.
        loss: Mean of the run's loss over the training views.
        train_psnr: Mean PSNR over the training views, of renders as the loss has them, dB.
        psnr: Mean PSNR of the scored views, dB.
        ssim: Their mean SSIM.
        seconds: Scoring Gaussians, removing and repairing; evaluation is not counted.
        kept: False where the round broke the budget and was undone.
    """

    gaussians: int
    steps: int
    loss: float
    train_psnr: float
    psnr: float
    ssim: float
    seconds: float
    kept: bool = True

    def undone(self) -> PruneRound:
        """Return the round as one that was not kept."""
        return replace(self, kept=False)


@dataclass(frozen=True)
class PruneCurve:
    """What ``pruning.json`` holds.

    Attributes:
        run: The folder of the run that was pruned.
        subset: Which views ``psnr`` and ``ssim`` are of: test or train.
        options: What was asked for, by name; what was not given is left out.
        rounds: The scene before, and after each round.
    """

    run: str
    subset: str
    options: Mapping[str, Json]
    rounds: Sequence[PruneRound]

    @classmethod
    def of(cls, run: Path, subset: str, options: PruneOptions, rounds: Sequence[PruneRound]) -> PruneCurve:
        """Return the curve of a run in the folder ``run``."""
        given = {item.name: getattr(options, item.name) for item in fields(PruneOptions)}
        asked = {name: value for name, value in given.items() if value is not None} | {"by": options.by.value}
        return cls(str(run.absolute()), subset, asked, rounds)

    def write(self, path: Path) -> None:
        """Write the file in one move."""
        rounds = [asdict(one) for one in self.rounds]
        write_json(path, {"run": self.run, "subset": self.subset, "options": dict(self.options), "rounds": rounds})

    @classmethod
    def read(cls, path: Path) -> PruneCurve | None:
        """Return what the file holds; None where there is none.

        Raises:
            InputError: It is damaged.
        """
        values = read_object(path)
        if values is None:
            return None
        record = Fields(values, str(path))
        try:
            options = record.object("options").values
            rounds = [_read_round(one) for one in record.objects("rounds")]
            return cls(record.text("run"), record.text("subset"), options, rounds)
        except InputError as error:
            raise InputError(f"{error}; delete the file to leave the curve out") from error


def _read_round(one: Fields) -> PruneRound:
    numbers = {name: one.any_number(name) for name in ("loss", "train_psnr", "psnr", "ssim", "seconds")}
    if not isinstance(one.values.get("kept"), bool):
        raise one.refusal("kept", "true or false")
    return PruneRound(one.count("gaussians"), one.count("steps"), **numbers, kept=one.values["kept"])


def pruned_schedule(schedule: ScheduleOptions, taken: int, options: PruneOptions, repaired: int) -> dict[str, object]:
    """Return the settings that tell what a pruned scene has seen: the run's steps and the repair's, which adds no rows.

    Args:
        schedule: The run's.
        taken: Steps that the run took.
        options: Name the optimizer that repairs.
        repaired: Steps that it took.
    """
    stages = [Stage(one.optimizer, one.begin, min(one.end, taken) - one.begin) for one in schedule.all_stages]
    stages = [one for one in stages if one.steps > 0]
    if repaired:
        stages.append(Stage(options.optimizer, taken, repaired))
    stages = stages or list(schedule.all_stages)
    given = schedule.options_by_name
    has_average = "learned" in (*schedule.optimizers, options.optimizer)
    return {
        "stages": written(tuple(stages)),
        "steps": stages[-1].end,
        "optimizer": stages[0].optimizer,
        "optimizer_options": {
            one.optimizer: given.get(one.optimizer) or find_optimizer(one.optimizer).options() for one in stages
        },
        "horizon": None,
        "average": options.average if repaired and not has_average else 0.0,
        "max_seconds": 0.0,
        "minutes": None,
        "until_plateau": False,
        "plan": None,
        "recipe": DEFAULT_RECIPE,
        "levels": "",
        "density": NO_DENSITY,
        "density_options": None,
        "max_gaussians": None,
        "max_megabytes": None,
    }
