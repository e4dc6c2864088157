"""When strategies edit, and budgets."""

from __future__ import annotations

import itertools

import pytest

from splatopt.density.budget import early
from splatopt.density.schedule import EditSchedule


def test_a_run_of_the_published_length_has_the_published_gates():
    for steps in (30_000, 100_000):
        schedule = EditSchedule().of_run(steps)
        assert (schedule.start, schedule.until, schedule.every) == (500, 15_000, 100)


@pytest.mark.parametrize(
    ("steps", "start", "until"), [(7000, 350, 3500), (2000, 100, 1000), (20_000, 500, 10_000), (60, 3, 30)]
)
def test_a_shorter_run_ends_its_edits_at_the_same_share(steps, start, until):
    schedule = EditSchedule().of_run(steps)
    assert (schedule.start, schedule.until, schedule.every) == (start, until, 100)
    assert schedule.of_run(10) == schedule, "once"


def test_without_a_horizon_gates_are_steps():
    schedule = EditSchedule(start=2, until=20, every=5, horizon=0).of_run(40)
    assert [step for step in range(41) if schedule.is_due(step)] == [5, 10, 15]


def test_an_edit_is_after_the_start_and_before_the_end():
    schedule = EditSchedule(start=10, until=30, every=10, horizon=0)
    assert [step for step in range(41) if schedule.is_due(step)] == [20]


def test_early_growth_adds_the_same_share_and_is_there_early():
    counts = [early(1000, 8000, fraction / 100) for fraction in (0, 5, 10, 15, 20, 25, 60)]
    assert (counts[0], counts[5], counts[6]) == (1000, 8000, 8000)
    ratios = [after / before for before, after in itertools.pairwise(counts[:6])]
    assert ratios == pytest.approx([8**0.2] * 5, rel=2e-3)
    assert early(1000, 8000, 0.3, reached=0.6) == pytest.approx(1000 * 8**0.5, abs=1)
