"""Pages can be read and followed: lines are short, links lead somewhere, numbers say where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import splatopt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
MAX_LETTERS = 120
KEEP_A_CHANGELOG = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines of a page outside code and tables, with their numbers."""
    found, fenced, made, after_blank, code = [], False, False, True, False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        made = (made or line.startswith("<!-- bench table")) and not line.startswith("<!-- end of table")
        # Four spaces after an empty line begin code, which goes on for as long as lines are indented.
        code = line.startswith("    ") and (after_blank or code)
        after_blank = not line.strip()
        if not (fenced or made or code or line.startswith(("|", "```", "<!--"))):
            found.append((number, line))
    return found


def anchors(page: Path) -> set[str]:
    """What one can link to within a page: its headings, as GitHub spells them."""
    headings = [line.lstrip("#").strip().lower() for _, line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The links of a page that stay within the project."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path):
    def length(line: str) -> int:
        return len(re.sub(r"\]\([^)]*\)", "]", line))

    assert [f"{page.name}:{number}" for number, line in prose(page) if length(line) > MAX_LETTERS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_reached_from_the_index():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached and page.suffix == ".md" and page.exists():
            reached.add(page)
            waiting += [page.parent / link.partition("#")[0] for link in links(page)]
    assert {page for page in PAGES if page.resolve() not in reached} == set()


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=lambda page: page.stem)
def test_pages_of_results_say_on_what_and_by_what_source(page: Path):
    text = page.read_text()
    assert "AMD EPYC" in text
    if page.stem != "index":
        assert "## Where these numbers come from" in text
        assert re.search(r"`[0-9a-f]{7}`", text)
        assert f"]({page.name})" in (DOCS / "results" / "index.md").read_text()


def test_no_page_names_a_place_on_somebodys_machine():
    for page in PAGES:
        assert re.search(r"(?<![\w.~])/(tmp|home|root|work|mnt|Users)/", page.read_text()) is None, page.name


def test_the_changelog_has_the_version_and_the_headings_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == splatopt.__version__
    assert all(date for _, date in versions[1:])
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= KEEP_A_CHANGELOG
    assert re.search(r"\d (dB|ms|%)|\d\.\d+ s\b", text) is None, "numbers that were measured belong in docs/results"
