"""Budgets: how many Gaussians there may be as a run goes on."""

from __future__ import annotations


def parabola(begin: int, end: int, share: float) -> int:
    """Return n₀ + (B - n₀)(2u - u²): fast at first, flat where it comes to the end.

    Args:
        begin: n₀, Gaussians at the start.
        end: B, those at the end.
        share: u, the share of the edits that are done, within [0, 1]. Source: Taming 3DGS.
    """
    share = min(1.0, max(0.0, share))
    return round(begin + (end - begin) * share * (2 - share))


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
