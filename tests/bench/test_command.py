"""``splatopt bench`` as it is typed: what it leaves, what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cases import launch_here, made_cell, made_results, two_labels
from splatopt.bench import session
from splatopt.bench.lpips_scores import measure_lpips
from splatopt.bench.measure import run_cell
from splatopt.bench.results import load_results, save_results
from splatopt.cli import main
from splatopt.core import native
from splatopt.metrics import lpips as lpips_module
from splatopt.metrics.lpips import Lpips
from train.toys import make_toy_capture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "optim.md"


@pytest.fixture
def here(monkeypatch):
    """Cells run in this process, drawn by the toy renderer."""
    monkeypatch.setattr(session, "run_suite", with_launch(session.run_suite))


def with_launch(run):
    return lambda *words, **named: run(*words, **named, launch=launch_here)


def words(capture: Path, out: Path, *more: str) -> list[str]:
    return ["bench", "--scenes", str(capture), "--optimizers", "adam", "--steps", "3", "--out", str(out), *more]


def test_words_alone_make_a_suite(here, capture, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--seeds", "2", "--views", "0", "--set", "sh_degree=1", "view-choice=farthest", "init=random"]
    assert main(words(capture, out, *more)) == 0
    results = load_results(out)
    assert len(results.done) == 2
    config = results.cells[0]["config"]
    assert (config["steps"], config["sh_degree"], config["view_choice"], config["init"]) == (
        3,
        1,
        "farthest",
        "random",
    )
    command = results.sources[0]["command"]
    assert command.startswith(f"splatopt bench --out {out} --scenes {capture} --optimizers adam --seeds 2 --steps 3")
    captured = capsys.readouterr()
    for name in ("results.json", "tables.md", "tables.tex", "tables.csv", "report.html"):
        assert f"written: {out / name}" in captured.out.replace("\n", " ").replace("written", "\nwritten").replace(
            "  ", " "
        )
        assert (out / name).is_file()
    assert "1/2  toy, adam, seed 0" in captured.err


@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
def test_pictures_of_held_out_views_are_in_the_page(capture, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "run_process", None)
    monkeypatch.setattr(session, "run_suite", with_native(session.run_suite))
    assert main(words(capture, tmp_path / "out", "--threads", "1", "--views", "1")) == 0
    index = json.loads((tmp_path / "out" / "pictures" / "index.json").read_text())["pictures"]
    assert [one["label"] for one in index] == ["photograph", "adam"]
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/webp") == 2
    assert main(["bench", "report", str(tmp_path / "out")]) == 0
    assert main(["bench", "report", str(tmp_path / "out"), "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "report.html").read_text().count("data:image/webp") == 2


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
def test_the_instruction_set_reaches_the_workers_and_what_is_started_again(capture, tmp_path, capsys):
    out = tmp_path / "out"
    forced = words(capture, out, "--threads", "1", "--views", "0", "--instructions", "portable")
    assert main(forced) == 0
    (record,) = load_results(out).cells
    assert record["environment"]["instructions"] == "portable"
    (cell,) = (out / "cells").iterdir()
    assert json.loads((cell / "config.json").read_text())["instructions"] == "portable"
    assert "--instructions portable" in load_results(out).sources[0]["command"]
    assert main(forced) == 0
    assert main(["bench", "verify", str(cell)]) == 0
    capsys.readouterr()
    main(["bench", "verify", str(cell), "--instructions", native.find_instructions()])
    said = f"changed since: instructions was portable and is {native.find_instructions()}"
    assert said in capsys.readouterr().out or native.find_instructions() == "portable"
    assert main(words(capture, out, "--threads", "1", "--views", "0")) == 2
    error = capsys.readouterr().err
    assert "instructions = " in error
    assert "'auto'" in error
    assert "'portable'" in error
    assert main(words(capture, tmp_path / "other", "--instructions", "mmx")) == 2
    assert "--instructions must be auto, avx512, avx2, portable, got 'mmx'" in " ".join(capsys.readouterr().err.split())


def with_native(run):
    from splatopt.bench.runner import Outcome

    return lambda *given, **named: run(
        *given, **named, launch=lambda suite_folder, cell, weights: Outcome(cell, run_cell(cell), None)
    )


def test_a_suites_file_is_run_where_it_says(here, capture, tmp_path, monkeypatch, capsys):
    suite = tmp_path / "mine.toml"
    suite.write_text('[train]\nsteps = 2\n[[scenes]]\npath = "gone/toy"\n[[optimizers]]\nname = "adam"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "mine.toml", "--views", "0"]) == 2
    assert "give the folder that holds the scenes with --data" in " ".join(capsys.readouterr().err.split())
    assert main(["bench", "mine.toml", "--views", "0", "--data", str(capture.parent)]) == 0
    assert (tmp_path / "runs" / "bench-mine" / "results.json").is_file()
    assert load_results(tmp_path / "runs" / "bench-mine").title == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give a suite's file, or --scenes and --optimizers"),
        (["--scenes", "x"], "give a suite's file, or --optimizers"),
        (["suite.toml", "--steps", "3"], "--steps cannot stand beside a suite's file"),
        (["suite.toml"], "the suite suite.toml cannot be read"),
        (["--scenes", "x", "--optimizers", "adm"], "no optimizer is named 'adm'; did you mean adam"),
        (["--scenes", "x", "--optimizers", "adam", "--set", "step"], "--set wants NAME=VALUE, got 'step'"),
        (
            ["--scenes", "x", "--optimizers", "adam", "--set", "stps=3"],
            "there is no setting 'stps'; did you mean steps",
        ),
        (["--scenes", "x", "--optimizers", "adam"], "scene 'x' is not at x"),
        (["--scenes", "x", "--optimizers", "adam", "--views", "-1"], "--views must be at least 0"),
        (["--scenes", "x", "--optimizers", "adam", "--protocol", "dens"], "did you mean dense"),
        (["report", "nothing"], "the results nothing cannot be read"),
        (["merge", "one", "-o", "two"], "merge wants at least two results, got 1"),
        (["verify", "nothing"], "nothing is no cell of a suite"),
        (["table", "nothing.md"], "nothing.md cannot be read"),
    ],
)
def test_bad_input_is_a_sentence_and_code_2(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *given]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [[], ["report"], ["merge"], ["verify"], ["table"]])
def test_each_form_explains_itself(form, capsys):
    assert main(["bench", *form, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: splatopt bench{''.join(f' {word}' for word in form)} " in shown


def test_help_of_bench_names_its_other_forms(capsys):
    main(["bench", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words_ in ("splatopt bench report OUT", "merge A B -o OUT", "verify RUN", "table PAGE", "--ray", "--retry"):
        assert words_ in shown


def test_a_failing_cell_ends_in_code_1(here, capture, tmp_path, monkeypatch, capsys):
    from bench import cases

    def fail(cell, **more):
        raise cases.InputError("no luck")

    monkeypatch.setattr(cases, "run_cell", fail)
    assert main(words(capture, tmp_path / "out", "--views", "0")) == 1
    assert "cell toy.adam.seed0 failed: no luck" in capsys.readouterr().err
    assert "no luck" in (tmp_path / "out" / "report.html").read_text()


def test_results_are_merged_into_a_new_folder(tmp_path, capsys):
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    save_results(one / "results.json", two_labels())
    save_results(two / "results.json", made_results(made_cell("third", 0, [(0, 1.0), (100, 30.0)]), title="Two"))
    assert main(["bench", "merge", str(one), str(two / "results.json"), "-o", str(out)]) == 0
    assert [cell["label"] for cell in load_results(out).cells] == ["first", "first", "second", "second", "third"]
    assert "third" in (out / "tables.md").read_text()
    assert main(["bench", "merge", str(one), str(two), "-o", str(out)]) == 2
    assert "holds results already, and nothing is overwritten" in " ".join(capsys.readouterr().err.split())


def test_a_report_can_be_compared_with_another_entry(tmp_path, capsys):
    save_results(tmp_path / "results.json", two_labels())
    assert main(["bench", "report", str(tmp_path), "--reference", "second", "--out", str(tmp_path / "out")]) == 0
    assert "Steps to reach second" in (tmp_path / "out" / "tables.md").read_text()
    assert main(["bench", "report", str(tmp_path), "--reference", "third"]) == 2


def test_verify_ends_in_0_or_1(here, capture, tmp_path, monkeypatch, capsys):
    from splatopt.bench import verify as verify_module

    monkeypatch.setattr(verify_module, "verify", with_launch(verify_module.verify))
    assert main(words(capture, tmp_path / "out", "--views", "0")) == 0
    cell = tmp_path / "out" / "cells" / "toy.adam.seed0"
    assert main(["bench", "verify", str(cell)]) == 0
    assert "the same to the bit: 3 scored points and the trained scene" in capsys.readouterr().out
    (cell / "scene.ply").write_bytes(b"another")
    assert main(["bench", "verify", str(cell)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "differs: the trained scenes differ" in shown
    assert "this is a fault of splatopt" in shown


def test_the_tables_of_a_page_are_checked_and_refreshed(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench table: results.json psnr -->\n<!-- end of table -->\n")
    save_results(tmp_path / "results.json", two_labels())
    assert main(["bench", "table", str(page), "--check"]) == 1
    assert "are stale; run: splatopt bench table" in " ".join(capsys.readouterr().err.split())
    assert main(["bench", "table", str(page)]) == 0
    assert "| second | **23.50 ± 0.71** |" in page.read_text()
    assert main(["bench", "table", str(page), "--check"]) == 0


def test_the_tables_of_the_page_of_results_are_up_to_date():
    assert main(["bench", "table", str(PAGE), "--check"]) == 0


@pytest.mark.skipif(not native.available(), reason="the native module is not installed")
def test_lpips_is_measured_where_its_weights_are_and_else_said_to_be_left_out(capture, tmp_path, monkeypatch):
    from bench.cases import toy_suite
    from splatopt.bench import lpips_scores
    from splatopt.bench.cells import make_cells

    class Distance(Lpips):
        def __init__(self):
            pass

        def __call__(self, image, target):
            assert 0 <= float(target.min()) <= float(target.max()) <= 1
            return float((image - target).abs().mean())

    small = make_cells(toy_suite(capture), tmp_path / "small", {})[0]
    cell = make_cells(toy_suite(make_toy_capture(tmp_path / "toy", width=48, height=36)), tmp_path / "out", {})[0]
    found = {"vgg": "LPIPS vgg is left out: why", "alex": Distance()}
    monkeypatch.setattr(lpips_scores, "find_lpips", lambda network, folder: found[network])
    assert run_cell(small, finish=measure_lpips)["lpips_left_out"][0].startswith("LPIPS is left out: its networks need")
    record = run_cell(cell, finish=measure_lpips)
    assert record["lpips_left_out"] == ["LPIPS vgg is left out: why"]
    assert record["lpips_range"] == lpips_module.INPUT_RANGE
    assert len(record["lpips_views"]["alex"]) == 2
    assert record["lpips"] == {"alex": pytest.approx(sum(record["lpips_views"]["alex"]) / 2)}
    assert 0 < record["lpips"]["alex"] < 1
