"""A run that plans itself: from what its steps take to how many there can be.

At the start one gradient is timed. From then on the run looks at its clock at fixed shares of its time, fits what a
step costs (``plan_costs``), and asks how many steps of every stage fit into what is left, with the photographs' sizes
and the growth that are still to come. What scoring and writing take in the end is laid aside. The last step thus comes
when it is time for it, with all schedules at their end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from splatopt.density.gain import GainOptions
from splatopt.train.levels import Level, parse_levels, written_levels
from splatopt.train.plan import Decision, Plan, PlannedStage
from splatopt.train.plan_costs import StepCosts, Stretch, files_seconds, gaussians_at, growth_of, load_solver
from splatopt.train.plan_memory import PlanMemory
from splatopt.train.plan_plateau import Plateau
from splatopt.train.planner import Planner, Taken
from splatopt.train.recipe import Recipe, edit_every

PLATEAU = "plateau"
"""What a decision is taken for that ends a run early."""

_LOOKS = (0.01, 0.03, 0.06, *(0.05 * part for part in range(2, 20)), 0.97, 0.985)
"""Shares of the time after which the run looks at its clock."""

_CAP_UNTIL = 0.2
"""Share of the run up to which the number of Gaussians of its end may still change: while they are being added."""

_SAMPLES = 16
_EARLY_END = 10
"""Where nothing improves any more, schedules end within a tenth of the steps so far."""


@dataclass(frozen=True)
class PlanFacts:
    """What a plan is made for.

    Attributes:
        seconds: Time of the whole run, from when it was asked for.
        recipe: What is done with it.
        views: Training views.
        pixels: Of a step, at full size.
        side: Pixels of the photographs' longer side.
        max_gaussians: The bound that was given, or the most that the plan may take; None where none are added.
        is_bound: Whether it was given.
        levels: Levels that were given, which are not planned; None where none were.
        sh_degree: Highest degree of the colour.
        sh_interval: Steps between two degrees that were given; None where the recipe says.
        growth: Shares of the run between which Gaussians are added.
        plans_edits: Whether the strategy is ``gain`` and how often it edits was not given.
        until_plateau: Whether the run ends sooner where nothing improves.
    """

    seconds: float
    recipe: Recipe
    views: int
    pixels: int
    side: int
    max_gaussians: int | None
    is_bound: bool = False
    levels: str | None = None
    sh_degree: int = 3
    sh_interval: int | None = None
    growth: tuple[float, float] = growth_of(GainOptions())
    plans_edits: bool = False
    until_plateau: bool = False

    def is_settled(self, step: int, done: float) -> bool:
        """Whether neither the photographs' size nor the number of Gaussians changes any more.

        Args:
            step: Steps done.
            done: The share of the run that they are.
        """
        if self.levels is None:
            levels_end = all(done >= until for _, until in self.recipe.levels_for(self.side))
        else:
            levels_end = all(step >= level.end for level in parse_levels(self.levels))
        return levels_end and done >= self.growth[1]


class ByClock(Planner):
    """Decides by the time that steps take."""

    def __init__(self, facts: PlanFacts, gaussians: int, now: float, plan: Plan | None = None) -> None:
        """Begin, or go on with a plan.

        Args:
            facts: What is planned for.
            gaussians: How many there are.
            now: Seconds since the run was asked for.
            plan: That of the run so far; a new one when None.
        """
        load_solver()
        self.facts = facts
        self._scoring = (0.0, gaussians)
        optimizer = facts.recipe.stages[0][0]
        self._costs = StepCosts(optimizer)
        self._optimizer = optimizer
        self._looks = self._looks_from(now)
        self._epoch = max(1, facts.views // facts.recipe.view_batch)
        self._plateau = Plateau(self._epoch)
        self._mark: tuple[int, float] | None = None
        self._sums = np.zeros(2)
        if plan is None:
            shares = np.cumsum([share for _, share in facts.recipe.stages])
            stages = [
                PlannedStage(name, place, float(until) / float(shares[-1]))
                for place, ((name, _), until) in enumerate(zip(facts.recipe.stages, shares, strict=True), start=1)
            ]
            first = Decision(0, 0.0, "start", tuple(stages))
            plan = Plan((self._decide(first, 0, gaussians, now, "start"),))
        self.plan, self.current = plan, plan.decisions[-1]

    def _looks_from(self, now: float) -> list[float]:
        """Times at which the run looks at its clock, the next one last."""
        return [now + share * (self.facts.seconds - now) for share in reversed(_LOOKS)]

    def seconds_left(self, taken: Taken) -> float | None:
        """Return the seconds until the run is to end; of one that nothing improves, by what its last steps take."""
        left = max(0.0, self.facts.seconds - taken.now)
        if self.current.why != PLATEAU:
            return left
        each = self._costs.predict(self.facts.pixels, taken.gaussians)
        return min(left, (self.current.steps - taken.step) * each + self._reserve(taken.gaussians))

    def go_back(self, step: int) -> Decision:
        """Return the decision that held after ``step`` steps; those that came later are forgotten."""
        self.plan = self.plan.until(step)
        self.current = self.plan.decisions[-1]
        self._mark = None
        return self.current

    @property
    def memory(self) -> PlanMemory:
        """What it decides by."""
        costs = self._costs
        stretches = tuple((one.steps, one.seconds, one.pixels, one.gaussians) for one in costs.stretches)
        return PlanMemory(costs.optimizer, costs.scale, stretches, self._scoring, self._plateau.memory)

    def recall(self, memory: PlanMemory) -> None:
        """Decide by what a checkpoint holds; what steps take is measured anew from the next one on."""
        self._optimizer, self._mark = memory.optimizer, None
        self._costs = StepCosts(memory.optimizer, memory.scale, [Stretch(*one) for one in memory.stretches])
        self._scoring = memory.scoring
        self._plateau = Plateau(self._epoch, memory.plateau)

    def limit(self, max_gaussians: int) -> None:
        """Have memory for no more Gaussians than so many."""
        self.facts = replace(self.facts, max_gaussians=max_gaussians)
        cap = min(self.current.max_gaussians or max_gaussians, max_gaussians)
        self.take(replace(self.current, max_gaussians=cap))

    def go_on(self, step: int, gaussians: int, now: float) -> Decision:
        """Return the decision for a run that had come to its end, and has more time now."""
        self._plateau = Plateau(self._epoch)
        return self.take(self._decide(self.current, step, gaussians, now, "more time"))

    def measured(self, now: float, scoring: float, gradient: float) -> Decision:
        """Return the decision for the whole run after its first scoring.

        Args:
            now: Seconds since the run was asked for.
            scoring: What scoring the held-out views took. Unit: seconds.
            gradient: What the gradient of one training view takes. Unit: seconds.
        """
        batch, gaussians = self.facts.recipe.view_batch, self._scoring[1]
        usual = StepCosts("adam").predict(self.facts.pixels, gaussians)
        self._costs = StepCosts(self._optimizer, scale=max(1e-9, batch * gradient) / usual)
        self._scoring = (scoring, gaussians)
        self._looks = self._looks_from(now)
        return self.take(self._decide(self.current, 0, gaussians, now, "start"))

    def after_step(self, taken: Taken) -> Decision | None:
        """Return a decision where the run is to look at its clock, or where nothing improves any more."""
        position = self.current.position(taken.step)
        stage = self.current.stages[position]
        self._note(taken)
        if taken.step >= self.current.steps or self.current.why == PLATEAU:
            return None
        if stage.optimizer != self._optimizer:  # the next step is another optimizer's
            self._costs = StepCosts(stage.optimizer, self._costs.pace)
            self._optimizer, self._mark = stage.optimizer, None
            return None
        if taken.step == self.current.parts[position].begin:
            return None
        done = self.current.done_at(taken.step)
        is_last = position == len(self.current.stages) - 1
        if self.facts.until_plateau and is_last and self.facts.is_settled(taken.step, done):
            self._plateau.add(taken.loss)
            if self._plateau.is_reached(taken.step):
                return self.take(self._more_colour(taken.step, done) or self._ended_early(taken.step, done))
        if not self._looks or taken.now < self._looks[-1]:
            return None
        while self._looks and taken.now >= self._looks[-1]:
            self._looks.pop()
        self._close_stretch(taken)
        return self.take(self._decide(self.current, taken.step, taken.gaussians, taken.now, "pace"))

    def _note(self, taken: Taken) -> None:
        """Count a step of the stretch at hand; the first one begins it."""
        if self._mark is None:
            self._mark, self._sums = (taken.step, taken.now), np.zeros(2)
            return
        factor = self._factor(self.current.done_at(taken.step - 1), taken.step - 1)
        self._sums += (self.facts.pixels / factor**2, taken.gaussians)

    def _close_stretch(self, taken: Taken) -> None:
        """Take the steps since the last look into account."""
        assert self._mark is not None
        steps, seconds = taken.step - self._mark[0], taken.now - self._mark[1]
        if steps and seconds > 0:
            self._costs.note(Stretch(steps, seconds / steps, *(float(total) / steps for total in self._sums)))
        self._mark, self._sums = (taken.step, taken.now), np.zeros(2)

    def _factor(self, done: float, step: int | None = None) -> int:
        """How many times smaller photographs are at a share of the run, or at a step where levels were given."""
        if self.facts.levels is not None:
            levels = parse_levels(self.facts.levels)
            return next((one.factor for one in levels if step is not None and step < one.end), 1)
        levels_for = self.facts.recipe.levels_for(self.facts.side)
        return next((factor for factor, until in levels_for if done < until), 1)

    # ------------------------------------------------------------------ how many steps

    def _decide(self, before: Decision, step: int, gaussians: int, now: float, why: str) -> Decision:
        """Return how the run goes on so that it ends in time.

        Args:
            before: What held so far.
            step: Steps done.
            gaussians: How many there are.
            now: Seconds since the run was asked for.
            why: A word.
        """
        done = before.done_at(step) if step else 0.0
        left = max(0.0, self.facts.seconds - now)
        cap = self._cap(before, done, gaussians, left)
        left = max(0.0, left - self._reserve(gaussians_at(1.0, done, gaussians, cap, self.facts.growth)))
        costs, end, stages = self._costs, step, list(before.stages[: before.position(step)])
        for place in range(len(stages), len(before.stages)):
            stage, begin = before.stages[place], max(done, before.share(place)[0])
            if stage.optimizer != self._optimizer and place > before.position(step):
                costs = StepCosts(stage.optimizer, self._costs.pace)
            seconds = left * (stage.until - begin) / (1 - done) if done < 1 else left
            points = begin + (np.arange(_SAMPLES) + 0.5) / _SAMPLES * (stage.until - begin)
            mean = np.mean([self._step_seconds(costs, point, done, gaussians, cap) for point in points])
            end += max(1, round(seconds / float(mean)))
            stages.append(PlannedStage(stage.optimizer, end, stage.until))
        decision = Decision(step, done, why, tuple(stages), max_gaussians=cap)
        return self._with_schedules(decision, before)

    def _step_seconds(self, costs: StepCosts, at: float, done: float, gaussians: int, cap: int | None) -> float:
        """What a step takes at a share of the run, with the Gaussians that there will be."""
        pixels = self.facts.pixels / self._factor(at) ** 2
        return costs.predict(pixels, gaussians_at(at, done, gaussians, cap, self.facts.growth))

    def _cap(self, before: Decision, done: float, gaussians: int, left: float) -> int | None:
        """How many Gaussians there may be: so many that enough steps are left."""
        most = self.facts.max_gaussians
        if most is None or self.facts.is_bound:
            return most
        if before.max_gaussians is not None and done > min(_CAP_UNTIL, self.facts.growth[1]):
            return max(gaussians, min(before.max_gaussians, most))
        pixels = self.facts.pixels
        low, high = min(gaussians, most), most
        while low < high:
            middle = (low + high + 1) // 2
            fits = left >= self.facts.recipe.steps_per_gaussian * middle * self._costs.predict(pixels, middle)
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _reserve(self, gaussians: float) -> float:
        """Seconds that scoring and files take in the end."""
        scoring, scored = self._scoring
        grown = self._costs.predict(self.facts.pixels, gaussians) / self._costs.predict(self.facts.pixels, scored)
        return scoring * max(1.0, grown) + files_seconds(gaussians)

    # ------------------------------------------------------------------ what follows from them

    def _with_schedules(self, decision: Decision, before: Decision) -> Decision:
        """Return a decision with the levels and the colour's schedule in steps; what has passed stays."""
        levels = self.facts.levels
        if levels is None:
            kept = {one.factor: one.end for one in parse_levels(before.levels) if one.end <= decision.step}
            found: list[Level] = []
            for factor, share in self.facts.recipe.levels_for(self.facts.side):
                until = kept.get(factor, decision.step_at(share))
                if until > (found[-1].end if found else 0):
                    found.append(Level(factor, until))
            levels = written_levels(tuple(found))
        interval = self.facts.sh_interval
        if interval is None:
            interval = self._sh_interval(decision, before.sh_interval)
        every = edit_every(decision.steps) if self.facts.plans_edits else None
        return replace(decision, levels=levels, sh_interval=interval, edit_every=every)

    def _sh_interval(self, decision: Decision, before: int) -> int:
        """Steps between two degrees, so that the next rise comes at its share and none is taken back."""
        share, step = self.facts.recipe.sh_share, decision.step
        if share == 0:
            return 0
        degree = step // before if before else 0
        if degree >= self.facts.sh_degree:
            return before
        wanted = round(decision.step_at(min(1.0, (degree + 1) * share)) / (degree + 1))
        wanted = max(wanted, step // (degree + 1) + 1)
        return min(wanted, step // degree) if degree else wanted

    def _more_colour(self, step: int, done: float) -> Decision | None:
        """Return the decision by which the colours' next degree comes now; None where all have come.

        What the losses say of whether anything improves is then asked anew.
        """
        before = self.current.sh_interval
        degree = step // before if before else self.facts.sh_degree
        if degree >= self.facts.sh_degree or self.facts.sh_interval is not None:
            return None
        self._plateau = Plateau(self._epoch)
        return replace(self.current, step=step, done=done, why="colours", sh_interval=step // (degree + 1))

    def _ended_early(self, step: int, done: float) -> Decision:
        """Return the decision by which schedules come to their end soon."""
        end = min(self.current.steps, step + max(1, step // _EARLY_END))
        stages = (*self.current.stages[:-1], PlannedStage(self._optimizer, end, 1.0))
        before = self.current
        return self._with_schedules(Decision(step, done, PLATEAU, stages, max_gaussians=before.max_gaussians), before)
