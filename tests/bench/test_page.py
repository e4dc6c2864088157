"""The page: everything inside, nothing outside, and controls that work in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bench.browser import Browser, opened_browser
from bench.cases import HOSTILE, made_cell, made_results, two_labels
from splatopt.bench.page import make_page
from splatopt.bench.pictures import TARGET, _webp, load_pictures
from splatopt.bench.results import Results
from splatopt.core.checks import InputError


def picture(red: int, blue: int) -> bytes:
    image = torch.zeros(20, 30, 3, dtype=torch.uint8)
    image[..., 0], image[..., 2] = red, blue
    return _webp(image)


def put_pictures(out: Path, labels: list[str]) -> None:
    """Pictures of two views: the photograph red, each entry's a little bluer."""
    folder = out / "pictures"
    folder.mkdir(parents=True)
    entries = []
    for view in ("a.png", "b.png"):
        for number, label in enumerate([TARGET, *labels]):
            name = f"{view}.{number}.webp"
            (folder / name).write_bytes(picture(200, 10 * number))
            place = {"protocol": "dense", "scene": "toy", "setting": "", "view": view}
            entries.append({**place, "label": label, "file": name})
    (folder / "index.json").write_text(json.dumps({"pictures": entries}))


def many_labels() -> Results:
    """Two scenes, two settings, and labels that try to be markup."""
    cells = [*two_labels().cells]
    for label in (HOSTILE, "third"):
        cells.append(made_cell(label, 0, [(0, 5.0), (1, 7.0), (100, 21.0)], name=f"toy.{len(cells)}"))
    cells.append(made_cell("first", 0, [(0, 2.0), (50, 9.0)], scene="other & <b>more</b>"))
    cells.append(made_cell("first", 0, [(0, 2.0), (50, 9.0)], setting="3 views", protocol={"name": "sparse"}))
    failed = made_cell("fourth", 0, [], status="failed", failure=HOSTILE, environment={})
    return made_results(*cells, failed, title=f"A title {HOSTILE}")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    put_pictures(out, ["first", "second"])
    path = out / "report.html"
    path.write_text(make_page(many_labels(), load_pictures([out])))
    return path


def test_nothing_is_asked_from_anywhere(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", text)
    assert "unsafe" not in re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    outside = re.findall(r"https?://[^\s\"'<>]+", text)
    assert set(outside) == {"http://www.w3.org/2000/svg"}


def test_texts_are_shown_and_never_obeyed(page):
    text = page.read_text()
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<b>more</b>" not in text
    assert "A title &lt;script&gt;" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert HOSTILE in data["labels"]


def test_the_page_names_where_it_comes_from(page):
    text = page.read_text()
    for words in ("splatopt bench made.toml", "2020-01-01 00:00 UTC", "every-8th-test", "toy.fourth.seed0", "A rule."):
        assert words in text


def test_results_without_a_finished_cell_have_a_page_too():
    failed = made_cell("first", 0, [], status="failed", failure="out of luck", environment={})
    text = make_page(made_results(failed))
    assert "out of luck" in text
    assert 'id="curves"' not in text


def change_index(out: Path, **changes: object) -> None:
    path = out / "pictures" / "index.json"
    values = json.loads(path.read_text())
    values["pictures"][0] |= changes
    path.write_text(json.dumps(values))


def test_pictures_come_with_the_photograph_first(tmp_path):
    put_pictures(tmp_path, ["first"])
    found = load_pictures([tmp_path, tmp_path / "nothing"])
    assert [(one.title, list(one.images)) for one in found] == [
        ("toy, a.png", [TARGET, "first"]),
        ("toy, b.png", [TARGET, "first"]),
    ]
    assert all(source.startswith("data:image/webp;base64,") for one in found for source in one.images.values())


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "pictures/x.webp", 3, ".."])
def test_pictures_are_taken_from_their_folder_alone(tmp_path, name):
    put_pictures(tmp_path, ["first"])
    (tmp_path.parent / "secret").write_bytes(picture(1, 2))
    change_index(tmp_path, file=name)
    with pytest.raises(InputError):
        load_pictures([tmp_path])


def test_a_picture_that_is_none_is_refused(tmp_path):
    put_pictures(tmp_path, ["first"])
    (tmp_path / "pictures" / "a.png.0.webp").write_text("<svg onload=alert(1)>")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        load_pictures([tmp_path])


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.open(page)
    return browser


