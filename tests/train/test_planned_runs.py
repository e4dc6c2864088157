"""Runs that plan themselves by a clock, and the repetition of their plans by steps."""

from __future__ import annotations

import copy
import errno
import json

import pytest

from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.runs.events import Warned
from splatopt.train import plan as plan_module
from splatopt.train.config import TrainConfig
from splatopt.train.events import Edited, Stepped
from splatopt.train.loop import train
from splatopt.train.plan_memory import read_memory
from splatopt.train.process_context import ProcessContext
from train.toys import Listener, make_toy_capture

SECONDS = 12.0


class Clock:
    """A clock of which every reading is a while after the one before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


@pytest.fixture
def planned(capture_folder, tmp_path):
    """Run a plan of some seconds of a clock that is handed in; returns its result and what it told."""

    def run(name="run", clock=None, listener=None, **changes):
        told = listener or Listener()
        own = {"out": tmp_path / name, "checkpoint_every": 10, "sh_degree": 1, "threads": 1}
        if "plan" not in changes and "resume" not in changes:
            own["max_gaussians"] = 80
        ends = {} if {"plan", "resume"} & set(changes) else {"minutes": SECONDS / 60}
        return train(
            TrainConfig.of(str(capture_folder), **(own | ends | changes)), [told], clock=clock or Clock()
        ), told

    return run


def plan_of(folder) -> dict:
    return json.loads((folder / "plan.json").read_text())


def scene(result) -> bytes:
    return (result.folder / "scene.ply").read_bytes()


def test_a_run_ends_in_time_and_its_plan_repeats_it_bit_for_bit(planned, tmp_path):
    clock = Clock()
    result, told = planned(clock=clock)
    plan = plan_of(result.folder)
    assert abs(clock.now - SECONDS) <= max(3.0, 0.05 * SECONDS)
    assert plan["decisions"][-1]["stages"][-1]["end"] == result.steps == result.config.schedule.steps
    assert len(plan["decisions"]) > 3
    assert len(result.cloud) > 40  # it grew
    left = [event.seconds_left for event in told.of(Stepped)]
    assert left == sorted(left, reverse=True)

    class NoClock:
        def __call__(self) -> float:
            return 1e9

    again, retold = planned("again", NoClock(), plan=result.folder / "plan.json")
    assert (again.steps, scene(again)) == (result.steps, scene(result))
    assert told.of(Edited) == retold.of(Edited)
    assert plan_of(again.folder)["decisions"] == plan["decisions"]
    # From Python or a shell, the folder does as well; and a repetition's own plan repeats it.
    third, _ = planned("third", NoClock(), plan=again.folder)
    assert scene(third) == scene(result)


def test_a_stopped_run_goes_on_as_its_plan_says_and_the_time_used_counts(planned, tmp_path):
    whole, _ = planned("whole")
    stopping = Listener(stop_at=15)
    clock = Clock()
    with pytest.raises(KeyboardInterrupt, match="stopped at step 15"):
        planned("stopped", clock, stopping)
    stopped_at = clock.now
    # What scoring and steps were found to take is kept, so that the end comes in time again.
    checkpoint, _ = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert checkpoint.step == 15
    memory = read_memory(checkpoint.scalars["plan"], "here")
    assert memory.scoring[0] > 0
    assert memory.stretches
    clock = Clock()
    result, _ = planned("stopped", clock, resume=True)
    assert abs(stopped_at + clock.now - SECONDS) <= 3.0
    assert scene(result) != b""
    # Under the same decisions it is the same run: its plan, taken from the start, comes to the same scene.
    again, _ = planned("again", plan=result.folder / "plan.json")
    assert scene(again) == scene(result)
    # And a repetition that is stopped goes on bit-exactly too.
    with pytest.raises(KeyboardInterrupt):
        planned("cut", listener=Listener(stop_at=20), plan=whole.folder / "plan.json")
    assert scene(planned("cut", resume=True)[0]) == scene(whole)


@pytest.mark.slow
def test_a_finished_run_goes_on_where_it_is_given_more_minutes(planned):
    first, _ = planned()
    same, _ = planned(resume=True)
    assert same.steps == first.steps
    more, _ = planned(resume=True, minutes=2 * SECONDS / 60)
    assert more.steps > 1.5 * first.steps
    assert plan_of(more.folder)["decisions"][-1]["done"] == 1.0


@pytest.mark.slow
def test_stages_share_the_time(planned):
    """A recipe of two optimizers: both have steps, the second begins where the first has ended, and it repeats."""
    result, _ = planned(recipe="learned-block-gn")
    decisions = plan_of(result.folder)["decisions"]
    assert {tuple(stage["optimizer"] for stage in one["stages"]) for one in decisions} == {("learned", "block-gn")}
    first, last = decisions[-1]["stages"]
    assert first["until"] == 0.75
    assert 0 < first["end"] < last["end"] == result.steps
    assert result.config.schedule.stages == f"learned:{first['end']},block-gn:{last['end'] - first['end']}"
    again, _ = planned("again", plan=result.folder / "plan.json")
    assert scene(again) == scene(result)


def test_a_plan_of_other_optimizers_or_no_gaussians_is_refused(planned, tmp_path):
    values = plan_of(planned()[0].folder)
    others, none = copy.deepcopy(values), copy.deepcopy(values)
    for decision in others["decisions"]:
        decision["stages"][0]["optimizer"] = "tr2"
    none["decisions"][-1]["max_gaussians"] = 0
    for changed, problem in ((others, "on the optimizers that its config names"), (none, "must be 1 or more, got 0")):
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=problem):
            planned("again", plan=tmp_path / "changed.json")


def test_a_disk_that_is_full_at_a_decision_ends_no_run(planned, monkeypatch):
    write, full = plan_module.write_json, []

    def writing(path, values):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, values)

    class Filling(Listener):
        def __call__(self, event):
            super().__call__(event)
            if isinstance(event, Stepped):
                full[:] = [True] if event.step < 15 else []

    monkeypatch.setattr(plan_module, "write_json", writing)
    result, told = planned(listener=Filling())
    warnings = [event.message for event in told.of(Warned)]
    assert any("what the run has decided could not be written (No space left on device)" in one for one in warnings)
    assert any("the checkpoint of step 10 could not be written" in one for one in warnings), "without its decisions"
    assert plan_of(result.folder)["decisions"][-1]["stages"][-1]["end"] == result.steps


def test_no_decision_gives_back_room_that_there_is_no_memory_for(planned, monkeypatch):
    asked = []

    class Scarce(Listener):
        def __call__(self, event):
            super().__call__(event)
            if isinstance(event, Stepped) and event.step == 1:
                monkeypatch.setattr(ProcessContext, "free_memory", lambda context: asked.append(context) or 0)

    result, told = planned(listener=Scarce())
    assert len(asked) == 1, "the strategy keeps to what there is, and asks for no more"
    assert sum("adds no more Gaussians" in event.message for event in told.of(Warned)) == 1
    assert len(plan_of(result.folder)["decisions"]) > 3


def test_growth_keeps_to_a_size_of_the_file(planned):
    result, _ = planned(max_megabytes=0.006, sh_degree=1)
    assert len(result.cloud) == 6000 // (4 * 26)
    assert (result.folder / "scene.ply").stat().st_size < 8000
    with pytest.raises(InputError, match=r"--max-megabytes 0.001, for 9 Gaussians, is fewer than the 40 Gaussians"):
        planned("small", max_megabytes=0.001)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"minutes": 1.0, "steps": 10}, "--minutes 1 has the run plan its own end, and --steps says another"),
        ({"minutes": 1.0, "stages": "adam:10"}, "and --stages says another; give one of the two"),
        ({"minutes": 1.0, "max_seconds": 5.0}, "and --max-seconds says another"),
        ({"minutes": -1.0}, "--minutes must be at least 0.05, got -1.0"),
        ({"minutes": 1e9}, "--minutes must be at most 100000.0, got 1000000000.0"),
        ({"minutes": float("nan")}, "--minutes must be at least 0.05, got nan"),
        ({"minutes": 1.0, "max_gaussians": 5}, "--max-gaussians 5 is fewer than the 40 Gaussians"),
        ({"minutes": 1.0, "recipe": "best"}, "there is no recipe 'best'"),
        ({"steps": 5, "recipe": "learned"}, "--recipe is of runs that plan themselves"),
        ({"steps": 5, "until_plateau": True}, "--until-plateau is of runs that plan themselves"),
        ({"plan": "nowhere.json"}, "there is no plan at nowhere.json; give the plan.json of a run that planned itself"),
        (
            {"plan": "nowhere.json", "steps": 3},
            "all steps of the run, and --steps contradicts it; leave --steps out",
        ),
        (
            {"plan": "nowhere.json", "minutes": 3.0},
            "and --minutes contradicts it; leave --minutes out",
        ),
    ],
)
def test_what_contradicts_is_refused_in_a_sentence(planned, tmp_path, changes, problem):
    changes = {"minutes": None} | changes
    with pytest.raises(InputError) as refusal:
        planned(**changes)
    assert problem in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_plan_is_of_one_capture_and_its_settings_are_its_own(planned, tmp_path):
    result, _ = planned()
    other = make_toy_capture(tmp_path / "other", views=9)
    with pytest.raises(InputError, match="is not what the run of the plan .* was trained on"):
        train(TrainConfig.of(str(other), plan=result.folder, out=tmp_path / "b"))
    with pytest.raises(InputError, match="--seed 0, and cannot go on with 3"):
        planned("c", plan=result.folder, seed=3)
    broken = tmp_path / "broken.json"
    for change in (
        {"decisions": []},
        {"format": "other"},
        {"decisions": [plan_of(result.folder)["decisions"][0] | {"stages": []}]},
        {"decisions": [plan_of(result.folder)["decisions"][0] | {"levels": "9"}]},
        {"trained_on": 3},
    ):
        broken.write_text(json.dumps(plan_of(result.folder) | change))
        with pytest.raises(InputError):
            planned("d", plan=broken)
    with pytest.raises(InputError, match="the run plans its own steps; leave --steps out"):
        planned(resume=True, steps=7)
