"""A whole suite: what is kept, what fails, what is refused, and killing it at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench.cases import launch_here, numbers, toy_suite
from splatopt.bench.cells import make_cells
from splatopt.bench.measure import locked, run_cell
from splatopt.bench.results import load_results
from splatopt.bench.runner import Outcome, run_process
from splatopt.bench.session import Start, run_suite
from splatopt.bench.verify import verify
from splatopt.cli import main
from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.runs.folder import write_json


def start(suite, out, launch=launch_here, **more):
    said = []
    results = run_suite(suite, out, Start("splatopt bench toy.toml", **more), say=said.append, launch=launch)
    return results, said


def test_a_suite_leaves_runs_and_results(capture, tmp_path):
    results, said = start(toy_suite(capture), tmp_path / "out")
    assert len(results.done) == 4
    assert results.reference == "adam"
    assert results.sources[0]["command"] == "splatopt bench toy.toml"
    assert load_results(tmp_path / "out") == results
    for cell in results.cells:
        folder = tmp_path / "out" / "cells" / cell["name"]
        assert {"config.json", "metrics.jsonl", "eval.json", "scene.ply", "checkpoints"} <= {
            p.name for p in folder.iterdir()
        }
        assert cell["protocol"]["name"] == "dense"
        assert cell["split"] == "every-8th-test"
    assert any("about" in line for line in said)
    places = [str(tmp_path), str(capture.parent)]
    text = json.dumps([{k: v for k, v in cell.items() if k != "source"} for cell in results.cells])
    assert not any(suite_folder in text for suite_folder in places)


def test_what_another_start_left_stays_in_the_results(capture, tmp_path):
    whole, _ = start(toy_suite(capture), tmp_path / "out")
    part = toy_suite(capture, optimizers=[{"name": "adam"}])
    results, said = start(part, tmp_path / "out")
    assert sorted(cell["name"] for cell in results.cells) == sorted(cell["name"] for cell in whole.cells)
    assert load_results(tmp_path / "out") == results
    assert any("2 cells of earlier starts stay in" in line for line in said)


def test_the_same_suite_twice_gives_the_same_numbers(capture, tmp_path):
    first, second = (start(toy_suite(capture), tmp_path / name)[0] for name in ("one", "two"))
    assert [numbers(cell) for cell in first.cells] == [numbers(cell) for cell in second.cells]
    assert [cell["views"] for cell in first.cells] == [cell["views"] for cell in second.cells]
    assert numbers(first.cells[0]) != numbers(first.cells[1])


def test_what_is_done_is_kept_and_what_is_new_is_run(capture, tmp_path):
    out = tmp_path / "out"
    before, _ = start(toy_suite(capture, seeds=1), out)
    ran = []

    def counting(suite_folder, cell, weights):
        ran.append(cell.name)
        return launch_here(suite_folder, cell, weights)

    results, said = start(toy_suite(capture, seeds=2), out, counting)
    assert ran == ["toy.adam.seed1", "toy.slow.seed1"]
    assert said[0] == "2 of 4 cells are kept from before"
    assert results.cells[0] == before.cells[0]


def breaking(suite_folder, cell, weights):
    """Seed 1 of the slow entry breaks down."""
    if cell.name == "toy.slow.seed1":
        write_json(suite_folder.request(cell).with_suffix(".failed"), {"reason": "it <b>broke</b>"})
        return Outcome(cell, {}, "it <b>broke</b>")
    return launch_here(suite_folder, cell, weights)


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(capture, tmp_path):
    out = tmp_path / "out"
    (out / "state").mkdir(parents=True)
    results, said = start(toy_suite(capture, seeds=3), out, breaking)
    assert [cell["name"] for cell in results.failed] == ["toy.slow.seed1"]
    assert results.failed[0]["failure"] == "it <b>broke</b>"
    assert len(results.done) == 5
    assert any("failed: it <b>broke</b>" in line for line in said)
    again, _ = start(toy_suite(capture, seeds=3), out)
    assert [cell["name"] for cell in again.failed] == ["toy.slow.seed1"]
    mended, said = start(toy_suite(capture, seeds=3), out, retry=True)
    assert not mended.failed
    assert (out / "failed" / "toy.slow.seed1.1").is_dir()
    assert load_results(out) == mended


def test_two_suites_never_write_to_one_folder(capture, tmp_path):
    out = tmp_path / "out"
    with locked(out / "state" / "suite.lock", "x"), pytest.raises(InputError, match="another process is at work"):
        start(toy_suite(capture), out)
    assert not (out / "suite.json").exists()
    assert len(start(toy_suite(capture), out)[0].done) == 4


def test_a_folder_of_something_else_is_left_alone(capture, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no folder of a suite, and nothing in it is overwritten"):
        start(toy_suite(capture), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_suite_that_says_otherwise_than_what_was_run_is_refused(capture, tmp_path):
    out = tmp_path / "out"
    start(toy_suite(capture), out)
    before = (out / "results.json").read_bytes()
    with pytest.raises(InputError, match="steps = 12 and not 13"):
        start(toy_suite(capture, train={"steps": 13, "sh_interval": 4}), out)
    assert (out / "results.json").read_bytes() == before


def test_a_scene_that_cannot_be_read_stops_the_suite_before_anything_is_run(capture, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    suite = toy_suite(capture, scenes=[{"path": str(capture)}, {"path": str(broken)}])
    with pytest.raises(InputError, match="no model found in"):
        start(suite, tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_a_random_start_needs_no_points_and_another_does(capture, tmp_path, monkeypatch):
    from splatopt.bench import runner

    load = runner.open_capture
    monkeypatch.setattr(runner, "open_capture", lambda config: replace(load(config), points=None))
    with pytest.raises(InputError, match="scene 'toy' has no points to start from; give it init = \"random\""):
        start(toy_suite(capture), tmp_path / "out")
    random = toy_suite(capture, scenes=[{"path": str(capture), "init": "random", "random_points": 30}])
    assert len(start(random, tmp_path / "out")[0].done) == 4


def test_fixed_time_measures_once_and_gives_everyone_that_time(capture, tmp_path):
    suite = toy_suite(capture, protocol="fixed-time", train={}, seeds=1, points=[0, 5])
    suite = replace(suite, protocol=replace(suite.protocol, budget_steps=12))
    out = tmp_path / "out"
    results, said = start(suite, out)
    assert "measuring the time of 12 Adam steps" in said[0]
    stored = json.loads((out / "state" / "times.json").read_text())
    (seconds,) = stored["seconds"].values()
    assert seconds > 0
    for cell in results.cells:
        assert cell["config"]["max_seconds"] == seconds
        assert cell["points"][-1]["seconds"] >= seconds
        assert cell["config"]["view_batch"] == 8
        assert any(not point["planned"] for point in cell["points"])
    again, said = start(suite, out)
    assert again.cells == results.cells
    assert not any("measuring" in line for line in said)
    write_json(out / "state" / "times.json", stored | {"machine": "another one"})
    with pytest.raises(InputError, match=r"measured on another machine \('another one'\)"):
        start(suite, out)
    with pytest.raises(InputError, match="cannot run on Ray"):
        start(suite, tmp_path / "ray", ray="local")


def test_a_time_that_could_not_be_measured_is_measured_with_retry(capture, tmp_path):
    suite = toy_suite(capture, protocol="fixed-time", train={}, seeds=1, points=[0, 5])
    suite = replace(suite, protocol=replace(suite.protocol, budget_steps=2))

    def broken(suite_folder, cell, weights):
        write_json(suite_folder.request(cell).with_suffix(".failed"), {"reason": "no luck"})
        return Outcome(cell, {}, "no luck")

    for launch in (broken, launch_here):
        with pytest.raises(InputError, match="the time on scene 'toy' could not be measured: no luck"):
            start(suite, tmp_path / "out", launch)
    assert len(start(suite, tmp_path / "out", retry=True)[0].done) == 2


def test_sparse_holds_out_all_but_its_inputs(capture, tmp_path):
    results, _ = start(toy_suite(capture, protocol="sparse", inputs=[2, 4], seeds=1), tmp_path / "out")
    found = {(cell["setting"], cell["split"], cell["views_trained"], cell["views_tested"]) for cell in results.cells}
    assert found == {("2 views", "sparse-2-of-10", 2, 8), ("4 views", "sparse-4-of-10", 4, 6)}


def test_verify_says_whether_a_cell_comes_to_the_same_numbers(capture, tmp_path):
    out = tmp_path / "out"
    start(toy_suite(capture, seeds=1), out)
    cell = out / "cells" / "toy.adam.seed0"
    found = verify(cell, lambda text: None, launch=launch_here)
    assert found.same
    assert found.points == 5
    assert found.changes == ()
    record = json.loads((cell / "cell.json").read_text())
    record["points"][2]["psnr"] += 1e-12
    record["environment"]["torch"] = "1.0"
    (cell / "cell.json").write_text(json.dumps(record))
    found = verify(cell, lambda text: None, launch=launch_here)
    (difference,) = found.differences
    assert difference.startswith("step 5: psnr was")
    assert found.changes[0].startswith("torch was 1.0 and is ")


def test_verify_wants_a_cell_that_is_done(tmp_path):
    with pytest.raises(InputError, match="is no cell of a suite"):
        verify(tmp_path, print)


needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


def plain_suite(capture: Path):
    """One entry for the real renderer, long enough to be stopped in its middle."""
    train = {"steps": 300, "sh_interval": 100, "checkpoint_every": 40}
    return toy_suite(capture, seeds=1, train=train, optimizers=[{"name": "adam"}])


def words(capture: Path, out: Path) -> list[str]:
    settings = ["sh_interval=100", "checkpoint_every=40"]
    return [
        *(sys.executable, "-m", "splatopt", "bench", "--scenes", str(capture), "--optimizers", "adam"),
        *("--steps", "300", "--threads", "1", "--views", "0", "--out", str(out), "--set", *settings),
    ]


def soon(condition, process=None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        assert process is None or process.poll() is None, "it ended too soon"
        time.sleep(0.002)


def when(condition, act) -> threading.Thread:
    def wait() -> None:
        soon(condition)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
@needs_native
def test_a_suite_that_is_killed_goes_on_and_comes_to_the_same_numbers(capture, tmp_path, capsys):
    """SIGKILL to the suite's process alone: the cell's own ends by itself, and the next start takes over."""
    killed = tmp_path / "killed"
    with subprocess.Popen(words(capture, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        soon(lambda: any(killed.glob("cells/*/checkpoints/step-000[12]*")), process)
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(left) == 1
    assert not psutil.wait_procs(left, timeout=20)[1]
    assert main(words(capture, killed)[3:]) == 0
    (record,) = load_results(killed).cells
    (cell,) = make_cells(read_back(killed, capture), tmp_path / "straight", {})
    assert numbers(record) == numbers(run_cell(cell))
    assert record["resumed"] == 1
    assert 50 < record["points"][-1]["peak_memory_mb"] < 2000


def read_back(out: Path, capture: Path):
    """The suite that the words make."""
    values = json.loads((out / "suite.json").read_text())
    return toy_suite(
        capture,
        seeds=1,
        train=values["common"],
        points=values["points"],
        optimizers=[{"name": "adam"}],
        scenes=[{"path": str(capture)}],
    )


@needs_native
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(capture, tmp_path):
    out = tmp_path / "out"
    thread = when(lambda: any(out.glob("cells/*/checkpoints/*")), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"stopped; what is done is kept, go on with: splatopt bench toy\.toml"):
        start(plain_suite(capture), out, run_process)
    thread.join()
    assert any(out.glob("cells/*/checkpoints/step-*"))
    assert not any(out.glob("state/*.failed"))
    assert not (out / "results.json").exists()


@needs_native
def test_a_cell_whose_process_dies_is_recorded_as_failed(capture, tmp_path):
    out = tmp_path / "out"

    def kill() -> None:
        (child,) = [one for one in psutil.Process().children() if "splatopt.bench.worker" in one.cmdline()]
        child.kill()

    thread = when(lambda: any(out.glob("cells/*/checkpoints/*")), kill)
    results, _ = start(plain_suite(capture), out, run_process)
    thread.join()
    (failed,) = results.failed
    assert failed["failure"] == "its process was ended by SIGKILL, as a system does that runs out of memory"
    assert failed["points"][0]["step"] == 0
    assert load_results(out) == results