LINES = "[...document.querySelectorAll('#curves .line')].map(line => line.dataset.label)"


def polyline(browser: Browser, label: str) -> list[list[float]]:
    text = browser.evaluate(
        f"document.querySelector('#curves .line[data-label={json.dumps(label)}]').getAttribute('points')"
    )
    return [[float(value) for value in point.split(",")] for point in text.split()]


def test_no_request_leaves_the_page_and_nothing_breaks(opened, page):
    opened.click("#curves [data-value=seconds]")
    opened.click("#pictures [data-value=difference]")
    opened.wait("document.querySelector('canvas').dataset.drawn")
    assert opened.requests() == [page.resolve().as_uri()]
    assert opened.complaints() == []
    assert opened.evaluate("document.querySelectorAll('script').length") == 2


def test_the_policy_stops_what_is_put_into_the_page(opened):
    opened.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        " document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x'; document.body.append(i); })()"
    )
    opened.wait("true")
    assert opened.evaluate("window.hacked === undefined")
    assert any("Content Security Policy" in text for text in opened.complaints())


def test_every_series_is_drawn_where_its_numbers_are(opened):
    assert opened.evaluate(LINES) == ["first", "second", HOSTILE, "third"]
    points = polyline(opened, "first")
    assert len(points) == 3
    # log axis: 1, 10 and 100 are equally far apart.
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0])
    # means over the seeds: 6, 16 and 21 dB.
    assert (points[0][1] - points[1][1]) / (points[1][1] - points[2][1]) == pytest.approx(10 / 5)
    assert opened.evaluate("document.querySelectorAll('#curves .band').length") == 2


def test_axes_and_metrics_are_chosen(opened):
    opened.click("#curves [data-value=linear]")
    points = polyline(opened, "first")
    assert len(points) == 4
    assert (points[2][0] - points[0][0]) / (points[3][0] - points[0][0]) == pytest.approx(0.1)
    assert opened.evaluate("document.querySelector('#curves .axis').textContent") == "steps"
    opened.click("#curves [data-value=seconds]")
    assert opened.evaluate("document.querySelector('#curves .axis').textContent").startswith("seconds")
    ticks = "[...document.querySelectorAll('#curves text')].map(text => text.textContent)"
    assert "10" in opened.evaluate(ticks)
    assert "100" not in opened.evaluate(ticks)
    opened.click("#curves [data-value=ssim]")
    assert max(float(text) for text in opened.evaluate(ticks) if text in {"0.4", "0.5"}) < 1
    pressed = "[...document.querySelectorAll('#curves [aria-pressed=true][data-value]')].map(b => b.dataset.value)"
    assert opened.evaluate(pressed) == ["ssim", "seconds", "linear", "whole"]


def test_series_are_hidden_and_shown(opened):
    opened.click("#curves .legend button:nth-child(2)")
    assert opened.evaluate(LINES) == ["first", HOSTILE, "third"]
    opened.click("#curves .legend button:nth-child(2)")
    assert opened.evaluate(LINES) == ["first", "second", HOSTILE, "third"]
    for number in range(1, 5):
        opened.click(f"#curves .legend button:nth-child({number})")
    assert "No series is shown." in opened.evaluate("document.querySelector('#curves svg').textContent")


TIP = "document.querySelector('#curves .tip')"


def test_pointing_at_the_chart_shows_values(opened):
    opened.evaluate("document.querySelector('#curves svg').scrollIntoView({block: 'center'})")
    box = opened.evaluate("document.querySelector('#curves svg').getBoundingClientRect().toJSON()")
    x = polyline(opened, "first")[1][0]
    opened.mouse("mouseMoved", box["x"] + x, box["y"] + box["height"] / 2)
    opened.wait(f"!{TIP}.hidden")
    rows = opened.evaluate(f"[...{TIP}.querySelectorAll('div')].map(row => row.innerText)")
    assert opened.evaluate(f"{TIP}.querySelector('strong').textContent") == "step 10"
    assert rows[0].split("\n")[0].startswith("second")
    assert "23.00 ± 4.24" in rows[0]
    assert any("16.00" in row and row.startswith("first") for row in rows)
    inside = opened.evaluate(
        f"(() => {{ const a = {TIP}.getBoundingClientRect(); return a.left >= 0 && a.right <= innerWidth; }})()"
    )
    assert inside
    opened.mouse("mouseMoved", 1, 1)
    opened.wait(f"{TIP}.hidden")


