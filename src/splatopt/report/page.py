"""Pieces of a page that stands alone: one file, no requests, whatever comes from elsewhere escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import shown

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
"""
"""What every page begins with: its content policy, title and style."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PAGE = f"""{HEAD}<body>
<main>
{{body}}
</main>
</body>
</html>
"""


def scripted_policy(style: str, script: str, more: str = "") -> str:
    """Return the content policy of a page with a script: style and script by their hashes, and no request.

    Args:
        style: The page's only style.
        script: Its only script.
        more: Further rules, each with its semicolon.
    """
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; {more}style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def escape(text: object) -> str:
    """Return text as HTML shows it: its marks are no markup, and what cannot be seen is escaped."""
    return html.escape(shown(text))


def style_sheet() -> str:
    """Return the style of pages, which charts are coloured by."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write a page of ``sections``, each HTML, in one move.

    Args:
        path: The file.
        title: Plain text.
        sections: The body.
    """
    page = _PAGE.format(policy=_POLICY, title=escape(title), style=style_sheet(), body="\n".join(sections))
    replace_file(path, page.encode())
    return path


def number_card(name: str, value: str, note: str) -> str:
    """Return one number with its name and a note."""
    return (
        f'<div class="card number"><span class="name">{escape(name)}</span><b>{escape(value)}</b>'
        f'<span class="note">{escape(note)}</span></div>'
    )


def two_columns(texts: Mapping[str, str]) -> str:
    """Return a table of names and texts."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in texts.items())
    return f'<div class="card"><table>{rows}</table></div>'


def chart_card(heading: str, chart: str) -> str:
    """Return a chart under its heading."""
    return f'<div class="card"><h3>{escape(heading)}</h3>{chart}</div>'


def is_number(value: object) -> TypeGuard[float]:
    """Return whether ``value``, read from a run's files, is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def pairs(found: Sequence[tuple[object, object]]) -> list[tuple[float, float]]:
    """Return those pairs of which both are numbers."""
    return [(x, y) for x, y in found if is_number(x) and is_number(y)]


def scores_before(scores: Mapping[str, object]) -> Mapping[str, object]:
    """Return a run's scores from before the first step; empty where there are none."""
    before = scores.get("before")
    return before if isinstance(before, dict) else {}
