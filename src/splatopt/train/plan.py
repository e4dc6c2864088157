"""The plan of a run: what it decided about its steps, and when; written so that it can be repeated by steps.

A decision holds from the step at which it was taken until the next one. It says how many steps there are, which
optimizer takes which, at which resolution, and how many Gaussians there may be. What schedules go by is the share of
the run that is done. It grows evenly within a stage, and a decision that moves the end goes on from the share that was
reached, so no schedule jumps:

    done(s) = d₀ + (d₁ - d₀) (s - s₀) / (s₁ - s₀)

with d₀ at the decision, or where the stage begins if that is later, and d₁ at the stage's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress
from splatopt.core.reading import read_object
from splatopt.core.typed import Fields
from splatopt.core.version import __version__
from splatopt.density.gain import GainOptions
from splatopt.runs.folder import TRAINED_ON, write_json
from splatopt.train.config import TrainConfig
from splatopt.train.levels import parse_levels
from splatopt.train.stages import Stage, stage_at, written

FORMAT = "splatopt-plan-1"
_MAX_DECISIONS, _MAX_STAGES = 10_000, 100
_MAX_COUNT = 10**12


@dataclass(frozen=True)
class PlannedStage:
    """One optimizer's part of a plan.

    Attributes:
        optimizer: Its name.
        end: Steps of the run when it has ended.
        until: Share of the run that is done then.
    """

    optimizer: str
    end: int
    until: float


@dataclass(frozen=True)
class Decision:
    """How a run goes on from a step.

    Attributes:
        step: Steps done when it was taken.
        done: Share of the run that was done then.
        why: What it was taken for, a word.
        stages: All of them, those that have ended too; the last ends at a share of 1.
        levels: As ``--levels`` reads them.
        sh_interval: Steps from one degree of the colour to the next; 0 for all from the start.
        max_gaussians: How many Gaussians there may be; None where no strategy is at work.
        edit_every: Steps from one edit of ``gain`` to the next; None for those that were given.
    """

    step: int
    done: float
    why: str
    stages: tuple[PlannedStage, ...]
    levels: str = ""
    sh_interval: int = 0
    max_gaussians: int | None = None
    edit_every: int | None = None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].end

    @cached_property
    def parts(self) -> tuple[Stage, ...]:
        """The stages with their steps."""
        begins = (0, *(stage.end for stage in self.stages))
        return tuple(
            Stage(one.optimizer, begin, one.end - begin) for begin, one in zip(begins, self.stages, strict=False)
        )

    def position(self, step: int) -> int:
        """Return the position of the stage that takes the step after ``step`` steps; the last one at the end."""
        return stage_at(self.parts, step)

    def share(self, position: int) -> tuple[float, float]:
        """Return the shares of the run that are done where a stage begins, and where it ends."""
        return self.stages[position - 1].until if position else 0.0, self.stages[position].until

    def done_at(self, step: int) -> float:
        """Return the share of the run that is done after ``step`` steps, from those of the decision on."""
        return self._within(step, self.position(step))

    def _within(self, step: int, position: int) -> float:
        """The share after ``step`` steps, by the line of one stage."""
        stage, (first, last) = self.parts[position], self.share(position)
        begin, reached = (stage.begin, first) if self.step <= stage.begin else (self.step, self.done)
        left = max(1, stage.end - begin)
        return min(1.0, max(0.0, reached + (last - reached) * min(1.0, (step - begin) / left)))

    def step_at(self, share: float) -> int:
        """Return the first step, from that of the decision on, after which a share of the run is done."""
        low, high = self.step, self.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.done_at(middle) >= share else (middle + 1, high)
        return low

    def whole_progress(self, step: int) -> Progress:
        """Return where the run stands over all stages."""
        return Progress(step, self.steps, self.done_at(step))

    def stage_progress(self, step: int, position: int) -> Progress:
        """Return where a stage's own schedules stand before the step after ``step`` steps of the run."""
        stage, (first, last) = self.parts[position], self.share(position)
        passed = (self._within(step, position) - first) / (last - first)
        return Progress(step - stage.begin, stage.steps, min(1.0, max(0.0, passed)))

    def applied(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration of a run that goes on so."""
        settings: dict[str, object] = {"steps": self.steps, "levels": self.levels, "sh_interval": self.sh_interval}
        if config.schedule.stages is not None:
            settings["stages"] = written(self.parts)
        if config.density.is_at_work:
            settings["max_gaussians"] = self.max_gaussians
        options = config.density.density_options
        if self.edit_every is not None and isinstance(options, GainOptions):
            settings["density_options"] = replace(options, every=self.edit_every)
        return config.changed(**settings)

    @classmethod
    def from_json(cls, one: Fields) -> Decision:
        """Return the decision of a file; raises InputError where it is none."""
        stages: list[PlannedStage] = []
        for stage in one.objects("stages", _MAX_STAGES):
            end, until = stage.count("end", _MAX_COUNT), stage.number("until", minimum=0, maximum=1)
            before = stages[-1] if stages else PlannedStage("", 0, 0.0)
            if end <= before.end or until <= before.until:
                raise stage.refusal("end", "after that of the stage before, in steps and in its share of the run")
            stages.append(PlannedStage(stage.text("optimizer"), end, until))
        if not stages or stages[-1].until != 1:
            raise one.refusal("stages", "stages of which the last ends with the run")
        levels = one.text("levels")
        parse_levels(levels)
        most = one.count("max_gaussians", _MAX_COUNT) if "max_gaussians" in one else None
        if most == 0:
            raise one.refusal("max_gaussians", "1 or more")
        return cls(
            step=one.count("step", stages[-1].end),
            done=one.number("done", minimum=0, maximum=1),
            why=one.text("why"),
            stages=tuple(stages),
            levels=levels,
            sh_interval=one.count("sh_interval", _MAX_COUNT),
            max_gaussians=most,
            edit_every=max(1, one.count("edit_every", _MAX_COUNT)) if "edit_every" in one else None,
        )


@dataclass(frozen=True)
class Plan:
    """All decisions of a run, by the step at which each was taken; the first is of step 0."""

    decisions: tuple[Decision, ...]

    def at(self, step: int) -> Decision:
        """Return the decision that holds for the step after ``step`` steps."""
        return next(one for one in reversed(self.decisions) if one.step <= step)

    def until(self, step: int) -> Plan:
        """Return the plan with the decisions that were taken in the first ``step`` steps, and before them."""
        return replace(self, decisions=tuple(one for one in self.decisions if one.step <= step))

    def joined(self, decision: Decision) -> Plan:
        """Return the plan with one more decision, in place of one of the same step."""
        kept = (one for one in self.decisions if one.step < decision.step)
        return replace(self, decisions=(*kept, decision))


def write_plan(path: Path, plan: Plan, config: TrainConfig, trained_on: Mapping[str, str]) -> None:
    """Write a run's plan in one move.

    Args:
        path: The file.
        plan: What was decided.
        config: What the run was told.
        trained_on: The fingerprint of its capture.
    """
    apart = ("capture", "out")
    write_json(
        path,
        {
            "format": FORMAT,
            "version": __version__,
            TRAINED_ON: dict(trained_on),
            "decisions": [asdict(one) for one in plan.decisions],
            "config": {name: value for name, value in config.to_json().items() if name not in apart},
        },
    )


@dataclass(frozen=True)
class PlanFile:
    """What a plan's file holds.

    Attributes:
        plan: The decisions.
        config: What the run was told, with ``capture`` and ``out`` naming the file.
        trained_on: The fingerprint of its capture.
    """

    plan: Plan
    config: TrainConfig
    trained_on: Mapping[str, str]


def read_plan(path: Path) -> PlanFile:
    """Read the plan of a run.

    Raises:
        InputError: There is none, or it is damaged.
    """
    file = path / "plan.json" if path.is_dir() else path
    values = read_object(file)
    if values is None:
        raise InputError(f"there is no plan at {path}; give the plan.json of a run that planned itself")
    if values.get("format") != FORMAT:
        raise InputError(f"{file} is no plan of splatopt; give the plan.json of a run that planned itself")
    whole = Fields(values, str(file))
    fingerprint = whole.object(TRAINED_ON)
    trained_on = {name: fingerprint.text(name) for name in fingerprint.values}
    decisions = tuple(Decision.from_json(one) for one in whole.objects("decisions", _MAX_DECISIONS))
    steps = [one.step for one in decisions]
    names = {tuple(stage.optimizer for stage in one.stages) for one in decisions}
    if not steps or steps[0] != 0 or steps != sorted(set(steps)) or len(names) > 1:
        raise whole.refusal("decisions", "decisions by rising steps from 0 on, all with the same optimizers")
    settings = {**whole.object("config").values, "capture": str(file), "out": str(file)}
    config = TrainConfig.from_json(settings, f"{file}: config")
    if names != {tuple(stage.optimizer for stage in config.schedule.all_stages)}:
        raise whole.refusal("decisions", "decisions on the optimizers that its config names")
    return PlanFile(Plan(decisions), config, trained_on)
