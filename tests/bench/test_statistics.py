"""What is read off curves, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splatopt.bench.statistics import (
    Reached,
    area,
    at_seconds,
    at_step,
    best_point,
    paired_bootstrap,
    reach,
    summary,
    worst_drop,
)


def points(*rows: tuple[int, float]) -> list[dict]:
    return [{"step": step, "seconds": step / 2, "psnr": psnr} for step, psnr in rows]


def test_mean_and_deviation_over_seeds():
    found = summary([1.0, 2.0, 6.0])
    assert (found.mean, found.count) == (3.0, 3)
    assert found.sd == pytest.approx(math.sqrt(7))
    assert summary([4.0]).sd is None
    assert summary([]) is None
    assert summary([0.1] * 7).sd == 0


def test_the_best_is_the_earliest_of_equals():
    assert best_point(points((0, 1), (5, 9), (7, 9), (9, 2)))["step"] == 5


@pytest.mark.parametrize(
    ("curve", "drop"),
    [([(0, 1), (1, 5), (2, 9)], 0.0), ([(0, 1), (1, 9), (2, 6.5), (3, 8)], 2.5), ([(0, 7), (1, 3), (2, 8)], 0.0)],
)
def test_the_worst_drop_is_after_the_peak(curve, drop):
    assert worst_drop(points(*curve)) == drop


def test_at_a_moment_a_curve_is_linear_and_stays_at_its_end():
    curve = points((0, 1), (10, 5), (20, 4))
    assert [at_seconds(curve, moment) for moment in (0, 2.5, 5, 10, 99)] == [1, 3, 5, 4, 4]
    steps = [{"step": 2 * point["seconds"], "psnr": point["psnr"]} for point in curve]
    assert [at_step(steps, step) for step in (0, 5, 10, 20, 198)] == [1, 3, 5, 4, 4]


def test_the_area_is_the_mean_over_the_logarithm_of_steps():
    assert area(points((0, 99), (1, 10), (10, 20), (100, 20)), 1, 100) == pytest.approx((15 + 20) / 2)
    assert area(points((1, 10), (100, 30)), 1, 10) == pytest.approx(15)
    assert area(points((1, 10), (100, 30)), 10, 100) == pytest.approx(25)
    assert area(points((1, 7), (3, 7), (50, 7)), 2, 40) == pytest.approx(7)


@pytest.mark.parametrize(("start", "end"), [(1, 1), (1, 200), (0.5, 100)])
def test_there_is_no_area_where_the_curve_does_not_reach(start, end):
    assert area(points((1, 10), (100, 30)), start, end) is None


def test_a_quality_is_reached_between_points():
    curve = points((0, 10), (10, 20), (20, 15), (40, 30))
    assert reach(curve, 15) == Reached(5.0, 2.5)
    assert reach(curve, 20) == Reached(10.0, 5.0)
    assert reach(curve, 22.5) == Reached(30.0, 15.0)
    assert reach(curve, 5) == Reached(0.0, 0.0)
    assert reach(curve, 30.1) is None


def test_the_bootstrap_says_the_same_each_time():
    values = [0.1, 0.4, -0.2, 0.3, 0.25, 0.6, 0.15, 0.05]
    assert paired_bootstrap(values) == paired_bootstrap(values)


def test_the_bootstraps_interval_is_that_of_the_mean():
    """For many pairs it is the normal one, mean ± 1.96 σ/√n."""
    values = np.random.default_rng(3).normal(0.5, 1.0, 400)
    found = paired_bootstrap(list(values))
    reach_ = 1.96 * values.std() / math.sqrt(400)
    assert found.difference == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach_, abs=0.02)
    assert found.high == pytest.approx(values.mean() + reach_, abs=0.02)
    assert found.p == 1e-4


def test_no_difference_is_not_significant():
    values = [0.5, -0.5, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2]
    assert paired_bootstrap(values).p > 0.9
    assert paired_bootstrap([0.0] * 6).p == 1.0


@pytest.mark.parametrize(("pairs", "minimum"), [(2, 0.5), (3, 0.25), (5, 0.0625), (9, 2**-8)])
def test_few_pairs_are_never_more_significant_than_their_signs_allow(pairs, minimum):
    found = paired_bootstrap([1.0 + 0.01 * pair for pair in range(pairs)])
    assert found.p == minimum
    assert found.pairs == pairs


def test_the_bootstraps_false_alarms_are_as_rare_as_it_says():
    """Under no difference, p < 0.05 comes about as often as 1 in 20; small samples make it a little more."""
    generator = np.random.default_rng(0)
    alarms = sum(paired_bootstrap(list(generator.normal(size=12)), 2000).p < 0.05 for _ in range(200))
    assert 2 <= alarms <= 26


def test_one_pair_says_nothing():
    assert paired_bootstrap([1.0]) is None
