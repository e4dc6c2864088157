"""Do trust radii hold? The squared Hellinger distance H² that clipped steps really reach, against ε.

1000 random Gaussians (log-scales with a standard deviation of 1); each entry of each parameter in turn is pushed far
either way, clipped to its radius, and the distance is taken in closed form. Prints Markdown and draws an SVG::

    python -m benchmarks.radii --out docs/radii.svg
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.objective import Tensors
from splatopt.core.schema import BLOCK_TENSORS
from splatopt.optim.hellinger import HellingerRadii, PublishedBounds, RadiusBounds, squared_distances

EPSILONS = tuple(10 ** (exponent / 2) for exponent in range(-16, -5))
BOUNDS = {
    "our bounds, conditional variance": RadiusBounds(mean_variance="conditional"),
    "our bounds, marginal variance": RadiusBounds(mean_variance="marginal"),
    "published": PublishedBounds(),
}
COLORS = {
    "means": "#2a78d6",
    "log_scales": "#eb6834",
    "quats": "#1baf7a",
    "logit_opacities": "#eda100",
    "sh_dc": "#4a3aa7",
}


@dataclass(frozen=True)
class RadiusFactors:
    """H² that one parameter reaches at each ε of ``EPSILONS``: of 1000 Gaussians, the worst entry of each.

    Attributes:
        median: Over the Gaussians.
        largest: Over the Gaussians.
    """

    median: tuple[float, ...]
    largest: tuple[float, ...]


def random_gaussians(count: int, seed: int) -> dict[str, Tensor]:
    """Return Gaussians with scale ratios up to about 20 and opacities from about 0.02 to 0.98, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "means": draw(count, 3),
        "log_scales": -3 + draw(count, 3),
        "quats": draw(count, 4),
        "logit_opacities": 1.3 * draw(count),
        "sh_dc": draw(count, 3).clamp(-1.4, 3),
        "sh_rest": torch.zeros(count, 0, 3, dtype=torch.float64),
    }


def farthest(cloud: Tensors, radius: Tensor, name: str) -> Tensor:
    """Return H² of each Gaussian when one entry of ``name`` is pushed by 1000 either way and clipped; the largest."""
    count = len(cloud[name])
    radii = radius.expand(cloud[name].shape).reshape(count, -1)
    worst = radii.new_zeros(count)
    for column in range(radii.shape[1]):
        for far in (-1e3, 1e3):
            moved = cloud[name].clone()
            step = radii.new_full((count,), far).clamp(-radii[:, column], radii[:, column])
            moved.view(count, -1)[:, column] += step
            channel = column if name == "sh_dc" else None
            worst = torch.maximum(worst, squared_distances(cloud, {**cloud, name: moved}, channel))
    return worst


def reaches(bounds: RadiusBounds, cloud: Tensors) -> dict[str, RadiusFactors]:
    """Return what each parameter reaches within ``bounds``."""
    found: dict[str, list[Tensor]] = {name: [] for name in BLOCK_TENSORS}
    for epsilon in EPSILONS:
        radii = HellingerRadii(bounds).radii(cloud, epsilon)
        for name in BLOCK_TENSORS:
            found[name].append(farthest(cloud, radii[name], name))
    return {
        name: RadiusFactors(tuple(float(d.median()) for d in each), tuple(float(d.max()) for d in each))
        for name, each in found.items()
    }


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.radii", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="random Gaussians")
    parser.add_argument("--seed", type=int, default=0, help="of them")
    parser.add_argument("--out", type=Path, help="the SVG to write; none when left out")
    arguments = parser.parse_args()
    cloud = random_gaussians(arguments.count, arguments.seed)
    measured = {title: reaches(bounds, cloud) for title, bounds in BOUNDS.items()}
    shown = [EPSILONS.index(epsilon) for epsilon in EPSILONS if round(2 * math.log10(epsilon)) % 2 == 0]
    print("H²/ε, median / largest\n")
    print("| bounds | parameter | " + " | ".join(f"ε = {EPSILONS[i]:.0e}" for i in shown) + " |")
    print("|---" * (len(shown) + 2) + "|")
    for title, by_name in measured.items():
        for name, reach in by_name.items():
            cells = (f"{reach.median[i] / EPSILONS[i]:.2g} / {reach.largest[i] / EPSILONS[i]:.2g}" for i in shown)
            print(f"| {title} | `{name}` | " + " | ".join(cells) + " |")
    if arguments.out:
        arguments.out.write_text(draw(measured))
    return 0


