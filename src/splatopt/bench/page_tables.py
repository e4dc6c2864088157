"""Tables of committed results inside a Markdown page, kept up to date by a command."""

from __future__ import annotations

import re
from pathlib import Path

from splatopt.bench.groups import groups
from splatopt.bench.results import load_results
from splatopt.bench.summaries import KINDS, table_of_kind
from splatopt.bench.tables import to_markdown
from splatopt.core.checks import InputError
from splatopt.core.reading import read_bounded
from splatopt.core.typed import check_names

_BLOCK = re.compile(
    r"(?P<head><!-- bench table: (?P<path>\S+)(?P<kinds>(?: [a-z-]+)*) -->\n)(?P<body>.*?)"
    r"(?P<tail><!-- end of table -->)",
    re.DOTALL,
)


def refreshed(page: Path) -> tuple[str, str]:
    """Return a page's text as it is and as it should be.

    Tables stand between two comments, the first of which names a results file, from the page's folder, and the
    kinds of table::

        <!-- bench table: results/dense/results.json psnr seconds-to-reach -->
        <!-- end of table -->

    Args:
        page: A Markdown file.

    Raises:
        InputError: It cannot be read, has no such place, or names a file or kind that is not there.
    """
    try:
        text = read_bounded(page).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{page} cannot be read as Markdown ({error})") from error
    if not _BLOCK.search(text):
        raise InputError(
            f"{page} has no place for a table: a line <!-- bench table: RESULTS.json psnr --> and, below it, a line "
            f"<!-- end of table -->"
        )

    def fill(match: re.Match[str]) -> str:
        kinds = match["kinds"].split() or ["psnr"]
        check_names(kinds, KINDS, "kind of table", str(page))
        results = load_results(page.parent / match["path"])
        found = [table_of_kind(group, kind) for kind in kinds for group in groups(results)]
        body = "\n".join(f"**{table.title}**\n\n{to_markdown(table, 0)}" for table in found if table.rows)
        return f"{match['head']}\n{body}\n{match['tail']}"

    return text, _BLOCK.sub(fill, text)
