"""Results from elsewhere are data: read within bounds, merged only where they agree."""

from __future__ import annotations

import json

import pytest

from bench.cases import made_cell, made_results, two_labels
from splatopt.bench import results as results_module
from splatopt.bench.results import load_results, merge, save_results
from splatopt.core.checks import InputError

CURVE = [(0, 1.0), (10, 2.0)]


def test_results_survive_the_disk(tmp_path):
    save_results(tmp_path / "results.json", two_labels())
    assert load_results(tmp_path / "results.json") == two_labels() == load_results(tmp_path)


def saved(tmp_path, change) -> dict:
    path = tmp_path / "results.json"
    save_results(path, two_labels())
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(version=2), "written by a newer splatopt"),
        (lambda v: v.update(version="1"), "names no version"),
        (lambda v: v.update(version=0), "names no version"),
        (lambda v: v.update(format="x"), "is not a results file of splatopt"),
        (lambda v: v.update(cells={}), "cells must be a list"),
        (lambda v: v.update(cells=[3]), "cell 1 must be an object"),
        (lambda v: v.update(title=3), "title must be a text"),
        (lambda v: v["cells"][0].update(label=None), "cell 1: label must be a text"),
        (lambda v: v["cells"][1].update(label="x" * 200_000), "cell 2: label must be a text"),
        (lambda v: v["cells"][0].update(status="fine"), "status must be done or failed"),
        (lambda v: v["cells"][0].update(status="failed"), "failure must be a text"),
        (lambda v: v["cells"][0].update(points=[]), "has no points"),
        (lambda v: v["cells"][0].update(seed=True), "seed must be a number of a reasonable size"),
        (lambda v: v["cells"][0].update(protocol="dense"), "protocol must be an object"),
        (lambda v: v["cells"][0].update(protocol={}), "name must be a text"),
        (lambda v: v["cells"][0].update(environment=[]), "environment must be an object"),
        (lambda v: v["cells"][0].update(lpips={"vgg": "low"}), "vgg must be a number of a reasonable size"),
        (lambda v: v["cells"][0]["points"][1].update(psnr="high"), "psnr must be a number of a reasonable size"),
        (lambda v: v["cells"][0]["points"][1].pop("seconds"), "seconds must be a number of a reasonable size"),
        (lambda v: v["cells"][0]["points"].reverse(), "not in the order of their steps"),
        (lambda v: v["cells"][0]["points"][1].update(step=-1), "not in the order of their steps"),
        (lambda v: v["cells"][0].update(warnings="many"), "warnings must be a list"),
        (lambda v: v["cells"][0].update(lpips_left_out=3), "lpips_left_out must be a list"),
        (lambda v: v["cells"][0]["points"][1].update(psnr=10**400), "not a whole number of at most 64 bits"),
        (lambda v: v["cells"][0]["points"][1].update(psnr=10**18), "psnr must be a number of a reasonable size"),
        (
            lambda v: v["cells"][0].update(views=[{"name": "a", "psnr": 1}]),
            "ssim must be a number of a reasonable size",
        ),
        (lambda v: v["sources"].append("x"), "source 2 must be an object"),
    ],
)
def test_a_file_that_is_not_of_the_form_is_refused(tmp_path, change, said):
    path = saved(tmp_path, change)
    with pytest.raises(InputError, match=said) as raised:
        load_results(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": NaN}', "[]", "\xff"])
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is not a results file"):
        load_results(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = saved(tmp_path, lambda values: None)
    monkeypatch.setattr(results_module, "_MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than 100"):
        load_results(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"results\.json cannot be read"):
        load_results(tmp_path)


def test_results_are_joined():
    one = made_results(made_cell("first", 0, CURVE), title="One")
    two = made_results(made_cell("second", 0, CURVE), made_cell("first", 1, CURVE), title="Two", reference="second")
    joined = merge([one, two])
    assert [cell["name"] for cell in joined.cells] == ["toy.first.seed0", "toy.second.seed0", "toy.first.seed1"]
    assert (joined.title, joined.reference) == ("One", "first")
    assert [source["title"] for source in joined.sources] == ["One", "Two"]


def test_what_both_hold_is_kept_once():
    assert merge([two_labels(), two_labels()]) == two_labels()


def test_a_cell_with_two_numbers_is_refused():
    one, two = (made_results(made_cell("first", 0, [(0, 1.0), (9, psnr)])) for psnr in (3.0, 4.0))
    with pytest.raises(InputError, match="two of the results hold toy, first, seed 0 under protocol dense, and differ"):
        merge([one, two])


def test_another_protocol_is_another_cell():
    sparse = made_cell("first", 0, CURVE, protocol={"name": "sparse"})
    assert len(merge([made_results(made_cell("first", 0, CURVE)), made_results(sparse)]).cells) == 2
