"""The report page: true numbers, nothing from files unescaped, nothing asked of the network."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatopt.core.checks import InputError
from splatopt.report.charts import Mark, Series, line_chart, running_mean, ticks
from splatopt.report.pictures import MAX_SIDE, ViewPictures, data_uri, spread
from splatopt.report.scene_page import DIFFERENCE_GAIN, read_metrics, write_report

NASTY = "<script>alert('x')</script>&\".jpg"


def picture(value: int, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.full((height, width, 3), value, dtype=torch.uint8)


def write_run(folder: Path, **config: object) -> Path:
    folder.mkdir()
    settings = {"format": "splatopt-run-1", "version": "9.8.7", "capture": "scenes/fox", "optimizer": "adam"}
    settings |= {"steps": 40, "seed": 3, "optimizer_options": {"beta1": 0.9}} | config
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [
        {
            "step": step,
            "seconds": step / 100,
            "loss": 1 / step,
            "psnr": 10 + step / 4,
            "gaussians": 1234,
            "memory_mb": 300 + step,
        }
        for step in (10, 20, 30, 40)
    ]
    lines[1] |= {"test_psnr": 14.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50, "los')
    views = [{"name": NASTY, "psnr": 21.25, "ssim": 0.75}]
    scores = {"subset": "test", "split": "every 8th", "steps": 40, "seconds": 0.4, "gaussians": 1234}
    scores |= {"psnr": 20.5, "ssim": 0.625, "views": views}
    scores["before"] = {"psnr": 8.125, "ssim": 0.25, "views": [{"name": NASTY, "psnr": 8.5, "ssim": 0.125}]}
    (folder / "eval.json").write_text(json.dumps(scores))
    return folder


class Elements(HTMLParser):
    """Collects the elements of a page, the addresses in them and the text of its images."""

    VOID = frozenset({"meta", "link", "img", "line", "polyline", "circle", "i"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_headline_numbers_come_from_the_runs_files(run: Path):
    path = write_report(run)
    page = path.read_text()
    assert path == run / "report.html"
    assert "<b>8.12 → 20.50</b>" in page
    assert "<b>0.250 → 0.625</b>" in page
    assert "<b>0.4 s</b>" in page
    assert "10.0 ms a step" in page
    assert "<b>1\u2009234</b>" in page
    assert "<b>340 MB</b>" in page
    assert "held-out test views" in page


def test_nothing_leaves_the_page(run: Path):
    (run / "scene.ply").touch()
    page = write_report(run, [ViewPictures(NASTY, picture(9), picture(1), picture(8))]).read_text()
    elements = Elements(page)
    assert "img" in elements.tags
    assert not {"script", "iframe", "object", "form"} & set(elements.tags)
    assert all(address.startswith("data:") or address == "scene.ply" for address in elements.addresses)
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_what_comes_from_files_is_escaped(tmp_path: Path):
    run = write_run(tmp_path / "run", capture=f"scenes/{NASTY}", optimizer=NASTY, init=NASTY, version=NASTY)
    page = write_report(run, [ViewPictures(NASTY, picture(9), None, picture(8))], command=f"train {NASTY}").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "script" not in Elements(page).tags


def test_pictures_and_their_scores_stand_together(run: Path):
    page = write_report(run, [ViewPictures(NASTY, picture(100), picture(0), picture(110))]).read_text()
    images = [address for address in Elements(page).addresses if address.startswith("data:image/png")]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))) for address in images]
    assert [int(image.max()) for image in shown] == [100, 0, 110, 10 * DIFFERENCE_GAIN]
    assert [int(image.min()) for image in shown] == [100, 0, 110, 10 * DIFFERENCE_GAIN]
    assert "PSNR 8.50 → 21.25 dB" in page
    assert "SSIM 0.125 → 0.750" in page


def test_difference_does_not_wrap_around(run: Path):
    page = write_report(run, [ViewPictures("dark.png", picture(255), None, picture(0))]).read_text()
    images = [address for address in Elements(page).addresses if address.startswith("data:image/png")]
    assert len(images) == 3
    assert int(np.asarray(Image.open(io.BytesIO(base64.b64decode(images[-1].split(",")[1])))).min()) == 255


def test_the_command_names_every_setting_that_is_not_at_its_default(tmp_path: Path):
    options = {"beta1": 0.8, "beta2": 0.999}
    config = {"max_side": 160, "skip_missing": True, "background": [0.0, 0.5, 1.0], "footprint": "antialiased"}
    config |= {"view_batch": 1, "threads": 0, "init": "random", "optimizer_options": options}
    page = write_report(write_run(tmp_path / "run", **config)).read_text()
    said = "--init random --max-side 160 --skip-missing --background 0.0 0.5 1.0 --footprint antialiased "
    assert f"--seed 3 {said}--adam.beta1 0.8 --out" in page


def test_command_and_title_can_be_given_or_are_put_together(run: Path):
    page = write_report(run).read_text()
    assert "<title>fox, trained with adam</title>" in page
    assert f"splatopt train scenes/fox --optimizer adam --steps 40 --seed 3 --out {run}" in page
    page = write_report(run, title="A & B", command="make demo").read_text()
    assert "<h1>A &amp; B</h1>" in page
    assert "<pre>make demo</pre>" in page


def test_a_run_in_stages_names_them_all(tmp_path: Path):
    options = {"adam": {"beta1": 0.8}, "lm": {"iterations": 3}}
    page = write_report(write_run(tmp_path / "run", stages="adam:30,lm:10", optimizer_options=options)).read_text()
    assert "<title>fox, trained with adam, then lm</title>" in page
    assert "--stages adam:30,lm:10 --seed 3 --adam.beta1 0.8 --lm.iterations 3 --out" in page
    assert "--optimizer" not in page
    assert "--steps" not in page
    assert "<tr><td>lm.iterations</td><td>3</td></tr>" in page
    assert "ms a step" not in page, "steps of different optimizers have no common pace"


def test_configuration_and_version_are_shown(run: Path):
    page = write_report(run).read_text()
    assert "<tr><td>adam.beta1</td><td>0.9</td></tr>" in page
    assert "<tr><td>splatopt</td><td>9.8.7</td></tr>" in page


def test_a_run_that_was_stopped_early_has_a_page_too(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "eval.json").unlink()
    (run / "metrics.jsonl").unlink()
    page = write_report(run).read_text()
    assert "was not scored" in page
    assert "Nothing was logged." in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is not a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_become_dashes(run: Path):
    scores = json.loads((run / "eval.json").read_text()) | {"psnr": None, "gaussians": None, "seconds": None}
    (run / "eval.json").write_text(json.dumps(scores))
    page = write_report(run).read_text()
    assert "<b>8.12 → –</b>" in page
    assert "<b>– s</b>" not in page, "what the scores lack, the last line of metrics says"


@pytest.mark.parametrize(("name", "value"), [("psnr", "high"), ("seconds", True), ("steps", -1), ("views", [3])])
def test_scores_that_are_damaged_are_named(run: Path, name, value):
    scores = json.loads((run / "eval.json").read_text()) | {name: value}
    (run / "eval.json").write_text(json.dumps(scores))
    with pytest.raises(InputError, match=rf"eval\.json.*{name}.*splatopt eval"):
        write_report(run)


def test_metrics_cut_short_are_read_up_to_the_cut(run: Path):
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [10, 20, 30, 40]
    assert read_metrics(run / "absent.jsonl") == []


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"'a\.png' must be"):
        ViewPictures("a.png", picture(0), None, picture(0, width=9))


def test_large_pictures_are_shrunk_and_small_ones_kept():
    def size(uri: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size

    assert size(data_uri(picture(7, 6, 8))) == (8, 6)
    assert size(data_uri(picture(7, 30, 2 * MAX_SIDE))) == (MAX_SIDE, 15)


def test_views_are_spread_evenly():
    assert spread(tuple(range(8)), 4) == [0, 2, 4, 6]
    assert spread((5, 9), 4) == [5, 9]


# ---------------------------------------------------------------------- charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (-3, 3, [-2, 0, 2]),
        (9.5, 10.4, [9.6, 9.8, 10, 10.2, 10.4]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


def test_running_mean_is_centred_and_keeps_the_length():
    assert running_mean([0, 3, 6, 9], 3) == [1.5, 3, 6, 7.5]
    assert running_mean([1, 5, 2], 1) == [1, 5, 2]
    assert running_mean([], 3) == []


def test_chart_places_points_in_proportion():
    chart = line_chart("t", "steps", [Series("", [0, 50, 100], [0.0, 5.0, 10.0])])
    points = chart.split('points="')[1].split('"')[0].split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.15)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.15)
    assert y[0] > y[2], "larger values stand higher"


def test_chart_leaves_out_what_is_not_finite_and_thins_long_lines():
    chart = line_chart("t", "steps", [Series("dots", [0, 1, 2], [1.0, float("nan"), 2.0], Mark.DOTS)])
    assert chart.count("<circle") == 2
    assert "nan" not in chart
    long = line_chart("t", "steps", [Series("", range(10_000), [float(i % 7) for i in range(10_000)])])
    points = long.split('points="')[1].split('"')[0].split()
    assert len(points) < 700


def test_chart_of_one_point_and_of_none():
    assert "<polyline" in line_chart("t", "steps", [Series("", [5], [1.0])])
    assert line_chart("t", "steps", [Series("", [], [])]) == '<p class="quiet">Nothing was logged.</p>'


def test_chart_escapes_its_words():
    chart = line_chart("<t>", "<x>", [Series("<s>", [0, 1], [0.0, 1.0])])
    assert "<t>" not in chart
    assert "<x>" not in chart
    assert "<s>" not in chart


def test_chart_of_what_is_hardly_apart_or_beyond_all_sense():
    for x, y in (([0, 5e-324], [1.0, 2.0]), ([0, 1], [1e-320, 2e-320]), ([0, 1], [1e15, 1e15]), ([0, 1], [-1e-9, 0.0])):
        assert "<polyline" in line_chart("t", "steps", [Series("", x, y)])
    chart = line_chart("t", "steps", [Series("", [0, 1, 2], [1e308, -1e308, 1.0], Mark.DOTS)])
    assert chart.count("<circle") == 1
