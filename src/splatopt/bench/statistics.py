"""What is read off a cell's points, and what can be said of several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splatopt.bench.records import Point

RESAMPLES = 10_000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Summary:
    """A quantity over seeds.

    Attributes:
        mean: Mean.
        sd: Standard deviation over the seeds, n-1 in the denominator; None for one value.
        count: Number of values.
    """

    mean: float
    sd: float | None
    count: int


def summary(values: Sequence[float]) -> Summary | None:
    """Return mean and standard deviation; None of no values."""
    if not values:
        return None
    # Exact means: equal values have a deviation of zero, not of rounding.
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), spread, len(values))


def best_point(points: Sequence[Point]) -> Point:
    """Return the point of highest PSNR, the earliest among equals."""
    return max(points, key=lambda point: point["psnr"])


def worst_drop(points: Sequence[Point]) -> float:
    """Return max over t ≥ t* of PSNR(t*) - PSNR(t), t* the peak, dB: what a run lost after its best."""
    peak = best_point(points)
    return max(peak["psnr"] - point["psnr"] for point in points if point["step"] >= peak["step"])


def area(points: Sequence[Point], start: float, end: float) -> float | None:
    """Return the area under PSNR against log(steps), over its width: the mean PSNR over log(steps), dB.

    Trapezoids between points; the ends are interpolated in log(steps).

    Args:
        points: In the order of steps.
        start: First step, at least 1.
        end: Last step, above ``start``.

    Returns:
        The mean; None where the points do not reach from start to end.
    """
    rows = [(math.log(point["step"]), point["psnr"]) for point in points if point["step"] >= 1]
    if not rows or end <= start or rows[0][0] > math.log(start) + 1e-12 or rows[-1][0] < math.log(end) - 1e-12:
        return None
    x, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    low, high = math.log(start), math.log(end)
    inside = (x > low) & (x < high)
    xs = np.concatenate([[low], x[inside], [high]])
    ys = np.concatenate([[np.interp(low, x, y)], y[inside], [np.interp(high, x, y)]])
    return float(np.trapezoid(ys, xs) / (high - low))


@dataclass(frozen=True)
class Reached:
    """Where a run first had a quality.

    Attributes:
        steps: Steps, interpolated.
        seconds: Seconds of training, interpolated.
    """

    steps: float
    seconds: float


def reach(points: Sequence[Point], psnr: float) -> Reached | None:
    """Return where a run first reached ``psnr``, linear between the points around it; None where it never did.

    Args:
        points: In the order of steps.
        psnr: The quality, dB.
    """
    before: Point | None = None
    for point in points:
        if point["psnr"] >= psnr:
            if before is None:
                return Reached(float(point["step"]), float(point["seconds"]))
            share = (psnr - before["psnr"]) / (point["psnr"] - before["psnr"])
            return Reached(
                before["step"] + share * (point["step"] - before["step"]),
                before["seconds"] + share * (point["seconds"] - before["seconds"]),
            )
        before = point
    return None


def at_seconds(points: Sequence[Point], seconds: float) -> float:
    """Return the PSNR after so many seconds of training, dB: linear between points, and the last once a run has ended.

    Args:
        points: In the order of steps; the first is at 0 seconds.
        seconds: The moment.
    """
    return float(np.interp(seconds, [point["seconds"] for point in points], [point["psnr"] for point in points]))


def at_step(points: Sequence[Point], step: int) -> float:
    """Return the PSNR after so many steps, dB: linear between points, and the last once a run has ended.

    Args:
        points: In the order of steps; the first is at step 0.
        step: The moment.
    """
    return float(np.interp(step, [point["step"] for point in points], [point["psnr"] for point in points]))


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over scenes and seeds.

    Attributes:
        difference: Mean of the paired differences.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided probability of so large a mean difference if there were none.
        pairs: Number of pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    pairs: int


def paired_bootstrap(differences: Sequence[float], resamples: int = RESAMPLES) -> Comparison | None:
    """Compare by the paired bootstrap: pairs are drawn with replacement, and their means looked at.

    The interval is the middle 95 % of the means. p is twice the share of means on the other side of zero. A few
    pairs that all point one way would always have p near 0, so p is never below 2^(1-n), the least that a
    sign-flip test of n pairs can give: five pairs cannot be significant at 0.05.

    Args:
        differences: One per pair, in a fixed order.
        resamples: Number of draws; they come from a fixed seed, so that a report is reproducible.

    Returns:
        The comparison; None of fewer than two pairs.

    Source: Efron and Tibshirani 1993, chapters 13 and 16.
    """
    count = len(differences)
    if count < 2:
        return None
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(0)
    means = np.concatenate(
        [values[generator.integers(0, count, (rows, count))].mean(axis=1) for rows in _chunks(resamples, count)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    below, above = float((means <= 0).mean()), float((means >= 0).mean())
    p = min(1.0, max(2 * min(below, above), 2.0 ** (1 - count), 1 / resamples))
    return Comparison(float(values.mean()), float(low), float(high), p, count)


def _chunks(resamples: int, count: int) -> list[int]:
    """Draws a time, so that no more than some millions of numbers are in memory."""
    at_once = max(1, 4_000_000 // count)
    return [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
