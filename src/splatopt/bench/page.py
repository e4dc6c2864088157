"""The report: one page that holds everything and asks the network for nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from splatopt.bench.environment import REPRODUCING
from splatopt.bench.groups import Group, groups
from splatopt.bench.pictures import Picture
from splatopt.bench.records import CellRecord
from splatopt.bench.results import Results
from splatopt.bench.summaries import tables, view_tables
from splatopt.bench.tables import to_html
from splatopt.core.checks import shown
from splatopt.report.page import HEAD, escape, scripted_policy


def make_page(results: Results, pictures: Sequence[Picture] = (), reference: str | None = None) -> str:
    """Return the page of ``results``.

    Script and style are inside and named by their hashes in the content policy, which allows nothing else: no
    request, no other script. All text of the results is escaped.

    Args:
        results: What it shows.
        pictures: Views to put side by side.
        reference: Label to compare with in place of the results' own.
    """
    style, script = (_beside(name) for name in ("page.css", "page.js"))
    found = groups(results, reference)
    body = [_header(results, found), _failures(results)]
    if found:
        body += [_main_tables(found), _CURVES]
    body += [_PICTURES if pictures else "", *(_scene_tables(group) for group in found), _provenance(results)]
    return _PAGE.format(
        policy=scripted_policy(style, script),
        title=escape(results.title),
        style=style,
        body="\n".join(part for part in body if part),
        data=_embedded(page_data(results, found, pictures)),
        script=script,
    )


_PAGE = f"""{HEAD}<body>
<main>
{{body}}
</main>
<script type="application/json" id="data">{{data}}</script>
<script>{{script}}</script>
</body>
</html>
"""

_CURVES = """<h2>Curves</h2>
<section id="curves">
<div class="controls"></div>
<div class="card"><div class="chart"></div><div class="legend" role="group" aria-label="Series"></div></div>
<p class="quiet small">Means over seeds, straight between scored points, with a band of one standard deviation. Point
at the chart, or move along it with the arrow keys, to read values; the names below it hide and show series.</p>
<noscript><p>The curves need JavaScript, which is part of this page.</p></noscript>
</section>"""

_PICTURES = """<h2>Side by side</h2>
<section id="pictures">
<div class="controls"></div>
<div class="card"><div class="stage"></div>
<input class="place" id="place" type="range" min="0" max="100" step="0.1" value="50"
aria-label="Where the two meet"></div>
<p class="quiet small">Held-out views at the last step, first seed. Drag the line, or choose the difference:
|left - right|, brightened by the gain.</p>
<noscript><p>The pictures need JavaScript, which is part of this page.</p></noscript>
</section>"""


def _beside(name: str) -> str:
    """A text that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _embedded(values: Mapping[str, object]) -> str:
    """JSON that cannot end the element it stands in, and whose texts act on nothing."""
    text = json.dumps(_all_shown(values), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _all_shown(value: object) -> object:
    """A JSON value with each of its texts as :func:`splatopt.core.checks.shown` shows it."""
    if isinstance(value, Mapping):
        return {name: _all_shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_all_shown(one) for one in value]
    return shown(value) if isinstance(value, str) else value


def page_data(results: Results, found: Sequence[Group], pictures: Sequence[Picture]) -> dict[str, object]:
    """Return what the page's script draws."""
    return {
        "labels": list(dict.fromkeys(cell["label"] for cell in results.done)),
        "groups": [
            {
                "name": group.name,
                "scenes": [
                    {"name": scene, "runs": [_curve(c) for c in group.cells if c["scene"] == scene]}
                    for scene in group.scenes
                ],
            }
            for group in found
        ],
        "pictures": [
            {
                "title": picture.title,
                "images": [{"label": label, "source": source} for label, source in picture.images.items()],
            }
            for picture in pictures
        ],
    }


def _curve(cell: CellRecord) -> dict[str, object]:
    points = cell["points"]
    return {
        "label": cell["label"],
        "step": [point["step"] for point in points],
        "seconds": [round(point["seconds"], 3) for point in points],
        "psnr": [round(point["psnr"], 4) for point in points],
        "ssim": [round(point["ssim"], 5) for point in points],
        "gaussians": [point["gaussians"] for point in points],
    }


# ---------------------------------------------------------------------- text


def _header(results: Results, found: Sequence[Group]) -> str:
    """Title, and what was compared in a line."""
    cells = results.cells
    counts = {name: len({cell[name] for cell in cells}) for name in ("scene", "label", "seed")}
    protocols = ", ".join(dict.fromkeys(cell["protocol"]["name"] for cell in cells))
    metrics = {
        "protocol": protocols,
        "scenes": counts["scene"],
        "entries": counts["label"],
        "seeds": counts["seed"],
        "cells": f"{len(results.done)} of {len(cells)}" if results.failed else len(cells),
        "compared with": ", ".join(dict.fromkeys(group.reference for group in found)) or "–",
    }
    boxes = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(str(value))}</b></div>" for name, value in metrics.items()
    )
    rules = dict.fromkeys(str(cell["protocol"].get("rule", "")) for cell in cells)
    lead = " ".join(f"{rule[:1].upper()}{rule[1:]}." for rule in rules if rule)
    return (
        f'<h1>{escape(results.title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<div class="card facts">{boxes}</div>'
    )


