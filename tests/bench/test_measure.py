"""One cell: its points, its going on after a stop, and that it comes to the same numbers again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.cases import numbers, toy_suite
from splatopt.bench.cells import Cell, make_cells
from splatopt.bench.measure import RECORD, locked, run_cell
from splatopt.core.checks import InputError
from train.toys import ToyRenderer


@pytest.fixture
def cell(capture, tmp_path) -> Cell:
    return make_cells(toy_suite(capture, train={"steps": 30, "sh_interval": 4}), tmp_path / "out", {})[0]


def stopping_at(call: int) -> ToyRenderer:
    def stop(number, parts):
        if number == call:
            raise KeyboardInterrupt

    return ToyRenderer(stop)


def test_every_point_that_was_asked_for_is_there(cell):
    record = run_cell(cell, renderer=ToyRenderer())
    assert [point["step"] for point in record["points"]] == [0, 1, 5, 10, 30]
    assert all(point["planned"] for point in record["points"])
    assert {point["gaussians"] for point in record["points"]} == {40}
    seconds = [point["seconds"] for point in record["points"]]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert all(point["peak_memory_mb"] > 50 for point in record["points"])
    assert record["status"] == "done"
    evaluation = json.loads((cell.config.folder / "eval.json").read_text())
    assert record["points"][-1]["psnr"] == evaluation["psnr"]
    assert record["points"][0]["ssim"] == evaluation["before"]["ssim"]
    assert record["views"] == evaluation["views"]
    assert record["best_views"] == evaluation["views"]
    assert record["environment"]["renderer"] == "toy"
    assert json.loads((cell.config.folder / RECORD).read_text()) == record


def test_points_by_the_clock_are_not_planned(cell):
    timed = replace(cell, config=cell.config.changed(eval_at=(), eval_at_seconds=(1e-4,)))
    record = run_cell(timed, renderer=ToyRenderer())
    assert [point["planned"] for point in record["points"]] == [True, False, True]


def test_the_same_cell_twice_gives_the_same_numbers(cell, tmp_path):
    again = replace(cell, config=cell.config.changed(out=tmp_path / "again" / "cells" / cell.name))
    first, second = (run_cell(one, renderer=ToyRenderer()) for one in (cell, again))
    assert numbers(first) == numbers(second)
    assert first["views"] == second["views"]


@pytest.mark.parametrize("call", [2, 8, 29])
def test_a_cell_that_was_stopped_goes_on_as_if_nothing_had_happened(cell, tmp_path, call):
    straight = replace(cell, config=cell.config.changed(out=tmp_path / "straight" / "cells" / cell.name))
    often = replace(cell, config=cell.config.changed(checkpoint_every=3))
    with pytest.raises(KeyboardInterrupt):
        run_cell(often, renderer=stopping_at(call))
    record = run_cell(often, renderer=ToyRenderer())
    assert numbers(record) == numbers(run_cell(straight, renderer=ToyRenderer()))
    assert record["resumed"] == 1


def test_points_after_the_last_checkpoint_are_scored_again(cell):
    """The cell is stopped inside step 11, so that its checkpoint is one of long before; step 10 comes again."""
    rare = replace(cell, config=cell.config.changed(checkpoint_every=8))
    with pytest.raises(KeyboardInterrupt):
        run_cell(rare, renderer=stopping_at(11))
    stopped = json.loads((cell.config.folder / RECORD).read_text())
    assert [point["step"] for point in stopped["points"]] == [0, 1, 5, 10]
    record = run_cell(rare, renderer=ToyRenderer())
    assert [point["step"] for point in record["points"]] == [0, 1, 5, 10, 30]
    assert numbers(record)[:4] == numbers(stopped)


def test_a_cell_that_is_done_is_not_run_again(cell):
    record = run_cell(cell, renderer=ToyRenderer())
    silent = ToyRenderer()
    assert run_cell(cell, renderer=silent) == record
    assert silent.calls == 0


def test_a_cell_stopped_before_its_end_was_noted_is_finished_without_a_step(cell):
    record = run_cell(cell, renderer=ToyRenderer())
    path = cell.config.folder / RECORD
    path.write_text(json.dumps(record | {"status": "running", "points": record["points"][:-1]}))
    silent = ToyRenderer()
    assert numbers(run_cell(cell, renderer=silent)) == numbers(record)
    assert silent.calls == 0


def test_a_start_that_was_torn_is_made_again(cell):
    folder = cell.config.folder
    folder.mkdir(parents=True)
    (folder / ".config.json.partial").write_text("{")
    assert run_cell(cell, renderer=ToyRenderer())["status"] == "done"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 40}, "was run with steps = 30 and not 40; nothing is overwritten"),
        ({"eval_at": (1, 2)}, "eval_at"),
        ({"view_batch": 2}, "view_batch = 1 and not 2"),
    ],
)
def test_a_folder_of_another_cell_is_left_alone(cell, change, said):
    run_cell(cell, renderer=ToyRenderer())
    before = (cell.config.folder / RECORD).read_bytes()
    with pytest.raises(InputError, match=said):
        run_cell(replace(cell, config=cell.config.changed(**change)), renderer=ToyRenderer())
    assert (cell.config.folder / RECORD).read_bytes() == before


def test_what_changes_no_number_may_change(cell):
    run_cell(cell, renderer=ToyRenderer())
    other = replace(cell, config=cell.config.changed(threads=2, cache_mebibytes=16, checkpoint_seconds=5.0))
    assert run_cell(other, renderer=ToyRenderer())["status"] == "done"


def test_another_scene_of_the_same_name_is_refused(cell):
    run_cell(cell, renderer=ToyRenderer())
    with pytest.raises(InputError, match="was run with scene"):
        run_cell(replace(cell, source="elsewhere/other"), renderer=ToyRenderer())


def test_a_cell_survives_json(cell):
    back = Cell.from_json(json.loads(json.dumps(cell.to_json())), "here")
    assert cell.differs_from(back) is None
    assert (back.name, back.seed, back.config.scoring.eval_at) == (cell.name, cell.seed, cell.config.scoring.eval_at)
    with pytest.raises(InputError, match="here"):
        Cell.from_json(cell.to_json() | {"seed": "0"}, "here")


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_refused_while_held_and_free_when_its_holder_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        busy = pytest.raises(InputError, match="another process is at work on the thing")
        with busy, locked(tmp_path / "lock", "the thing"):
            pass
        holder.kill()
        with locked(tmp_path / "lock", "the thing", 10.0) as file:
            assert not file.closed
