"""Plans by the clock, on machines that are made up: when runs end, and how their schedules move."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from splatopt.core.checks import InputError
from splatopt.density.adc import AdcOptions
from splatopt.density.gain import GainOptions
from splatopt.density.mcmc import McmcOptions
from splatopt.train.levels import factor_at, parse_levels
from splatopt.train.outlook import Course, Outlook
from splatopt.train.plan import Decision, PlannedStage
from splatopt.train.plan_by_clock import ByClock, PlanFacts
from splatopt.train.plan_costs import StepCosts, Stretch, files_seconds, growth_of
from splatopt.train.plan_memory import read_memory
from splatopt.train.plan_plateau import Plateau
from splatopt.train.planner import Taken
from splatopt.train.recipe import Recipe
from splatopt.train.stages import Stage

FACTS = PlanFacts(
    seconds=120.0,
    recipe=Recipe(),
    views=40,
    pixels=400_000,
    side=1000,
    max_gaussians=100_000,
)


@dataclass
class MadeUp:
    """A machine whose steps take what pixels and Gaussians cost, times what else goes on there.

    A strategy adds Gaussians there until ``reached`` of the cap.
    """

    seconds_a_pixel: float = 5e-7
    seconds_a_gaussian: float = 5e-7
    burden: Callable[[float], float] = lambda now: 1.0
    loading: float = 4.0
    scoring: float = 2.0
    reached: float = 1.0
    decisions: list[Decision] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    left: list[tuple[float, float]] = field(default_factory=list)

    def run(self, facts: PlanFacts = FACTS, loss: Callable[[int], float] = lambda step: 1.0) -> float:
        """Take all steps of a plan; returns when the run is done, its scoring and files included."""
        start = 10_000
        planner = ByClock(facts, start, self.loading)
        now, step, gaussians = self.loading + self.scoring, 0, start
        gradient = self.seconds_a_pixel * facts.pixels + self.seconds_a_gaussian * start
        self.decisions.append(planner.measured(now, self.scoring, gradient))
        while step < planner.current.steps:
            done = planner.current.done_at(step)
            self.done.append(done)
            if facts.max_gaussians is not None:
                begin, until = facts.growth
                share = min(1.0, max(0.0, (done - begin) / (until - begin)))
                gaussians = round(start * (self.reached * planner.current.max_gaussians / start) ** share)
            factor = factor_at(parse_levels(planner.current.levels), step)
            cost = self.seconds_a_pixel * facts.pixels / factor**2 + self.seconds_a_gaussian * gaussians
            now += self.burden(now) * cost
            step += 1
            decision = planner.after_step(taken := Taken(step, gaussians, now, loss(step)))
            self.left.append((now, planner.seconds_left(taken)))
            if decision is not None:
                self.decisions.append(decision)
        grown = gradient + self.seconds_a_gaussian * (gaussians - start)
        return now + self.scoring * grown / gradient + files_seconds(gaussians)


@pytest.mark.parametrize("seconds", [30.0, 200.0])
@pytest.mark.parametrize("burden", ["none", "twice", "from the middle", "in turns"])
@pytest.mark.parametrize(("pixel", "gaussian"), [(1e-6, 5e-7), (1e-7, 1e-6)])
def test_runs_end_in_time_whatever_else_goes_on(seconds, burden, pixel, gaussian):
    """Within a twentieth of their time, or three seconds."""
    burdens = {
        "none": lambda now: 1.0,
        "twice": lambda now: 2.0,
        "from the middle": lambda now: 2.0 if now > seconds / 2 else 1.0,
        "in turns": lambda now: 1.8 if int(now / seconds * 40) % 2 else 1.0,
    }
    machine = MadeUp(pixel, gaussian, burdens[burden])
    ended = machine.run(replace(FACTS, seconds=seconds))
    assert abs(ended - seconds) <= max(3.0, 0.05 * seconds)
    assert len(machine.decisions) < 30


def test_schedules_are_pulled_in_and_never_jump():
    machine = MadeUp(burden=lambda now: 3.0 if now > 60 else 1.0)
    machine.run()
    moves = [after - before for before, after in itertools.pairwise(machine.done)]
    assert min(moves) > 0
    assert max(moves) < 10 / len(moves)
    assert machine.done[-1] + moves[-1] == pytest.approx(1.0)
    caps = [one.max_gaussians for one in machine.decisions if one.done > 0.2]
    assert len(set(caps)) == 1


def test_levels_and_degrees_of_colour_follow_the_plan_and_what_has_passed_stays():
    machine = MadeUp(burden=lambda now: 3.0 if now > 40 else 1.0)
    machine.run()
    for before, after in itertools.pairwise(machine.decisions):
        step = after.step
        old, new = parse_levels(before.levels), parse_levels(after.levels)
        assert factor_at(new, step) == factor_at(old, step)
        assert [one for one in new if one.end <= step] == [one for one in old if one.end <= step]
        assert min(3, step // after.sh_interval) == min(3, step // before.sh_interval)
    last = machine.decisions[-1]
    assert last.levels.startswith("2:")  # photographs of 250 pixels say too little
    assert machine.done[parse_levels(last.levels)[0].end] == pytest.approx(0.3, abs=0.02)


def test_more_time_goes_into_steps_and_gaussians():
    ends = []
    for seconds in (30.0, 120.0, 600.0):
        planner = ByClock(replace(FACTS, seconds=seconds, max_gaussians=1_000_000), 10_000, 0.0)
        decision = planner.measured(1.0, 0.5, 0.013)
        ends.append((decision.steps, decision.max_gaussians))
    for shorter, longer in itertools.pairwise(ends):
        assert shorter[0] < longer[0]
        assert shorter[1] < longer[1]


def test_a_run_ends_early_where_its_loss_no_longer_falls_and_its_schedules_end_with_it():
    facts = replace(FACTS, until_plateau=True, views=10)
    still, falling = MadeUp(1e-7, 1e-7), MadeUp(1e-7, 1e-7)
    ended = still.run(facts, lambda step: 0.5 + 0.1 * (step % 7))
    last = still.decisions[-1]
    assert last.why == "plateau"
    assert ended < 100
    assert facts.is_settled(last.step, last.done)
    assert last.step // last.sh_interval >= facts.sh_degree, "all colours are there when nothing improves any more"
    assert [one.why for one in still.decisions].count("colours") >= 1
    assert last.step < last.steps <= 1.1 * last.step + 1
    assert falling.run(facts, lambda step: 1 / (1 + 0.01 * step)) > 110
    assert falling.decisions[-1].why == "pace"


def test_a_plateau_is_told_from_noise_and_from_a_slow_fall():
    noisy, slow = Plateau(epoch=10), Plateau(epoch=10)
    for step in range(1, 2001):
        noisy.add(1.0 + 0.5 * ((step * 7919) % 10) / 10)
        slow.add(1.0 - 0.0003 * step)
        assert not slow.is_reached(step)
    assert noisy.is_reached(2000)


def test_what_a_step_costs_is_found_from_steps_of_several_sizes():
    costs = StepCosts("adam")
    for pixels, gaussians in ((1e5, 1e4), (4e5, 2e4), (4e5, 8e4)):
        costs.note(Stretch(10, 2e-3 + 1e-7 * pixels + 3e-7 * gaussians, pixels, gaussians))
    assert costs.predict(4e5, 8e4) == pytest.approx(2e-3 + 0.04 + 0.024, rel=0.01)
    assert costs.predict(4e5, 1e5) == pytest.approx(2e-3 + 0.04 + 0.03, rel=0.1)


def test_the_share_of_a_run_goes_on_from_where_it_is():
    """Two stages; the decision at step 30 makes the first one longer."""
    first = Decision(0, 0.0, "start", (PlannedStage("a", 50, 0.5), PlannedStage("b", 100, 1.0)))
    assert [first.done_at(step) for step in (0, 25, 50, 75, 100)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    later = Decision(30, first.done_at(30), "pace", (PlannedStage("a", 70, 0.5), PlannedStage("b", 80, 1.0)))
    assert later.done_at(30) == 0.3
    assert later.done_at(50) == pytest.approx(0.4)
    assert [later.done_at(step) for step in (70, 75, 80)] == [0.5, 0.75, 1.0]
    assert later.stage_progress(50, 0).fraction == pytest.approx(0.8)
    assert later.stage_progress(75, 1).fraction == pytest.approx(0.5)
    assert later.stage_progress(75, 1).step == 5
    assert later.step_at(0.4) == 50
    assert later.whole_progress(50).fraction_after(20) == pytest.approx(0.8)


@pytest.mark.parametrize("when", [0, 40, 700])
def test_what_a_run_remembers_has_it_end_early_at_the_same_step(when):
    """After a resume, which begins a new plan by what a checkpoint holds."""
    facts = replace(FACTS, until_plateau=True, views=10, seconds=1e6)
    decision = Decision(0, 0.0, "pace", (PlannedStage("learned", 2000, 1.0),), max_gaussians=20_000)
    memory, found = None, []
    for resumed in (False, True):
        planner = ByClock(facts, 20_000, 0.0)
        planner.take(decision)
        for step in range(1, 2001):
            if resumed and step == when + 1:
                planner = ByClock(facts, 20_000, 0.0, planner.plan)
                planner.recall(read_memory(json.loads(memory), "a checkpoint"))
            if planner.after_step(Taken(step, 20_000, 0.01 * step, 0.5 + 0.1 * (step % 7))):
                found.append(step)
                break
            if not resumed and step == max(1, when):
                memory = json.dumps(planner.memory.to_json())
    assert found[0] == found[1] > 700


def test_what_a_run_remembers_says_what_steps_and_scoring_take():
    planner = ByClock(FACTS, 10_000, 4.0)
    planner.measured(6.0, 2.0, 0.2)
    for step in range(1, 300):
        planner.after_step(Taken(step, 10_000, 6.0 + 0.2 * step, 1.0))
    again = ByClock(FACTS, 10_000, 66.0, planner.plan)
    again.recall(read_memory(planner.memory.to_json(), "a checkpoint"))
    assert again.memory == planner.memory
    assert again.memory.scoring == (2.0, 10_000)
    assert len(again.memory.stretches) > 3
    assert again.go_on(299, 10_000, 66.0) == planner.go_on(299, 10_000, 66.0)


@pytest.mark.parametrize(
    "change",
    [
        {"stretches": [[1, 0.5, 100.0]]},
        {"stretches": [[1, -0.5, 100.0, 5.0]]},
        {"scale": 0.0},
        {"scoring": "none"},
        {"plateau": {"count": -1}},
        {"plateau": 3},
        {"more": 1},
    ],
)
def test_a_memory_that_is_none_is_refused(change):
    whole = {"optimizer": "learned"} | change
    with pytest.raises(InputError, match="a checkpoint"):
        read_memory(whole, "a checkpoint")


MACHINES = {
    "many Gaussians": MadeUp(1e-7, 1e-6),
    "many pixels": MadeUp(1e-6, 5e-7),
    "restless": MadeUp(burden=lambda now: 1 + 0.5 * (now % 1)),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("kind", ["plain", "growing", "coarse to fine", "all", "two stages"])
def test_a_run_of_known_steps_says_when_it_will_end(machine, kind):
    """Within a fifth, from a tenth of the run on."""
    steps, start, scoring = 3000, 10_000, 2.0
    grows, shrinks, two = kind in ("growing", "all"), kind in ("coarse to fine", "all"), kind == "two stages"
    stages = (Stage("learned", 0, 2000), Stage("block-gn", 2000, 1000)) if two else (Stage("adam", 0, steps),)
    levels = parse_levels("4:300,2:900") if shrinks else ()
    growth, most = ((0.03, 0.25), 60_000) if grows else ((0.0, 0.0), None)
    outlook = Outlook(Course(stages, FACTS.pixels, 1, levels, growth, most), scoring)
    if shrinks:
        whole = machine.seconds_a_pixel * FACTS.pixels + machine.seconds_a_gaussian * start
        outlook.try_out(start, machine.burden(0.5) * whole)
    now, gaussians, left = 5.0, start, []
    for step in range(1, steps + 1):
        share = min(1.0, max(0.0, (step / steps - 0.03) / 0.22)) if grows else 0.0
        gaussians = round(start * 6**share)
        pixels = FACTS.pixels / factor_at(levels, step - 1) ** 2
        cost = 2e-3 + machine.seconds_a_pixel * pixels + machine.seconds_a_gaussian * gaussians
        now += machine.burden(now) * cost * (1.3 if step > 2000 and two else 1.0)
        outlook.note(step, gaussians, now)
        left.append((now, outlook.seconds_left(now)))
    end = now + scoring + files_seconds(gaussians)
    for then, told in left[steps // 10 :]:
        assert abs(told - (end - then)) <= 0.2 * (end - then) + 0.5


def test_a_strategy_that_stays_below_its_cap_has_all_its_time():
    machine = MadeUp(1e-7, 1e-6, reached=0.2)
    ended = machine.run(replace(FACTS, is_bound=True, growth=(0.02, 0.5)))
    assert ended == pytest.approx(FACTS.seconds, rel=0.05)


def test_levels_that_were_given_come_to_their_end_before_a_plateau_is_looked_for():
    facts = replace(FACTS, levels="2:5000")
    assert not facts.is_settled(4999, 0.9)
    assert facts.is_settled(5000, 0.9)
    assert not facts.is_settled(5000, 0.2), "Gaussians are still being added"


def test_the_shares_of_growth_are_those_of_the_strategys_options():
    assert growth_of(None) == (0.0, 0.0)
    assert growth_of(GainOptions(until=0.6)) == (0.03, 0.6)
    assert growth_of(McmcOptions()) == (pytest.approx(1 / 12), pytest.approx(5 / 6))
    assert growth_of(AdcOptions(horizon=0)) == (0.1, 1.0)


def test_slow_first_steps_do_not_settle_how_many_gaussians_there_are():
    usual, slow_at_first = MadeUp(), MadeUp(burden=lambda now: 3.0 if now < 10 else 1.0)
    for machine in (usual, slow_at_first):
        machine.run(replace(FACTS, side=400))  # without smaller photographs first, of which a fifth is soon over
    settled = [machine.decisions[-1].max_gaussians for machine in (usual, slow_at_first)]
    assert settled[1] > 0.8 * settled[0]


def test_a_run_that_ends_early_says_so():
    facts = replace(FACTS, until_plateau=True, views=10)
    machine = MadeUp(1e-7, 1e-6)
    ended = machine.run(facts, lambda step: 0.5 + 0.1 * (step % 7))
    for then, told in machine.left:
        if then > 0.9 * ended:
            assert told == pytest.approx(ended - then, rel=0.2, abs=1.0)


@pytest.mark.parametrize("burden", [lambda now: 1.0, lambda now: 2.0 if now > 50 else 1.0])
def test_a_planned_run_says_when_it_will_end(burden):
    machine = MadeUp(burden=burden)
    ended = machine.run()
    for then, told in machine.left:
        if then > 0.1 * ended:
            assert told == pytest.approx(ended - then, rel=0.2, abs=3.0)
