"""Tables of scenes that grow, and a suite whose cells do."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import launch_here, made_cell, made_results, toy_suite
from splatopt.bench.groups import groups
from splatopt.bench.growth_tables import grows, growth_tables
from splatopt.bench.page import page_data
from splatopt.bench.session import Start, run_suite
from splatopt.bench.summaries import table_of_kind, tables


def grown_cell(label: str, seed: int, curve: list[tuple[int, float, int]], **changes: Any) -> dict[str, Any]:
    """A cell with a curve of (step, PSNR, Gaussians), a tenth of a second a step."""
    cell = made_cell(label, seed, [(step, psnr) for step, psnr, _ in curve], **changes)
    for point, (_, _, gaussians) in zip(cell["points"], curve, strict=True):
        point["gaussians"] = gaussians
    return cell


def four_labels() -> list[dict[str, Any]]:
    """Adam and another, each without growth and with: the grown ones end within 5 % of each other."""
    return [
        grown_cell("adam", 0, [(0, 5.0, 100), (100, 20.0, 100)]),
        grown_cell("adam + mcmc", 0, [(0, 5.0, 100), (50, 15.0, 150), (100, 25.0, 200)]),
        grown_cell("adam + mcmc", 1, [(0, 5.0, 100), (50, 17.0, 150), (100, 27.0, 202)]),
        grown_cell("tr2", 0, [(0, 5.0, 100), (60, 21.0, 100)]),
        grown_cell("tr2 + gain", 0, [(0, 5.0, 100), (50, 24.0, 205), (60, 26.0, 205)]),
        grown_cell("tr2 + adc", 0, [(0, 5.0, 100), (60, 24.0, 300)]),
    ]


def test_gaussians_have_a_table_where_they_change():
    (group,) = groups(made_results(*four_labels(), reference="adam + mcmc"))
    by_title = {table.title: table for table in tables(group)}
    assert by_title["Gaussians (dense)"].texts == [
        ["adam", "100"],
        ["adam + mcmc", "201 ± 1"],
        ["tr2", "100"],
        ["tr2 + gain", "205"],
        ["tr2 + adc", "300"],
    ]
    assert table_of_kind(group, "gaussians").texts == by_title["Gaussians (dense)"].texts
    assert not any(number.best for _, row in by_title["Gaussians (dense)"].rows for number in row)


def test_at_equal_seconds_is_at_parts_of_the_references():
    (group,) = groups(made_results(*four_labels(), reference="adam + mcmc"))
    table = next(table for table in tables(group) if table.title == "toy, at equal seconds with adam + mcmc (dense)")
    assert list(table.columns) == ["a quarter (2.5 s)", "half (5.0 s)", "all (10.0 s)"]
    rows = {name: numbers for name, *numbers in table.texts}
    assert rows["adam + mcmc"] == ["10.50 ± 0.71", "16.00 ± 1.41", "26.00 ± 1.41"]
    assert rows["tr2 + gain"] == ["14.50", "24.00", "26.00"]  # it ended after 6 seconds and keeps its last
    bold = [[number.best for number in numbers] for _, numbers in table.rows]
    assert bold == [[False] * 3, [False, False, True], [False] * 3, [True] * 3, [False] * 3]


def test_at_equal_gaussians_compares_entries_that_end_alike():
    (group,) = groups(made_results(*four_labels(), reference="adam"))
    table = next(table for table in tables(group) if table.title == "toy, at equal Gaussians (dense)")
    assert list(table.columns) == ["100 Gaussians", "203 Gaussians"]
    assert table.texts == [
        ["adam", "20.00", "–"],
        ["adam + mcmc", "–", "26.00 ± 1.41"],
        ["tr2", "21.00", "–"],
        ["tr2 + gain", "–", "26.00"],
    ]


@pytest.mark.parametrize(
    ("ends", "changes"),
    [((100, 100), False), ((100, 101), True)],
)
def test_whether_cells_grow(ends, changes):
    cells = [grown_cell(label, 0, [(0, 5.0, end), (9, 6.0, end)]) for label, end in zip("ab", ends, strict=True)]
    assert grows(cells) == changes
    assert grows([grown_cell("a", 0, [(0, 5.0, 100), (5, 5.5, 120), (9, 6.0, 100)])])
    elsewhere = grown_cell("a", 0, [(0, 5.0, 999)], scene="other")
    assert grows([*cells, elsewhere]) == changes


def test_scenes_of_a_fixed_number_have_none_of_these_tables():
    made = made_results(made_cell("a", 0, [(0, 5.0), (9, 6.0)]), made_cell("b", 0, [(0, 5.0), (9, 7.0)]), reference="a")
    (group,) = groups(made)
    assert growth_tables(group, "toy") == []
    assert not any("Gaussians (" in table.title for table in tables(group))


def test_the_page_has_the_number_of_gaussians_at_every_point():
    results = made_results(*four_labels(), reference="adam")
    data = page_data(results, groups(results), [])
    runs = data["groups"][0]["scenes"][0]["runs"]
    assert runs[1]["gaussians"] == [100, 150, 200]


def test_cells_of_a_suite_grow(tmp_path, capture):
    """MCMC adds 5 % at each of its edits, here after steps 4 and 8, and is at its bound after the second."""
    densities = ["none", {"name": "mcmc", "options": {"start": 2, "until": 12, "every": 4, "horizon": 0}}]
    optimizers = [{"name": "adam"}]
    suite = toy_suite(
        capture,
        seeds=1,
        optimizers=optimizers,
        densities=densities,
        scenes=[{"path": str(capture), "name": "toy", "init": "random", "random_points": 40, "max_gaussians": 43}],
    )
    results = run_suite(suite, tmp_path / "out", Start("splatopt bench"), say=lambda line: None, launch=launch_here)
    assert results.failed == []
    counts = {cell["label"]: [point["gaussians"] for point in cell["points"]] for cell in results.cells}
    assert counts == {"adam": [40] * 5, "adam + mcmc": [40, 40, 42, 43, 43]}
    (group,) = groups(results)
    assert table_of_kind(group, "gaussians").texts == [["adam", "40"], ["adam + mcmc", "43"]]
