"""Draw the rooms of the package and who imports whom, from the source: `python -m benchmarks.architecture`.

Writes ``docs/architecture.svg``, ``--check`` only says whether that file is current. Rooms stand in the order of the
import contracts in ``pyproject.toml``. The upper part has an arrow from a room to those that it imports, except where
a longer way leads there too; the lower part has every pair of rooms with the number of imports.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.imports import ROOT, floors, imports

PICTURE = ROOT / "docs" / "architecture.svg"
WHAT = {
    "cli": "finds the command",
    "commands": "parse, call, print",
    "viewer": "the live page",
    "bench": "compares optimizers",
    "report": "pages, pictures, charts",
    "train": "trains a scene",
    "fit": "fits a field",
    "torch_api": "inside other trainers",
    "meta": "the learned optimizer",
    "runs": "a run's folder",
    "density": "which rows there are",
    "scene": "cloud and objective",
    "fields": "neural fields",
    "optim": "optimizers",
    "raster": "renderers and losses",
    "metrics": "PSNR, SSIM, LPIPS",
    "data": "captures and meshes",
    "curvature": "products, diagonals",
    "kernels": "Triton",
    "core": "protocols, cameras, files: every room imports it",
}
GROUND = "core"
"""What everybody imports: as wide as the picture, and without arrows to it."""
PLACES = {
    "train": 0.34,
    "fit": 0.64,
    "torch_api": 0.8,
    "meta": 0.23,
    "runs": 0.89,
    "density": 0.12,
    "scene": 0.2,
    "fields": 0.5,
    "optim": 0.8,
    "raster": 0.13,
    "metrics": 0.37,
    "data": 0.61,
    "curvature": 0.88,
    "kernels": 0.74,
}
"""Where a room stands in its row, from left to right; the others are spread evenly."""
WIDTH, ROW, BOX, HEIGHT = 960, 86, 156, 44
CELL, MARGIN = 38, 108
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.page { fill: #ffffff; }
.name { font-weight: 600; font-size: 14px; }
.small { font-size: 11px; fill: #59636e; }
.room { fill: #eef4fb; stroke: #2a6fc0; stroke-width: 1.2; }
.way { fill: none; stroke: #2a6fc0; stroke-width: 1.4; }
.deferred { stroke-dasharray: 5 4; }
.up { stroke: #c9372c; }
.tip { fill: #2a6fc0; }
.tip-up { fill: #c9372c; }
.tag { fill: #ffffff; }
.grid { fill: none; stroke: #d1d9e0; }
.self { fill: #d1d9e0; }
.count { text-anchor: middle; }
.warn { fill: #c9372c; font-weight: 600; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page, .tag { fill: #0d1117; }
  .small { fill: #9198a1; }
  .room { fill: #14233a; stroke: #5aa2f5; }
  .way { stroke: #5aa2f5; }
  .up { stroke: #ff7b72; }
  .tip { fill: #5aa2f5; }
  .tip-up, .warn { fill: #ff7b72; }
  .grid { stroke: #3d444d; }
  .self { fill: #3d444d; }
}
"""


@dataclass(frozen=True)
class Edge:
    """How often one room imports another.

    Attributes:
        all: Imports, deferred ones included.
        deferred: Those that run when a function is called, are for types alone, or name the module as text.
    """

    all: int
    deferred: int

    def __str__(self) -> str:
        return f"{self.all - self.deferred}" + (f"+{self.deferred}" if self.deferred else "")


@dataclass(frozen=True)
class House:
    """The rooms that there are, line by line from the top, and the imports between them."""

    lines: list[list[str]]
    edges: dict[tuple[str, str], Edge]

    @property
    def rooms(self) -> list[str]:
        """All rooms from the top."""
        return [room for line in self.lines for room in line]

    def goes_down(self, edge: tuple[str, str]) -> bool:
        """Return whether an import leads to a lower line."""
        line = {room: number for number, line in enumerate(self.lines) for room in line}
        return line[edge[0]] < line[edge[1]]

    def shown(self) -> list[tuple[str, str]]:
        """Return the edges that no longer way replaces, and those that lead up; none to the ground."""
        down = {edge for edge in self.edges if self.goes_down(edge) and edge[1] != GROUND}
        up = {edge for edge in self.edges if not self.goes_down(edge)}
        return [edge for edge in self.edges if edge in up or (edge in down and not _other_way(edge, down))]


def _other_way(edge: tuple[str, str], down: set[tuple[str, str]]) -> bool:
    found = {end for start, end in down if start == edge[0] and end != edge[1]}
    while more := {end for start, end in down if start in found} - found:
        found |= more
    return edge[1] in found


def read_house(root: Path = ROOT) -> House:
    """Read rooms and imports from the source."""
    found = [one for one in imports(root) if one.rooms[0] != one.rooms[1] and "__main__" not in one.rooms]
    both = Counter(one.rooms for one in found)
    deferred = Counter(one.rooms for one in found if one.deferred)
    there = {path.stem for path in (root / "src" / "splatopt").iterdir()}
    lines = [[room for room in line if room in there] for line in floors(root)]
    rooms = [room for line in lines for room in line]
    edges = {
        edge: Edge(both[edge], deferred[edge]) for edge in sorted(both, key=lambda edge: tuple(map(rooms.index, edge)))
    }
    return House([line for line in lines if line], edges)


