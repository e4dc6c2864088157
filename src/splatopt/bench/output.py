"""Files that results become: tables in three forms, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splatopt.bench.groups import groups
from splatopt.bench.page import make_page
from splatopt.bench.pictures import load_pictures
from splatopt.bench.results import Results, save_results
from splatopt.bench.summaries import tables
from splatopt.bench.tables import as_markdown, to_csv, to_latex, to_markdown
from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError
from splatopt.core.files import make_folder


def write_output(
    results: Results,
    out: Path,
    *,
    pictures_from: Sequence[Path] = (),
    reference: str | None = None,
    keep: bool = False,
) -> list[Path]:
    """Write tables.md, tables.tex, tables.csv and report.html.

    Args:
        results: What they show.
        out: Folder; made if absent.
        pictures_from: Suites' folders whose pictures the page shows.
        reference: Label to compare with in place of the results' own.
        keep: Whether results.json is written too.

    Returns:
        What was written, in order.
    """
    labels = sorted({cell["label"] for cell in results.cells})
    if reference is not None and reference not in labels:
        raise InputError(f"no entry is labelled {reference!r}; there are {', '.join(labels)}")
    make_folder(out)
    if keep:
        save_results(out / "results.json", results)
    found = [table for group in groups(results, reference) for table in tables(group)]
    markdown = "\n".join(
        [f"# {as_markdown(results.title)}\n", *(to_markdown(table, 2) for table in found), _failures(results)]
    )
    files = {
        "tables.md": markdown,
        "tables.tex": "\n".join(to_latex(table) for table in found),
        "tables.csv": to_csv(found),
        "report.html": make_page(results, load_pictures(pictures_from), reference),
    }
    for name, text in files.items():
        replace_file(out / name, text.encode())
    return [out / "results.json", *(out / name for name in files)]


def _failures(results: Results) -> str:
    """The cells that failed, in a list."""
    lines = [f"- {as_markdown(cell['name'])}: {as_markdown(cell['failure'])}" for cell in results.failed]
    return "\n".join(["## Cells that failed", "", *lines, ""]) if lines else ""
