"""Tables: the numbers in them, which is best, and that no text in them can do harm."""

from __future__ import annotations

import csv
import io

import pytest

from bench.cases import HOSTILE, made_cell, made_results, two_labels
from splatopt.bench.groups import groups
from splatopt.bench.output import write_output
from splatopt.bench.page_tables import refreshed
from splatopt.bench.results import save_results
from splatopt.bench.statistics import paired_bootstrap
from splatopt.bench.summaries import table_of_kind, tables, view_tables
from splatopt.bench.tables import Number, Table, bold_best, to_csv, to_html, to_latex, to_markdown
from splatopt.core.checks import InputError


def by_title(results, **more) -> dict[str, Table]:
    return {table.title: table for group in groups(results, **more) for table in tables(group)}


def row(table: Table, name: str) -> dict[str, Number | None]:
    return dict(zip(table.columns, dict(table.rows)[name], strict=True))


def test_means_and_deviations_over_seeds():
    table = by_title(two_labels())["PSNR, dB (dense)"]
    assert table.columns == ["toy"]
    assert table.texts == [["first", "21.00 ± 1.41"], ["second", "23.50 ± 0.71"]]
    assert [numbers[0].best for _, numbers in table.rows] == [False, True]


def test_a_seed_that_failed_is_told_and_never_the_best():
    failed = made_cell("second", 2, [], status="failed", failure="no memory", environment={})
    table = by_title(made_results(*two_labels().cells, failed))["PSNR, dB (dense)"]
    assert table.texts == [["first", "21.00 ± 1.41"], ["second", "23.50 ± 0.71 (2 of 3)"]]
    assert not any(numbers[0].best for _, numbers in table.rows)


def test_everything_about_a_scene():
    table = by_title(two_labels())["toy (dense)"]
    second = row(table, "second")
    assert second["best PSNR, dB"].mean == pytest.approx((24 + 26) / 2)
    assert second["at step"].mean == pytest.approx(55)
    assert second["worst drop after, dB"].mean == pytest.approx(1.5)
    assert second["area to 100, dB"].mean == pytest.approx(
        ((8 + 20) / 4 + (20 + 24) / 4 + (8 + 26) / 4 + (26 + 23) / 4) / 2
    )
    assert second["seconds"].mean == 10
    assert second["ms a step"].mean == pytest.approx(100)
    assert second["peak memory, MB"].text == "300"
    assert row(table, "first")["worst drop after, dB"].best
    assert not second["steps"].best


def test_the_scores_at_equal_seconds():
    table = by_title(two_labels())["toy, at equal seconds (dense)"]
    assert table.columns == ["1 s", "2 s", "5 s", "10 s"]
    second = row(table, "second")
    assert second["1 s"].mean == pytest.approx((20 + 26) / 2), "the points of step 10"
    assert second["2 s"].mean == pytest.approx((20 + 26) / 2 + (4 - 3) / 2 * 10 / 90)
    assert second["10 s"].mean == pytest.approx((24 + 23) / 2)
    assert second["10 s"].best


def test_the_scores_at_equal_steps():
    table = by_title(two_labels())["toy, at equal steps (dense)"]
    assert table.columns == ["1", "10", "50", "100"]
    second = row(table, "second")
    assert second["10"].mean == pytest.approx((20 + 26) / 2)
    assert second["100"].mean == pytest.approx((24 + 23) / 2)
    assert second["100"].best


def test_the_way_to_the_references_quality():
    found = by_title(two_labels())
    steps = found["Steps to reach first (dense)"]
    assert steps.columns == ["toy (21.00 dB)"]
    first_seed = 10 + 90 * (21 - 20) / 4
    second_seed = 1 + 9 * (21 - 8) / 18
    assert row(steps, "second")["toy (21.00 dB)"].mean == pytest.approx((first_seed + second_seed) / 2)
    assert row(steps, "first (whole run)")["toy (21.00 dB)"].text == "100"
    seconds = row(found["Seconds to reach first (dense)"], "second")["toy (21.00 dB)"]
    assert seconds.mean == pytest.approx((first_seed + second_seed) / 20)
    assert seconds.best


def test_some_seeds_that_never_got_there_are_counted_and_never_best():
    other = by_title(two_labels(), reference="second")["Steps to reach second (dense)"]
    (number,) = dict(other.rows)["first"]
    assert number.text == "not reached (0 of 2)"
    assert not number.best
    higher = made_results(
        *two_labels().cells[:2],
        made_cell("third", 0, [(0, 1.0), (4, 30.0)]),
        made_cell("third", 1, [(0, 1.0), (4, 2.0)]),
    )
    (number,) = dict(by_title(higher)["Steps to reach first (dense)"].rows)["third"]
    assert number.text == "3 (1 of 2)"
    assert not number.best


def test_the_comparison_is_paired_by_scene_and_seed():
    table = by_title(two_labels())["PSNR against first (dense)"]
    expected = paired_bootstrap([24 - 20.0, 23 - 22.0])
    ((name, numbers),) = table.rows
    assert name == "second"
    assert [number.mean for number in numbers] == [expected.difference, expected.low, expected.high, expected.p, 2]


def test_every_view_has_its_row():
    views = [
        [{"name": "a", "psnr": 10.0 + seed, "ssim": 0.5}, {"name": "b", "psnr": 20.0, "ssim": 0.5}] for seed in (0, 1)
    ]
    cells = [cell | {"views": views[cell["seed"]]} for cell in two_labels().cells]
    (group,) = groups(made_results(*cells))
    (table,) = view_tables(group)
    assert table.texts == [["a", "10.50 ± 0.71", "10.50 ± 0.71"], ["b", "20.00", "20.00"]]
    assert table.columns == ["first", "second"]
    assert view_tables(groups(two_labels())[0]) == []