def draw(house: House) -> str:
    """Return the picture as SVG."""
    table_top = ROW * len(house.lines) + 96
    height = table_top + CELL * len(house.rooms) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The rooms of splatopt from top to bottom, and how often each imports the others">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *_rooms(house),
        *_table(house, table_top),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _rooms(house: House) -> list[str]:
    at = {
        room: (round(WIDTH * PLACES.get(room, (number + 1) / (len(line) + 1))), 20 + ROW * row)
        for row, line in enumerate(house.lines)
        for number, room in enumerate(line)
    }
    ways, tags = [], []
    for edge in house.shown():
        (x1, y1), (x2, y2) = at[edge[0]], at[edge[1]]
        up = not house.goes_down(edge)
        y1, y2 = (y1, y2 + HEIGHT) if up else (y1 + HEIGHT, y2)
        # Arrows of one room leave and arrive a little apart.
        x1 = x2 if edge[0] == GROUND else x1 + max(-50, min(50, (x2 - x1) // 6))
        x2 += max(-50, min(50, (x1 - x2) // 6))
        tip = 8 if up else -8
        mark = " up" if up else ""
        dashed = " deferred" if house.edges[edge].deferred == house.edges[edge].all else ""
        bend = max(24, abs(y2 - y1) // 2) * (-1 if up else 1)
        ways.append(
            f'<path class="way{mark}{dashed}" d="M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2 + tip}"/>'
        )
        ways.append(f'<path class="tip{"-up" if up else ""}" d="M{x2} {y2}l-4 {tip}h8z"/>')
        text = str(house.edges[edge])
        x, y = (x1 + x2) // 2, (y1 + y2) // 2
        wide = 8 * len(text) + 6
        tags.append(f'<rect class="tag" x="{x - wide // 2}" y="{y - 8}" width="{wide}" height="16"/>')
        tags.append(f'<text class="middle{" warn" if up else ""}" x="{x}" y="{y + 4}">{text}</text>')
    boxes = []
    for room, (x, y) in at.items():
        wide = WIDTH - 160 if room == GROUND else BOX
        boxes.append(f'<rect class="room" x="{x - wide // 2}" y="{y}" width="{wide}" height="{HEIGHT}" rx="6"/>')
        boxes.append(f'<text class="name middle" x="{x}" y="{y + 19}">{escape(room)}</text>')
        boxes.append(f'<text class="small middle" x="{x}" y="{y + 35}">{escape(WHAT.get(room, ""))}</text>')
    return [*ways, *tags, *boxes]


def _table(house: House, top: int) -> list[str]:
    rooms = house.rooms
    left = (WIDTH - MARGIN - CELL * len(rooms)) // 2 + MARGIN
    parts = [
        f'<text class="middle" x="{WIDTH // 2}" y="{top - 62}">Imports of the room on the left from the room above; '
        "+n are deferred: within functions, for types alone, or by name (dashed where all are).</text>"
    ]
    for number, room in enumerate(rooms):
        middle = CELL * number + CELL // 2
        x, y = left + middle, top + middle
        parts.append(f'<text transform="translate({x + 4} {top - 8}) rotate(-38)">{escape(room)}</text>')
        parts.append(f'<text class="end" x="{left - 8}" y="{y + 4}">{escape(room)}</text>')
        parts.append(f'<rect class="self" x="{x - CELL // 2}" y="{y - CELL // 2}" width="{CELL}" height="{CELL}"/>')
        for step in (number, number + 1):
            parts.append(f'<path class="grid" d="M{left} {top + CELL * step}h{CELL * len(rooms)}"/>')
            parts.append(f'<path class="grid" d="M{left + CELL * step} {top}v{CELL * len(rooms)}"/>')
    for (start, end), edge in house.edges.items():
        x = left + CELL * rooms.index(end) + CELL // 2
        y = top + CELL * rooms.index(start) + CELL // 2 + 4
        mark = "" if house.goes_down((start, end)) else " warn"
        parts.append(f'<text class="count{mark}" x="{x}" y="{y}">{edge}</text>')
    every, deferred = sum(one.all for one in house.edges.values()), sum(one.deferred for one in house.edges.values())
    up = sum(one.all for edge, one in house.edges.items() if not house.goes_down(edge))
    parts.append(
        f'<text class="middle" x="{WIDTH // 2}" y="{top + CELL * len(rooms) + 34}">'
        f"{every} imports between rooms, {deferred} of them deferred, {up} not downward.</text>"
    )
    return parts


def main(words: list[str] | None = None) -> int:
    """Write the picture, or say whether it is current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architecture", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the picture is stale")
    arguments = parser.parse_args(words)
    picture = draw(read_house())
    if not arguments.check:
        PICTURE.write_text(picture)
        return 0
    current = PICTURE.is_file() and PICTURE.read_text() == picture
    print("docs/architecture.svg is " + ("current" if current else "stale: python -m benchmarks.architecture"))
    return int(not current)


if __name__ == "__main__":
    sys.exit(main())
