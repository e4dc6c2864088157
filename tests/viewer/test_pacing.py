"""The page takes a share of the time and no more; its curves stay short."""

from __future__ import annotations

import numpy as np
import pytest

from splatopt.viewer.history import History
from splatopt.viewer.pacing import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_spent_is_followed_by_its_share_of_time():
    clock = Clock()
    pace = Pace(0.02, clock)
    assert pace.is_free
    with pace.spending():
        clock.now += 0.1
    clock.now += 4.99
    assert not pace.is_free
    clock.now += 0.02
    assert pace.is_free


def test_over_a_long_time_the_share_is_kept():
    clock = Clock()
    pace, spent = Pace(0.02, clock), 0.0
    for _ in range(100_000):
        clock.now += 0.01
        if pace.is_free:
            with pace.spending():
                clock.now += 0.05
            spent += 0.05
    assert 0.015 < spent / (clock.now - 100) < 0.02


def test_while_nothing_is_trained_all_the_time_is_free_and_none_is_counted():
    clock = Clock()
    pace = Pace(0.02, clock)
    pace.idle = True
    pace.spend(10)
    assert pace.is_free
    pace.idle = False
    assert pace.is_free


def test_time_is_taken_from_the_meter_that_is_given():
    clock, meter = Clock(), Clock()
    pace = Pace(0.5, clock)
    with pace.spending(meter):
        clock.now += 100
        meter.now += 1
    clock.now += 1.9
    assert not pace.is_free
    clock.now += 0.2
    assert pace.is_free


def test_long_curves_are_means_over_spans_of_steps():
    history = History()
    for step in range(1, 10_001):
        history.add(step, float(step), 20.0, step)
    steps, losses = history.curves["loss"]
    assert len(steps) <= 400
    assert steps[-1] == 10_000
    np.testing.assert_allclose(losses[0], (1 + history.width) / 2)
    assert history.curves["gaussians"][1][-1] == 10_000


def test_steps_that_are_taken_again_replace_those_from_before():
    history = History()
    for step in (1, 2, 3, 4, 2, 3):
        history.add(step, float(step), 20.0, 5)
    assert history.curves["loss"][0].tolist() == [1, 2, 3]
    history.scored(10, 20.0)
    history.scored(20, 22.0)
    history.scored(10, 21.0)
    assert history.scores == [(10, 21.0)]


def test_a_history_is_read_from_a_runs_files():
    history = History()
    lines = [{"step": 5, "loss": 0.5, "psnr": 10.0, "gaussians": 7, "test_psnr": 9.0}, {"step": 10}]
    history.read(lines, [{"step": 5, "added": 3, "removed": 1, "gaussians": 7}])
    assert history.curves["psnr"][1].tolist() == [10.0]
    assert (history.scores, history.added, history.removed) == ([(5, 9.0)], 3, 1)


@pytest.mark.parametrize("name", ["loss", "psnr", "gaussians", "held_out"])
def test_nothing_has_empty_curves(name):
    assert [len(part) for part in History().curves[name]] == [0, 0]