def test_the_keyboard_reads_values_too(opened):
    opened.evaluate("document.querySelector('#curves svg').focus()")
    opened.key("ArrowRight")
    opened.wait(f"!{TIP}.hidden")
    first = opened.evaluate(f"{TIP}.querySelector('strong').textContent")
    opened.key("ArrowLeft")
    opened.wait(f"{TIP}.querySelector('strong').textContent !== {json.dumps(first)}")


def choose(browser: Browser, selector: str, index: int) -> None:
    browser.evaluate(
        f"(() => {{ const s = document.querySelector({json.dumps(selector)}); s.selectedIndex = {index};"
        " s.dispatchEvent(new Event('change')); })()"
    )


def test_scenes_and_settings_are_chosen(opened):
    choose(opened, "#curve-scene", 1)
    assert opened.evaluate(LINES) == ["first"]
    choose(opened, "#curve-group", 1)
    assert opened.evaluate(LINES) == ["first"]
    assert opened.evaluate("document.querySelector('#curve-scene').closest('label').hidden")


CLIP = "document.querySelector('.stage .over').style.clipPath"


def test_the_slider_follows_the_hand(opened):
    assert opened.evaluate(CLIP) == "inset(0px 50% 0px 0px)"
    opened.evaluate("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    opened.wait("document.querySelector('.stage .under').complete")
    box = opened.evaluate("document.querySelector('.stage').getBoundingClientRect().toJSON()")
    y = box["y"] + box["height"] / 2
    opened.mouse("mousePressed", box["x"] + 0.5 * box["width"], y, pressed=True)
    opened.mouse("mouseMoved", box["x"] + 0.25 * box["width"], y, pressed=True)
    share = float(re.search(r"([\d.]+)%", opened.evaluate(CLIP))[1])
    assert share == pytest.approx(75, abs=1)
    opened.evaluate("document.querySelector('#place').focus()")
    opened.key("End")
    opened.wait(f"{CLIP} === 'inset(0px 0% 0px 0px)' || {CLIP} === 'inset(0px)'")


def test_sides_are_chosen(opened):
    names = "[...document.querySelectorAll('.stage .name')].map(name => name.textContent)"
    assert opened.evaluate(names) == ["first", TARGET]
    choose(opened, "#picture-right", 2)
    assert opened.evaluate(names) == ["first", "second"]
    before = opened.evaluate("document.querySelector('.stage .under').src")
    choose(opened, "#picture-view", 1)
    assert opened.evaluate(names) == ["first", "second"]
    assert opened.evaluate("document.querySelector('.stage .under').src") == before, "both views are alike here"


def test_differences_are_true_to_the_last_bit(opened):
    choose(opened, "#picture-right", 2)
    opened.click("#pictures [data-value=difference]")
    opened.wait("document.querySelector('canvas').dataset.drawn === '1-2-4'")
    pixel = "[...document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data]"
    assert opened.evaluate(pixel) == [0, 0, 40, 255]
    assert opened.evaluate("document.querySelector('.stage .bar').hidden")
    opened.evaluate(
        "(() => { const g = document.querySelector('#gain'); g.value = 16; g.dispatchEvent(new Event('input')); })()"
    )
    opened.wait("document.querySelector('canvas').dataset.drawn === '1-2-16'")
    assert opened.evaluate(pixel) == [0, 0, 160, 255]


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def contrast(browser: Browser) -> float:
    words, behind = browser.lightness("body", "color"), browser.lightness("body", "backgroundColor")
    assert words is not None
    assert behind is not None
    return words - behind


def test_light_and_dark_follow_the_reader(browser, page):
    browser.open(page)
    assert contrast(browser) < -150
    browser.open(page, dark=True)
    assert contrast(browser) > 150


@pytest.mark.parametrize("dark", [False, True])
def test_paper_is_light_and_holds_whole_tables(browser, page, dark):
    browser.open(page, width=720, dark=dark, on_paper=True)
    assert contrast(browser) < -150
    assert browser.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    assert browser.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert 2 <= browser.printed() <= 12
