"""The demo: what it leaves, what it never touches, how it keeps to its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from splatopt.cli import main
from splatopt.commands import demo
from splatopt.commands.demo import DemoOptions, free_folder, run_demo
from splatopt.core.checks import InputError

SMALL = DemoOptions(steps=30, seconds=600, views=8, width=32, height=24, points=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    return run_demo(replace(SMALL, out=out))


def test_it_leaves_everything_it_promises(finished: demo.DemoResult):
    assert {path.name for path in finished.folder.iterdir()} == {
        "capture",
        "checkpoints",
        "config.json",
        "eval.json",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
        "scene.ply",
    }
    assert [path.name for path in finished.folder.parent.iterdir()] == ["demo"], "nothing is left beside it"


def test_metrics_say_what_the_run_says(finished: demo.DemoResult):
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    scores = json.loads((finished.folder / "eval.json").read_text())
    assert metrics["after"] == {"psnr": scores["psnr"], "ssim": scores["ssim"]}
    assert metrics["before"] == {name: scores["before"][name] for name in ("psnr", "ssim")}
    assert metrics["after"]["psnr"] > metrics["before"]["psnr"] + 1
    assert metrics["steps"] == 30
    assert metrics["gaussians"] == 300
    assert metrics["views"] == {"train": 7, "test": 1}
    assert metrics["split"] == "every-8th-test"
    assert metrics["seconds"] > 0


def test_the_page_shows_the_held_out_view(finished: demo.DemoResult):
    page = finished.report.read_text()
    assert "<h3>view_000.png</h3>" in page
    assert page.count('<img src="data:image/png;base64,') == 4
    assert "<h1>A procedural scene, trained on the CPU</h1>" in page


def test_the_run_can_be_opened_again_with_its_capture(finished: demo.DemoResult):
    from splatopt.train.run import open_run

    run = open_run(finished.folder)
    capture = run.open_capture()
    assert capture.path == finished.folder / "capture"
    assert run.evaluate(capture).psnr == finished.run.after.psnr


def test_a_second_demo_touches_nothing_of_the_first(finished: demo.DemoResult):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    second = run_demo(replace(SMALL, out=finished.folder, steps=1), console)
    assert second.folder == finished.folder.with_name("demo-2")
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before
    assert "is kept as it is" in console.export_text()


def test_the_first_free_name_is_taken(tmp_path: Path):
    assert free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").touch()
    assert free_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_a_slow_machine_takes_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    with monkeypatch.context() as patched:
        # Every gradient seems to take one second.
        patched.setattr(demo.time, "perf_counter", lambda: float(next(ticks)))
        result = run_demo(replace(SMALL, out=tmp_path / "demo", seconds=10.1))
    assert result.run.steps == 5
    assert json.loads((result.folder / "config.json").read_text())["steps"] == 5


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match="--steps must be above 0, got 0"):
        DemoOptions(steps=0)


def test_the_command_says_what_to_type_next(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    small = ["--steps", "5", "--views", "8", "--width", "32", "--height", "24", "--points", "100"]
    assert main(["demo", *small, "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    for command in ("view", "render", "export"):
        assert f"{command} {tmp_path / 'demo'}" in said
    assert "train path/to/capture --out runs/mine" in said


def test_bad_input_ends_with_code_2_and_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--renderer", "natve"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("splatopt: no renderer is named 'natve'; did you mean native")
    assert error.count("\n") == 1
    assert not (tmp_path / "demo").exists()