def test_scenes_have_a_mean_only_where_all_are_there():
    cells = [
        made_cell("first", 0, [(0, 1.0), (5, 10.0)]),
        made_cell("first", 0, [(0, 1.0), (5, 20.0)], scene="other", name="b"),
        made_cell("second", 0, [(0, 1.0), (5, 12.0)]),
    ]
    table = by_title(made_results(*cells))["PSNR, dB (dense)"]
    assert table.columns == ["toy", "other", "mean"]
    assert table.texts == [["first", "10.00", "20.00", "15.00"], ["second", "12.00", "–", "–"]]


def test_protocols_and_settings_are_never_mixed():
    cells = [
        made_cell("first", 0, [(0, 1.0), (5, 10.0)]),
        made_cell("first", 0, [(0, 1.0), (5, 20.0)], setting="3 views", protocol={"name": "sparse"}),
    ]
    found = by_title(made_results(*cells))
    assert found["PSNR, dB (dense)"].texts == [["first", "10.00"]]
    assert found["PSNR, dB (sparse, 3 views)"].texts == [["first", "20.00"]]


def test_lpips_is_a_table_where_it_was_measured():
    assert not any("LPIPS" in title for title in by_title(two_labels()))
    cells = [cell | {"lpips": {"vgg": 0.1 + 0.1 * number}} for number, cell in enumerate(two_labels().cells)]
    table = by_title(made_results(*cells))["LPIPS vgg (dense)"]
    assert [numbers[0].best for _, numbers in table.rows] == [True, False]


def test_numbers_that_read_the_same_are_best_together_and_all_equal_is_no_best():
    rows = [("a", [Number(1.234, ".2f"), Number(5.0, ".1f")]), ("b", [Number(1.232, ".2f"), Number(5.0, ".1f")])]
    rows.append(("c", [Number(1.0, ".2f"), None]))
    bold_best(rows, [1, 1])
    assert [[bool(one and one.best) for one in numbers] for _, numbers in rows] == [
        [True, False],
        [True, False],
        [False, False],
    ]


def hostile() -> Table:
    return Table(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], [(HOSTILE, [Number(1.5, ".1f", 0.25, best=True)])])


def test_markdown_shows_text_as_it_stands():
    text = to_markdown(hostile())
    assert "<script>" not in text
    assert "\\<script\\>" in text
    line = next(line for line in text.splitlines() if "1.5" in line)
    assert line.replace("\\|", "").count("|") == 3
    assert "**1.5 ± 0.2**" in line
    assert to_markdown(Table("t", "n", "h", [], [("lego_200", [])])).count("lego_200") == 1


def test_latex_sets_text_as_it_stands():
    text = to_latex(hostile())
    assert r"\textbackslash{}\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}" in text
    assert r"\textbf{1.5 $\pm$ 0.2}" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_html_shows_text_as_it_stands():
    text = to_html(hostile())
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == 5
    assert "<td><b>1.5 ± 0.2</b></td>" in text


def test_csv_keeps_every_bit_and_no_formula():
    table = Table("t", "", "", ["=1+1"], [("@x", [Number(1 / 3, ".1f", 0.25, 2, 3)])])
    (line,) = list(csv.DictReader(io.StringIO(to_csv([table]))))
    assert float(line["mean"]) == 1 / 3
    assert (line["row"], line["column"], line["count"], line["of"]) == ("'@x", "'=1+1", "2", "3")


def test_all_forms_are_written(tmp_path):
    failed = made_cell("third", 0, [], status="failed", failure="no <memory>", environment={})
    results = made_results(*two_labels().cells, failed)
    paths = write_output(results, tmp_path / "out", keep=True)
    names = ["results.json", "tables.md", "tables.tex", "tables.csv", "report.html"]
    assert [path.name for path in paths] == names
    markdown = (tmp_path / "out" / "tables.md").read_text()
    assert "| second | **23.50 ± 0.71** |" in markdown
    assert "no <memory>" not in markdown
    assert "toy.third.seed0" in markdown
    with pytest.raises(InputError, match="no entry is labelled 'fourth'"):
        write_output(results, tmp_path / "other", reference="fourth")
    assert not (tmp_path / "other").exists()


PAGE = """# Title

<!-- bench table: results/results.json psnr seconds-to-reach -->
old
<!-- end of table -->

after
"""


def test_a_page_is_refreshed_between_its_comments(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    save_results(tmp_path / "results" / "results.json", two_labels())
    text, wanted = refreshed(page)
    assert text == PAGE
    assert "old" not in wanted
    assert "| second | **23.50 ± 0.71** |" in wanted
    assert "Seconds to reach first" in wanted
    assert wanted.endswith("<!-- end of table -->\n\nafter\n")
    page.write_text(wanted)
    assert refreshed(page) == (wanted, wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "has no place for a table"),
        (PAGE.replace("psnr", "psrn"), "there is no kind of table 'psrn'; did you mean psnr"),
        (PAGE.replace("results/", "elsewhere/"), "cannot be read"),
    ],
)
def test_a_page_that_names_what_is_not_there(tmp_path, text, said):
    (tmp_path / "page.md").write_text(text)
    save_results(tmp_path / "results" / "results.json", two_labels())
    with pytest.raises(InputError, match=said):
        refreshed(tmp_path / "page.md")


@pytest.mark.parametrize("kind", ["psnr", "ssim", "lpips-vgg", "lpips-alex", "seconds", "memory", "significance"])
def test_every_kind_of_table_can_be_asked_for(kind):
    (group,) = groups(two_labels())
    assert table_of_kind(group, kind).title.endswith("(dense)")
