"""What MkDocs needs to build ``docs/`` as GitHub shows it: hooks, named in ``mkdocs.yml``.

Links that leave ``docs/`` lead to pages of the site where it has them, and become plain text elsewhere; the names of
files in fences become titles; Sphinx roles in docstrings become code.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files beside ``docs/`` that are pages of the site, and where."""

HOMES = {"README.md": "index.md", **ROOT_PAGES}

_LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\((?!https?:|#)([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```(\w+) file=(\S+)$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def site_links(text: str, place: str, source: str) -> str:
    """Return Markdown whose links hold in the site.

    Args:
        text: A page.
        place: Where the page lies in the site, such as ``results/optim.md``.
        source: Where it lies in the project, such as ``docs/results/optim.md``.
    """

    def linked(found: re.Match[str]) -> str:
        words, path, anchor = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        home = target.removeprefix("docs/") if target.startswith("docs/") else HOMES.get(target)
        if home is None:
            return f"{words} (`{target}`)" if words.strip("`") != target else words
        return f"[{words}]({posixpath.relpath(home, posixpath.dirname(place) or '.')}{anchor})"

    return _LINK.sub(linked, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside ``docs/``."""
    from pathlib import Path

    from mkdocs.structure.files import File

    for name, place in ROOT_PAGES.items():
        text = (Path(config.config_file_path).parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=site_links(text, place, name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend links and fences of a page."""
    place = page.file.src_uri
    if place not in ROOT_PAGES.values():
        markdown = site_links(markdown, place, f"docs/{place}")
    return _FENCE.sub(r'```\1 title="\2"', markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drop Sphinx roles, which Markdown leaves standing before the code."""
    return _ROLE.sub("", html)
