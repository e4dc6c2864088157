"""The site of ``docs/``: every page is in it, links hold, and nothing is asked of the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.site import ROOT_PAGES, on_page_content, site_links

import splatopt
from bench.browser import opened_browser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=280, env=environment)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("[a](core.md#state)", "[a](core.md#state)"),
        ("[a](results/optim.md)", "[a](results/optim.md)"),
        ("[a](../README.md)", "[a](index.md)"),
        ("[a](../CONTRIBUTING.md#figures)", "[a](contributing.md#figures)"),
        ("[scores](../examples/density)", "scores (`examples/density`)"),
        ("[a](https://example.org) and ![p](pictures/x.webp) and [b](#here)", None),
    ],
)
def test_links_are_those_of_the_site(written, there):
    assert site_links(written, "index.md", "docs/index.md") == (written if there is None else there)


def test_links_of_deeper_pages_and_of_those_beside_docs():
    assert site_links("[a](../../README.md)", "results/x.md", "docs/results/x.md") == "[a](../index.md)"
    assert site_links("[a](../data.md#lenses)", "results/x.md", "docs/results/x.md") == "[a](../data.md#lenses)"
    assert site_links("[a](docs/core.md)", "contributing.md", "CONTRIBUTING.md") == "[a](core.md)"


def test_roles_of_docstrings_are_dropped():
    assert on_page_content("see :class:<code>Run</code>", None, None, None) == "see <code>Run</code>"


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r"(?:: |- )([\w/-]+\.md)$", CONFIG.partition("\nnav:\n")[2], re.MULTILINE)
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | set(ROOT_PAGES.values())
    assert sorted(named) == sorted(pages)


def test_the_api_page_has_every_public_name():
    text = (DOCS / "api.md").read_text()
    names = set(re.findall(r"::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    names |= {name for members in re.findall(r"members: \[([^\]]*)\]", text) for name in members.split(", ")}
    later = {"Footprint", "PruneResult", "inspect_capture", "CaptureOptions"}
    assert set(splatopt.__all__) - names - later == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site") / "site"
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_it_is_built_strictly_and_asks_nothing_of_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(https?:[^\s\"'>]+)", page.read_text()
        )
        assert loaded == [], page.name
    assert not [path for style in site.rglob("*.css") for path in re.findall(r"url\((https?:[^)]+)", style.read_text())]
    text = (site / "api.html").read_text()
    assert "Train a scene from a capture and leave a run" in text
    assert ":::" not in re.sub(r"<[^>]+>", "", text)


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails(tmp_path):
    pytest.importorskip("mkdocs")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "src").symlink_to(ROOT / "src")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "docs" / "metrics.md").open("a") as page:
        page.write("\n[gone](scene.md#no-such-heading)\n")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "no-such-heading" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, True)])
def test_pages_fit_and_are_light_or_dark_as_the_reader_is(site, tmp_path, width, dark):
    with opened_browser(tmp_path) as browser:
        for name in ("index", "quick-start", "which-optimizer", "commands", "api", "data", "results/optim"):
            page = site / f"{name}.html"
            browser.open(page, width=width, dark=dark, scripted=False)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
            scheme = browser.evaluate("document.body.dataset.mdColorScheme")
            assert scheme == ("slate" if dark else "default")
            assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), name
            assert all(url.startswith("file:") for url in browser.requests())


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_pages_on_paper_are_light_and_hold_their_words_alone(site, tmp_path, dark):
    with opened_browser(tmp_path) as browser:
        for name in ("index", "which-optimizer", "results/optim"):
            browser.open(site / f"{name}.html", width=720, dark=dark, on_paper=True, scripted=False)
            assert browser.lightness("body", "color") < 100, name
            behind = browser.lightness("body", "backgroundColor")
            assert behind is None or behind > 230, name
            hidden = "[...document.querySelectorAll('.md-header, .md-sidebar, .md-tabs')]"
            assert browser.evaluate(f"{hidden}.every(e => getComputedStyle(e).display === 'none')"), name
            assert 1 <= browser.printed() <= 20, name
