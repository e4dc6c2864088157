"""Published numbers: every one has a source, and none is taken for ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.cases import HOSTILE, made_cell, made_results
from splatopt.bench.cells import Cell, make_cells
from splatopt.bench.groups import groups
from splatopt.bench.output import write_output
from splatopt.bench.page import make_page
from splatopt.bench.published import MARK, PublishedRow, PublishedSet, Work, read_published
from splatopt.bench.published_tables import published_tables
from splatopt.bench.results import Results, load_results, save_results
from splatopt.bench.suite import make_suite
from splatopt.core.checks import InputError

FILE = Path(__file__).resolve().parents[2] / "results" / "published.json"


def test_every_number_has_a_source_that_can_be_looked_up():
    sets = read_published(FILE)
    assert {"mip-nerf-360", "mip-nerf-360-seven", "nerf-synthetic", "tanks-and-temples", "llff"} <= set(sets)
    for one in sets.values():
        assert all([one.dataset, one.protocol, one.scenes, one.rows])
        for row in one.rows:
            work = one.works[row.source]
            assert len(work.title) > 10
            assert re.fullmatch(r"\d{4}\.\d{5}", work.arxiv) or re.fullmatch(r"[\w-]+/[\w-]+", work.repository)
            assert 10 < (row.psnr or 0) < 45
            assert row.seconds is None or row.hardware
        keys = [(row.method, row.scene, row.steps) for row in one.rows]
        assert len(keys) == len(set(keys))


def test_lego_and_the_means_are_those_of_their_papers():
    sets = read_published(FILE)
    (lego,) = sets["nerf-synthetic"].of("lego")
    assert (lego.method, lego.steps, lego.psnr) == ("3DGS", 30_000, 35.78)
    for key in ("mip-nerf-360", "nerf-synthetic", "tanks-and-temples", "llff"):
        one = sets[key]
        method = "NeRF" if key == "llff" else "3DGS"
        scenes = [row.psnr for scene in one.scenes for row in one.of(scene)]
        (mean,) = [row.psnr for row in one.of("") if row.method == method and row.steps != 7000]
        assert sum(scenes) / len(scenes) == pytest.approx(mean, abs=0.01), key


def changed(folder: Path, change) -> Path:
    values = json.loads(FILE.read_text(encoding="utf-8"))
    change(values)
    path = folder / "published.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def row_of(values: dict) -> dict:
    return values["sets"]["llff"]["rows"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(version=2), "no file of published numbers that this splatopt reads"),
        (lambda values: row_of(values).pop("source"), "row 1: source is missing"),
        (lambda values: row_of(values).update(source="nobody"), "there is no source 'nobody'"),
        (lambda values: row_of(values).update(scene="frn"), "there is no scene 'frn'; did you mean fern"),
        (lambda values: row_of(values).update(psnr=200), "psnr of NeRF must lie between 0 and 100, got 200"),
        (lambda values: row_of(values).update(psnr="high"), "psnr must be"),
        (lambda values: row_of(values).update(steps=1.5), "steps must be"),
        (lambda values: row_of(values).update(lpips_net="squeeze"), "lpips_net must be vgg or alex"),
        (lambda values: row_of(values).pop("psnr"), "has neither psnr nor ssim"),
        (lambda values: row_of(values).update(speed=3), "there is no entry 'speed'"),
        (lambda values: values["sources"]["nerf"].update(arxiv=""), "needs its title, and its number at arXiv"),
        (lambda values: values["sets"]["llff"].update(scene=[]), "there is no entry 'scene'; did you mean scenes"),
        (lambda values: values.update(sets=[]), "sets must be an object"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        read_published(changed(tmp_path, change))


# ---------------------------------------------------------------------- suites


def test_cells_name_the_published_scene_that_they_are(tmp_path, capture):
    changed(tmp_path, lambda values: None)
    scenes = [{"path": str(capture), "name": "lego_800", "published_as": "lego"}, {"path": str(capture), "name": "x"}]
    values = {"scenes": scenes, "optimizers": [{"name": "adam"}], "published": "nerf-synthetic"}
    suite = make_suite(values, "the test", tmp_path, "t")
    first, second = make_cells(suite, Path("out"), {})
    assert first.published == {"sets": ["nerf-synthetic"], "scene": "lego"}
    assert second.published is None
    assert Cell.from_json(json.loads(json.dumps(first.to_json())), "here").published == first.published
    assert PublishedSet.from_json(json.loads(json.dumps(suite.to_json()))["published"][0], "here") == suite.published[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"published": "mip-nerf"}, "there is no published set 'mip-nerf'; did you mean"),
        ({"published": 3}, "published must be"),
        ({"protocol": "long"}, "published numbers belong to the protocol dense; the suite's is long"),
        ({"train": {"max_side": 100}}, "published numbers are of whole photographs; leave out max_side"),
        ({"optimizers": [{"name": "adam", "downscale": 2}]}, "leave out downscale"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path, capture, changes, said):
    changed(tmp_path, lambda values: None)
    values = {"published": "llff", "scenes": [{"path": str(capture)}], "optimizers": [{"name": "adam"}]}
    with pytest.raises(InputError, match=said):
        make_suite(values | changes, "the test", tmp_path, "t")


def test_a_suite_without_the_file_says_where_it_looked(tmp_path, monkeypatch, capture):
    monkeypatch.chdir(tmp_path)
    values = {"published": "llff", "scenes": [{"path": str(capture)}], "optimizers": [{"name": "adam"}]}
    with pytest.raises(InputError, match=r"published names numbers of a published\.json, and there is none at"):
        make_suite(values, "the test", tmp_path / "suites", "t")


# ---------------------------------------------------------------------- tables


WORK = Work("A method", arxiv="1234.56789")
ROWS = (
    PublishedRow("Theirs", "a", "one", 7000, 24.0),
    PublishedRow("Theirs", "a", "two", 7000, 26.0, lpips=0.2, lpips_net="vgg"),
    PublishedRow("Theirs", "a", "", 7000, 25.0, 0.8, 0.3, gaussians=5000, seconds=60.0, hardware="a large GPU"),
)
SET = PublishedSet("set", "The data set", "the rules", ("one", "two"), ROWS, {"a": WORK})


def results_beside(one: PublishedSet = SET, scenes: tuple[str, ...] = ("one", "two")) -> Results:
    place = {"sets": [one.key]}
    cells = [
        made_cell(
            "adam", 0, [(0, 5.0), (7000, 20.0 + number), (9000, 22.0 + number)], scene=scene, name=f"{scene}.{number}"
        )
        | {"published": {**place, "scene": scene}, "lpips": {"vgg": 0.5}, "views_tested": 7}
        for number, scene in enumerate(scenes)
    ]
    made = made_results(*cells, reference="adam")
    source = {**made.sources[0], "suite": {"published": [one.to_json()]}}
    return Results(made.title, made.reference, (source,), made.cells)


def test_published_rows_stand_beside_ours_and_are_marked():
    (group,) = groups(results_beside())
    mean, first, second = published_tables(group)
    assert [table.title for table in (mean, first)] == [
        "Published beside ours: The data set, mean (dense)",
        "Published beside ours: The data set, one (dense)",
    ]
    assert list(mean.columns) == ["PSNR, dB", "SSIM", "LPIPS vgg", "Gaussians", "Seconds of training"]
    assert mean.texts == [
        ["adam, at 7,000 steps", "20.50", "0.4100", "–", "100", "700.0"],
        ["adam", "22.50", "0.4500", "0.5000", "100", "900.0"],
        [f"Theirs, 7,000 steps [1], {MARK}", "25.00", "0.8000", "–", "5,000", "60.0"],
    ]
    assert first.texts[1][1] == "22.00"
    assert first.texts[-1][:2] == [f"Theirs, 7,000 steps [1], {MARK}", "24.00"]
    assert second.texts[-1][3] == "0.2000"
    assert (
        "[1] A method (arXiv:1234.56789); a large GPU; LPIPS by a network that is not said here: Theirs 0.3"
        in mean.note
    )
    assert "the rules. Ours: means of 14 held-out views and over seeds" in mean.note
    assert "Ours: means of 7 held-out views" in first.note


def test_a_mean_is_shown_beside_all_of_its_scenes_alone():
    (group,) = groups(results_beside(scenes=("two",)))
    assert [table.title for table in published_tables(group)] == ["Published beside ours: The data set, two (dense)"]


def test_results_without_published_numbers_have_no_such_table():
    made = made_results(made_cell("adam", 0, [(0, 5.0), (1, 6.0)]), reference="adam")
    (group,) = groups(made)
    assert published_tables(group) == []


def test_pages_and_tables_mark_them_and_show_them_as_they_stand(tmp_path):
    rows = (PublishedRow(HOSTILE, "a", "one", psnr=24.0, note=HOSTILE), *ROWS[1:])
    hostile = PublishedSet("set", HOSTILE, HOSTILE, SET.scenes, rows, {"a": Work(HOSTILE, repository="a/b")})
    results = results_beside(hostile)
    save_results(tmp_path / "results.json", results)
    again = load_results(tmp_path / "results.json")
    write_output(again, tmp_path)
    page = make_page(again)
    assert page.count(MARK) >= 3
    assert "<script>alert" not in page
    for name in ("tables.md", "tables.tex", "tables.csv"):
        assert MARK in (tmp_path / name).read_text(encoding="utf-8")


def test_a_results_file_whose_published_numbers_are_damaged_is_refused(tmp_path):
    results = results_beside()
    results.sources[0]["suite"]["published"][0]["rows"][0]["psnr"] = "high"
    with pytest.raises(InputError, match="published set 1 of the results: row 1: psnr must be"):
        groups(results)