def _failures(results: Results) -> str:
    """The cells that failed, and why."""
    items = "".join(f"<li><b>{escape(cell['name'])}</b>: {escape(cell['failure'])}</li>" for cell in results.failed)
    return f'<h2>Cells that failed</h2><div class="card failed"><ul>{items}</ul></div>' if items else ""


def _main_tables(found: Sequence[Group]) -> str:
    """What is looked for first: qualities over scenes, and the way to the reference's."""
    parts = ["<h2>Results</h2>"]
    for group in found:
        first = [table for table in tables(group) if table.title not in _scene_titles(group)]
        if len(found) > 1:
            parts.append(f"<h3>{escape(group.name)}</h3>")
        parts += [to_html(table) for table in first]
    return "\n".join(parts)


def _scene_titles(group: Group) -> set[str]:
    return {f"{scene} ({group.name})" for scene in group.scenes}


def _scene_tables(group: Group) -> str:
    """Each scene in full."""
    titles = _scene_titles(group)
    inside = "\n".join(to_html(table) for table in tables(group) if table.title in titles)
    views = "\n".join(to_html(table) for table in view_tables(group))
    more = f"<details><summary>Each view</summary>{views}</details>" if views else ""
    return f"<h2>Each scene in full: {escape(group.name)}</h2>\n{inside}\n{more}"


def _provenance(results: Results) -> str:
    """Commands, versions and machines."""
    parts = ["<h2>Where this comes from</h2>"]
    for source in results.sources:
        rows = {"title": source.get("title"), "date": source.get("date")}
        parts += [f"<pre>{escape(str(source.get('command', '')))}</pre>", _pairs(rows)]
    ran_on: dict[str, dict[str, None]] = {}
    for cell in results.done:
        for name, value in cell["environment"].items():
            ran_on.setdefault(name, {})[str(value)] = None
    parts.append(_pairs({name: "; ".join(values) for name, values in ran_on.items()}))
    scoring = dict.fromkeys(str(cell.get("scoring", "")) for cell in results.done)
    splits = dict.fromkeys(f"{cell['scene']}: {cell.get('split')}" for cell in results.done)
    left_out = dict.fromkeys(
        str(text) for cell in results.done for text in cell.get("lpips_left_out", []) if isinstance(text, str)
    )
    ranges = dict.fromkeys(str(cell["lpips_range"]) for cell in results.done if cell.get("lpips_range"))
    warnings = dict.fromkeys(f"{cell['name']}: {text}" for cell in results.done for text in cell.get("warnings", []))
    resumed = [cell["name"] for cell in results.done if cell.get("resumed")]
    notes = [*scoring, *(f"LPIPS: {one}" for one in ranges), *left_out, f"splits: {', '.join(splits)}", *warnings]
    notes.append(_ALIKE)
    if any(source.get("side_by_side") for source in results.sources):
        notes.append("cells ran side by side on Ray: their seconds depend on what ran beside them")
    if resumed:
        notes.append(f"went on after an interruption, which costs seconds: {', '.join(resumed)}")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes if note)
    details = "".join(f"<li>{escape(cell['name'])}: {escape(_settings(cell))}</li>" for cell in results.cells)
    return "\n".join(
        [
            *parts,
            f'<details open><summary>How it was scored</summary><ul class="small">{items}</ul></details>',
            f'<details><summary>What each cell was told</summary><ul class="small">{details}</ul></details>',
        ]
    )


_ALIKE = f"numbers are the same to the bit where these are: {', '.join(REPRODUCING)}; threads do not matter"


def _pairs(values: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return f'<div class="card"><table class="pairs">{rows}</table></div>'


def _settings(cell: CellRecord) -> str:
    """What a cell was told, without what all were told."""
    config = {name: value for name, value in cell["config"].items() if not name.startswith("eval_")}
    return json.dumps(config, sort_keys=True)
