"""Runs of several processes that plan themselves: all decide alike, by the first one's clock."""

from __future__ import annotations

import pytest
import torch

from core.process_group import in_threads
from splatopt.core.processes import Processes
from splatopt.train.config import TrainConfig
from splatopt.train.loop import train
from train.toys import Listener, ToyRenderer, load_toy_capture

SECONDS = 12.0


class Clock:
    """A clock of which every reading is some while after the one before."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def run(tmp_path):
    """Train in two places, whose clocks differ; returns results and clocks."""
    capture = load_toy_capture(tmp_path / "capture")

    def run(name: str, stop_at: int | None = None, **changes):
        own = {"out": tmp_path / name, "sh_degree": 1, "threads": 1, "checkpoint_every": 10}
        if not {"plan", "resume"} & set(changes):
            own |= {"minutes": SECONDS / 60, "recipe": "learned-no-growth"}
        config = TrainConfig.of(str(capture.path), **(own | changes))

        def work(processes: Processes):
            clock = Clock(0.25 if processes.is_first else 3.0)
            try:
                listeners, renderer = [Listener(stop_at)], ToyRenderer()
                result = train(config, listeners, capture=capture, renderer=renderer, processes=processes, clock=clock)
            except KeyboardInterrupt as stopped:
                result = stopped
            return result, clock

        return in_threads(2, work)

    return run


def test_all_decide_alike_and_the_plan_repeats(run):
    (first, clock), (second, _) = run("run")
    assert abs(clock.now - SECONDS) <= 3.0
    assert first.steps == second.steps > 10
    (again, _), _ = run("again", plan=first.folder / "plan.json")
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name
        assert torch.equal(value, again.cloud.tensors[name]), name


def test_a_stopped_run_of_several_goes_on_by_its_plan(run):
    (stopped, before), _ = run("run", stop_at=12)
    assert "stopped at step 12" in str(stopped)
    (first, clock), (second, _) = run("run", resume=True)
    assert abs(before.now + clock.now - SECONDS) <= 3.0
    assert first.steps == second.steps > 12
    (again, _), _ = run("again", plan=first.folder / "plan.json")
    assert torch.equal(again.cloud.means, first.cloud.means)
