"""Budgets: how many Gaussians there may be as a run goes on."""

from __future__ import annotations


def early(begin: int, end: int, fraction: float, reached: float = 0.25) -> int:
    """Return n₀ (B/n₀)^(f/r), B from f = r on: every edit adds the same share, and all are there early.

    Args:
        begin: n₀, Gaussians at the start, at least 1.
        end: B, those at the end.
        fraction: f, the share of the run that is done.
        reached: r, the share of the run after which all are there.
    """
    if fraction >= reached:
        return end
    return round(begin * (end / begin) ** (max(0.0, fraction) / reached))
