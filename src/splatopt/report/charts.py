"""Line charts as inline SVG, coloured by the page's style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from splatopt.report.page import escape, style_sheet

WIDTH, HEIGHT = 460, 250
"""Size of a chart in its own units; the page scales it."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 40
_TITLE, _LEGEND_ROW, _LEGEND_COLUMNS = 26, 20, 3
_MAX_POINTS = 600
_MAX_NUMBER = 1e100
_MIN_RANGE = 1e-12
"""Of an axis; of one that does not begin at 0, in units of what it shows."""


class Mark(Enum):
    """How a series is drawn: the class that the style sheet knows."""

    LINE = "line"
    SECOND = "second"
    THIRD = "third"
    FOURTH = "fourth"
    FIFTH = "fifth"
    FAINT = "faint"
    DOTS = "dots"


@dataclass(frozen=True)
class Series:
    """One series of a chart.

    Attributes:
        label: What the legend calls it; an empty one is left out.
        x: Positions; as many as ``y``.
        y: Values.
        mark: How it is drawn.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    mark: Mark = Mark.LINE


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the centred mean over ``window`` values, over fewer towards the ends."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in bounds]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round positions within [low, high]: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: Lower end, finite.
        high: Upper end, above ``low``.
        about: How many positions are wished for.
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(title: str, x_label: str, series: Sequence[Series]) -> str:
    """Draw ``series`` as an SVG element.

    Args:
        title: Said to those who cannot see it, and written above it by the page.
        x_label: Name and unit of the x axis.
        series: What is drawn, in this order; points that are not finite, or beyond all sense, are left out.

    Returns:
        The element, or a sentence in a paragraph where there is nothing to draw.
    """
    inside = _inside(x_label, series)
    if inside is None:
        return '<p class="quiet">Nothing was logged.</p>'
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f"{head}{inside}</svg>{_legend(series)}"


def chart_file(title: str, x_label: str, series: Sequence[Series]) -> str:
    """Draw ``series`` as an SVG file that stands alone: with its title, its legend and the colours of pages.

    Args:
        title: Written above.
        x_label: As for :func:`line_chart`.
        series: As for :func:`line_chart`, with points that can be drawn.
    """
    named = [one for one in series if one.label]
    height = _TITLE + HEIGHT + _LEGEND_ROW * math.ceil(len(named) / _LEGEND_COLUMNS) + _TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif"><style>{style_sheet()}</style>',
        f'<rect class="sheet" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="head" x="{_RIGHT}" y="{_TITLE - 2}">{escape(title)}</text>',
        f'<g transform="translate(0 {_TITLE})">{_inside(x_label, series) or ""}</g>',
    ]
    for index, one in enumerate(named):
        row, column = divmod(index, _LEGEND_COLUMNS)
        x, y = _LEFT + column * (WIDTH - _LEFT) / _LEGEND_COLUMNS, _TITLE + HEIGHT + _LEGEND_ROW * row + _TOP
        parts.append(_draw(one.mark, [(x, y - 4), (x + 18, y - 4)]))
        parts.append(f'<text class="axis" x="{x + 24:.1f}" y="{y}">{escape(one.label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _inside(x_label: str, series: Sequence[Series]) -> str | None:
    """The inside of a chart of WIDTH by HEIGHT; None where there is nothing to draw."""
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if _is_drawn(x) and _is_drawn(y)] for s in series]
    everything = [point for line in points for point in line]
    if not everything:
        return None
    x_low, x_high = _range([x for x, _ in everything], anchor=True)
    y_low, y_high = _range([y for _, y in everything], anchor=False)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>'
        )
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for one, line in zip(series, points, strict=True):
        parts.append(_draw(one.mark, [place(x, y) for x, y in _thinned(line)]))
    return "".join(parts)


def _is_drawn(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= _MAX_NUMBER


def _draw(mark: Mark, placed: Sequence[tuple[float, float]]) -> str:
    """Draw one series whose points are placed already."""
    if mark is Mark.DOTS:
        return "".join(f'<circle class="dots" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in placed)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return f'<polyline class="{mark.value}" points="{path}"/>' if placed else ""


def _legend(series: Sequence[Series]) -> str:
    """Name the series that have a label."""
    named = [f'<span><i class="{one.mark.value}"></i>{escape(one.label)}</span>' for one in series if one.label]
    return f'<p class="legend">{"".join(named)}</p>' if named else ""


def _range(values: Sequence[float], *, anchor: bool) -> tuple[float, float]:
    """Return the ends of an axis: from 0 where ``anchor``, else with a margin; never empty."""
    low, high = min(values), max(values)
    if anchor:
        low = min(low, 0.0)
        return low, high if high - low > _MIN_RANGE else low + 1.0
    flat = high - low <= _MIN_RANGE * max(abs(high), abs(low), 1e-3)
    margin = max(abs(high), 1e-6) * 0.1 if flat else 0.06 * (high - low)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep every so many-th point of a long line, and its last."""
    every = math.ceil(len(line) / _MAX_POINTS)
    return list(line) if every <= 1 else [*line[:-1:every], line[-1]]


def _number(value: float) -> str:
    """Write a tick: thousands apart, no trailing zeros."""
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value:.6g}"