# ---------------------------------------------------------------------- the picture

_SIDE, _LEFT, _TOP, _GAP, _BELOW = 250, 62, 40, 44, 98
_X, _Y = (-8.0, -3.0), (-9.0, 0.0)
"""Powers of ten at the ends of the axes."""


def draw(measured: dict[str, dict[str, RadiusFactors]]) -> str:
    """Return one panel per kind of bounds: H² against ε, both on scales of powers of ten."""
    width = _LEFT + len(measured) * (_SIDE + _GAP)
    height = _TOP + _SIDE + _BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11" fill="#333" role="img" aria-label="Squared Hellinger distance reached against epsilon">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, (title, by_name) in enumerate(measured.items()):
        parts += _panel(_LEFT + index * (_SIDE + _GAP), title, by_name, first=index == 0)
    for index, name in enumerate(BLOCK_TENSORS):
        x = _LEFT + index * 130
        parts.append(f'<path d="M{x} {height - 36}h22" stroke="{COLORS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 27}" y="{height - 32}">{name}</text>')
    legend = "solid: median of 1000, dashed: largest, grey: H² = ε"
    parts.append(f'<text x="{_LEFT}" y="{height - 12}">{legend}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(left: float, title: str, by_name: dict[str, RadiusFactors], *, first: bool) -> list[str]:
    """Return the elements of one panel whose left edge is given."""

    def place(x: float, y: float) -> str:
        across = (math.log10(x) - _X[0]) / (_X[1] - _X[0])
        up = (math.log10(max(y, 10 ** _Y[0])) - _Y[0]) / (_Y[1] - _Y[0])
        return f"{left + across * _SIDE:.1f},{_TOP + (1 - min(up, 1.0)) * _SIDE:.1f}"

    parts = [f'<text x="{left + _SIDE / 2}" y="24" text-anchor="middle" font-size="13">{title}</text>']
    for power in range(round(_X[0]), round(_X[1]) + 1):
        x, bottom = place(10.0**power, 10 ** _Y[0]).split(",")
        parts.append(f'<path d="M{x} {_TOP}V{bottom}" stroke="#e6e6e6"/>')
        parts.append(f'<text x="{x}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{_power(power)}</text>')
    for power in range(round(_Y[0]), round(_Y[1]) + 1):
        _, y = place(10 ** _X[0], 10.0**power).split(",")
        parts.append(f'<path d="M{left} {y}h{_SIDE}" stroke="#e6e6e6"/>')
        if first:
            parts.append(f'<text x="{left - 7}" y="{float(y) + 4}" text-anchor="end">{_power(power)}</text>')
    parts.append(f'<text x="{left + _SIDE / 2}" y="{_TOP + _SIDE + 36}" text-anchor="middle">ε</text>')
    if first:
        parts.append(f'<text x="14" y="{_TOP + _SIDE / 2}">H²</text>')
    parts.append(_line([place(x, x) for x in EPSILONS], "#999", 4, ""))
    for name, reach in by_name.items():
        for values, dashes in ((reach.largest, "5 3"), (reach.median, "")):
            parts.append(_line([place(x, y) for x, y in zip(EPSILONS, values, strict=True)], COLORS[name], 1.8, dashes))
    return parts


def _line(points: Sequence[str], color: str, width: float, dashes: str) -> str:
    opacity = ' opacity="0.4"' if color == "#999" else ""
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="{width}" '
        f'stroke-dasharray="{dashes}"{opacity}/>'
    )


def _power(exponent: int) -> str:
    sign = "\u2212" if exponent < 0 else ""
    return f'10<tspan dy="-4" font-size="8">{sign}{abs(exponent)}</tspan>'


if __name__ == "__main__":
    sys.exit(main())
