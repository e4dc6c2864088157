"""Pages of runs in a real browser: light, dark, on a phone and on paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.browser import Browser, opened_browser
from report.test_growth_section import camera, line
from report.test_scene_page import NASTY, write_run
from splatopt.report.charts import Mark, Series, chart_file
from splatopt.report.field_page import write_field_report
from splatopt.report.pictures import ViewPictures
from splatopt.report.scene_page import write_report
from splatopt.runs.folder import FIELD_FORMAT, RunFolder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def noise(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (60, 80, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with everything that a page can have: growth, pictures, names without an end."""
    run = write_run(tmp_path_factory.mktemp("pages") / "run", capture=f"scenes/{'a-name-without-an-end' * 12}")
    (run / "density.jsonl").write_text(line(10, 4, 2, 1238, added_at=[[0.5, 0.5, 0.0]]))
    views = [ViewPictures(name, noise(1), noise(2), noise(3), camera(width=80, height=60)) for name in (NASTY, "b.png")]
    return write_report(run, views)


def lights(browser: Browser, selector: str) -> tuple[float, float]:
    """Brightness of the words of an element and of the page behind it, 0 to 255."""
    words, behind = browser.lightness(selector, "color"), browser.lightness("body", "backgroundColor")
    assert words is not None
    assert behind is not None
    return words, behind


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("selector", ["body", ".quiet", "td:first-child", ".number .note"])
def test_words_stand_out_in_light_and_dark(browser, page, dark, selector):
    browser.open(page, dark=dark, scripted=False)
    words, behind = lights(browser, selector)
    assert (words - behind > 100) if dark else (behind - words > 100)


@pytest.mark.parametrize("width", [360, 800, 1200])
def test_a_page_fits_its_window(browser, page, width):
    browser.open(page, width=width, scripted=False)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_two_pictures_stand_in_a_row_and_elsewhere_four(browser, page):
    columns = "getComputedStyle(document.querySelector('.pictures')).gridTemplateColumns.split(' ').length"
    for width, expected in ((360, 2), (1200, 4)):
        browser.open(page, width=width, scripted=False)
        assert browser.evaluate(columns) == expected


def test_every_picture_is_shown_and_nothing_is_asked_for(browser, page):
    browser.open(page, scripted=False)
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_paper_is_light_and_holds_all(browser, page, dark):
    browser.open(page, width=720, dark=dark, on_paper=True, scripted=False)
    words, behind = lights(browser, "body")
    assert behind - words > 150
    assert browser.evaluate("document.documentElement.scrollWidth") <= 720
    assert browser.evaluate("getComputedStyle(document.querySelector('.view')).breakInside") == "avoid"
    assert 2 <= browser.printed() <= 6


def test_the_page_of_a_field_fits_and_stands_out(browser, tmp_path):
    folder = RunFolder(tmp_path / "run", FIELD_FORMAT)
    folder.path.mkdir()
    settings = {"format": FIELD_FORMAT, "version": "9.8.7", "target": "photo.png", "field": "sine"}
    folder.config.write_text(json.dumps(settings))
    folder.metrics.write_text('{"step": 1, "seconds": 0.1, "loss": 0.5, "psnr": 20.0}\n')
    made = write_field_report(folder.path, [])
    for width, dark in ((360, False), (1200, True)):
        browser.open(made, width=width, dark=dark, scripted=False)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        words, behind = lights(browser, "body")
        assert abs(words - behind) > 150


def test_a_chart_that_stands_alone_names_its_lines_and_follows_the_reader(browser, tmp_path):
    marks = (Mark.LINE, Mark.SECOND, Mark.THIRD, Mark.FOURTH, Mark.FIFTH)
    series = [Series(f"<{mark.value}>", [0, 1, 2], [1.0, 2.0, index], mark) for index, mark in enumerate(marks)]
    path = tmp_path / "chart.svg"
    path.write_text(chart_file("Title & more", "steps", series))
    colors = "[...document.querySelectorAll('g polyline')].map(line => getComputedStyle(line).stroke)"
    drawn = []
    for dark in (False, True):
        browser.open(path, dark=dark, scripted=False)
        drawn.append(browser.evaluate(colors))
        assert len(set(drawn[-1])) == len(marks)
        words = browser.evaluate("[...document.querySelectorAll('svg > text')].map(text => text.textContent)")
        assert words == ["Title & more", *(f"<{mark.value}>" for mark in marks)]
        inside = "[...document.querySelectorAll('svg > text')].every(t => t.getBBox().x + t.getBBox().width <= 460)"
        assert browser.evaluate(inside)
    assert drawn[0] != drawn[1]
