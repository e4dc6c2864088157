"""Pruning a run: rounds, budgets, what is kept, and a new run that is whole after each round."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from splatopt import PruneOptions, TrainConfig, open_run, prune
from splatopt.core.checkpoint import load_checkpoint
from splatopt.core.checks import InputError
from splatopt.density.removal import Criterion, cheapest, removal_costs
from splatopt.runs.events import Warned
from splatopt.runs.folder import RunFolder
from splatopt.runs.resumable import NonFiniteError
from splatopt.train import repair as repair_module
from splatopt.train.loop import train
from splatopt.train.pruning import PruneRound, RoundPlan
from splatopt.train.run import Run
from train.toys import lines, make_toy_capture

POINTS, STEPS = 120, 40


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy", width=32, height=24, points=POINTS)


@pytest.fixture(scope="module")
def trained(capture, tmp_path_factory) -> Path:
    """A finished run of two stages."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig.of(capture, stages=f"adam:10,block-gn:{STEPS - 10}", out=out, seed=3))
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rounds_of(folder: Path) -> list[dict]:
    return json.loads((folder / "pruning.json").read_text())["rounds"]


# ---------------------------------------------------------------------- rounds


@pytest.mark.parametrize(("count", "to"), [(40_000, 20_000), (11, 10), (7, 1), (1000, 3)])
def test_rounds_towards_a_number_take_one_share_and_end_there(count, to):
    plan = RoundPlan.of(PruneOptions(to=to, round_share=0.15), count)
    left = [count]
    while (target := plan.target(left[-1])) is not None:
        left.append(target)
    assert left[-1] == to
    assert all(after < before for before, after in pairwise(left))
    assert all(after >= math.floor(0.85 * before) for before, after in pairwise(left))
    assert len(left) - 1 <= math.ceil(math.log(to / count) / math.log(0.85))


def test_rounds_within_a_budget_become_smaller_where_it_breaks():
    plan = RoundPlan.of(PruneOptions(max_loss=0.1, round_share=0.2), 100)
    assert plan.target(100) == 80
    plan.halve(100)
    assert plan.target(100) == 90
    plan.halve(100)
    assert plan.target(100) == 95
    plan.halve(100)
    assert plan.target(100) == 97
    plan.halve(100)
    assert plan.target(100) is None
    alone = RoundPlan.of(PruneOptions(max_loss=0.1), 2)
    assert alone.target(2) == 1
    alone.halve(2)  # half of one Gaussian is not tried again
    assert alone.target(2) is None
    assert alone.target(1) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "takes either --to N or --max-loss dB, got neither"),
        ({"to": 5, "max_loss": 1.0}, "takes either --to N or --max-loss dB, got both"),
        ({"to": 0}, "--to must be at least 1, got 0"),
        ({"max_loss": -0.5}, "--max-loss must be at least 0, got -0.5"),
        ({"max_loss": math.nan}, "--max-loss must be at least 0, got nan"),
        ({"to": 5, "round_share": 0.0}, "--round-share must be at least 0.001"),
        ({"to": 5, "repair": -1}, "--repair must be at least 0"),
        ({"to": 5, "late": 1.5}, "--late must be at most 1, got 1.5"),
        ({"to": 5, "average": -1.0}, "--average must be at least 0, got -1.0"),
        ({"to": 5, "optimizer": "blok-gn"}, "did you mean block-gn"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(settings, said):
    with pytest.raises(InputError, match=said):
        PruneOptions(**settings)


# ---------------------------------------------------------------------- a new run


def test_a_new_run_is_left_and_the_old_one_is_as_it_was(trained, tmp_path):
    before, told = files_of(trained), []
    run = open_run(trained)
    scene = {name: value.clone() for name, value in run.trained.tensors.items()}
    result = prune(run, PruneOptions(to=60, repair=6), tmp_path / "new", tell=told.append)
    assert files_of(trained) == before
    assert all(torch.equal(value, scene[name]) for name, value in run.trained.tensors.items())
    assert [one.gaussians for one in result.rounds] == [120, 104, 90, 78, 67, 60]
    assert tuple(told) == result.rounds
    assert result.left == result.rounds[-1]
    assert result.left.steps == STEPS + 5 * 6
    assert all(one.kept and one.seconds > 0 for one in result.rounds[1:])

    new = open_run(tmp_path / "new")
    assert (len(new.trained), new.steps, new.warnings) == (60, STEPS + 30, ())
    assert new.seconds > run.seconds
    scores = new.evaluate(new.open_capture())
    assert scores == result.scores
    assert (scores.psnr, scores.ssim) == (result.left.psnr, result.left.ssim)
    record = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert record["gaussians"] == 60
    assert record["before"] == json.loads((trained / "eval.json").read_text())["before"]
    assert new.config.schedule.stages == f"adam:10,block-gn:{STEPS - 10},block-gn:30"
    log = lines(tmp_path / "new")
    assert log[: len(lines(trained))] == lines(trained)
    assert [(line["step"], line["gaussians"]) for line in log[-2:]] == [(STEPS + 24, 67), (STEPS + 30, 60)]
    curve = json.loads((tmp_path / "new" / "pruning.json").read_text())
    asked = {
        "to": 60,
        "by": "cost",
        "round_share": 0.15,
        "repair": 6,
        "optimizer": "block-gn",
        "late": 0.2,
        "average": 20.0,
    }
    assert (curve["options"], curve["subset"], curve["run"]) == (asked, "test", str(trained))
    assert [PruneRound(**one) for one in curve["rounds"]] == list(result.rounds)


def test_what_goes_first_is_what_costs_least(trained, tmp_path):
    run = open_run(trained)
    capture = run.open_capture()
    costs = removal_costs(run.objective(capture), [(view,) for view in capture.split.train])
    result = prune(run, PruneOptions(to=100, repair=0, round_share=0.9), tmp_path / "new", capture=capture)
    assert len(result.rounds) == 2
    expected = run.trained.map(lambda tensor: tensor[~cheapest(costs, 20)])
    left = open_run(result.folder).trained
    assert all(torch.equal(value, expected.tensors[name]) for name, value in left.tensors.items())
    opaque = prune(run, PruneOptions(to=100, repair=0, round_share=0.9, by=Criterion.OPACITY), tmp_path / "opaque")
    faintest = run.trained.logit_opacities.sort().values[:20]
    assert not torch.isin(open_run(opaque.folder).trained.logit_opacities, faintest).any()
    pup = prune(run, PruneOptions(to=100, repair=0, round_share=0.9, by=Criterion.PUP), tmp_path / "pup")
    assert result.left.train_psnr > max(opaque.left.train_psnr, pup.left.train_psnr)


def test_the_same_run_is_pruned_to_the_same_bits(trained, tmp_path):
    options = PruneOptions(to=90, repair=5)
    left = [open_run(prune(open_run(trained), options, tmp_path / name).folder).trained for name in ("a", "b")]
    assert all(torch.equal(left[0].tensors[name], value) for name, value in left[1].tensors.items())


def test_a_budget_is_kept_and_a_round_that_breaks_it_is_undone(trained, tmp_path):
    run = open_run(trained)
    result = prune(run, PruneOptions(max_loss=0.4, repair=2, round_share=0.3), tmp_path / "new")
    first, *others = result.rounds
    assert all(one.kept == (first.train_psnr - one.train_psnr <= 0.4) for one in others)
    assert not all(one.kept for one in others)
    assert result.left.gaussians < first.gaussians
    new = open_run(result.folder)
    assert len(new.trained) == result.left.gaussians == min(one.gaussians for one in result.rounds if one.kept)
    assert new.steps == result.left.steps
    assert lines(result.folder)[-1]["step"] == result.left.steps  # of what was undone there is no line
    assert [one["kept"] for one in rounds_of(result.folder)] == [one.kept for one in result.rounds]
    scores = new.evaluate(new.open_capture())
    assert scores.psnr == result.left.psnr


def test_a_round_that_was_undone_leaves_no_trace_in_the_next(trained, tmp_path, monkeypatch):
    """From the same state, the smaller round is that of a plan which began with it."""
    allowed = iter([False, True, False, False, False, False])
    monkeypatch.setattr(PruneOptions, "allows", lambda self, first, one: next(allowed))
    undone = prune(open_run(trained), PruneOptions(max_loss=1.0, repair=4, round_share=0.2), tmp_path / "a")
    allowed = iter([True, False, False, False, False])
    direct = prune(open_run(trained), PruneOptions(max_loss=1.0, repair=4, round_share=0.1), tmp_path / "b")
    assert undone.rounds[1].kept is False
    assert undone.left.gaussians == direct.left.gaussians == 108
    one, other = (open_run(result.folder).trained.tensors for result in (undone, direct))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_the_new_run_can_be_trained_on(trained, capture, tmp_path):
    out = prune(open_run(trained), PruneOptions(to=80, repair=5), tmp_path / "new").folder
    left = open_run(out)
    stages = f"{left.config.schedule.stages},adam:5"
    result = train(TrainConfig.of(capture, stages=stages, out=out, resume=True))
    assert (len(result.cloud), result.steps) == (80, left.steps + 5)
    state = load_checkpoint(RunFolder(out).checkpoints / f"step-{left.steps:06d}")
    assert len(state.tensors["optimizer.momentum.means"]) == 80


@pytest.mark.parametrize("optimizer", ["adam", "learned", pytest.param("lm", marks=pytest.mark.slow)])
def test_any_optimizer_repairs(trained, tmp_path, optimizer):
    result = prune(open_run(trained), PruneOptions(to=90, repair=3, optimizer=optimizer), tmp_path / "new")
    assert result.left.gaussians == 90
    assert open_run(result.folder).config.schedule.all_stages[-1].optimizer == optimizer
    bare = prune(open_run(trained), PruneOptions(to=90, repair=0), tmp_path / "bare")
    assert result.left.loss != bare.left.loss


def test_the_repair_leaves_the_average_of_its_iterates(trained, tmp_path):
    """Of the first steps an average of power 0 is the mean; without one it is the last iterate."""
    folders = {}
    for average in (0.0, 1e-9, 20.0):
        options = PruneOptions(to=110, repair=4, average=average)
        folders[average] = prune(open_run(trained), options, tmp_path / str(average)).folder
    means = {average: open_run(folder).trained.means for average, folder in folders.items()}
    assert not torch.equal(means[0.0], means[20.0])
    start = open_run(trained).trained.means
    kept = (means[0.0][:, None] - start[None]).square().sum(dim=2).argmin(dim=1)  # small steps: rows find themselves
    travelled = {average: float((value - start[kept]).norm()) for average, value in means.items()}
    assert travelled[1e-9] < travelled[20.0] < travelled[0.0]
    assert open_run(folders[20.0]).config.schedule.average == 20.0


def test_a_pruned_run_is_pruned_again(trained, tmp_path):
    once = prune(open_run(trained), PruneOptions(to=100, repair=3), tmp_path / "once")
    twice = prune(open_run(once.folder), PruneOptions(to=90, repair=3), tmp_path / "twice")
    assert twice.left.gaussians == 90
    assert open_run(twice.folder).config.schedule.stages == f"{open_run(once.folder).config.schedule.stages},block-gn:3"


# ---------------------------------------------------------------------- what goes wrong


def test_what_ends_the_work_keeps_the_rounds_before(trained, tmp_path):
    def stop(what: PruneRound | Warned) -> None:
        if isinstance(what, PruneRound) and what.gaussians < 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(open_run(trained), PruneOptions(to=60, repair=3), tmp_path / "new", tell=stop)
    kept = open_run(tmp_path / "new")
    assert (len(kept.trained), kept.warnings) == (90, ())
    assert [one["gaussians"] for one in rounds_of(tmp_path / "new")] == [120, 104, 90]
    assert kept.evaluate(kept.open_capture()).psnr == rounds_of(tmp_path / "new")[-1]["psnr"]
    assert prune(kept, PruneOptions(to=60, repair=3), tmp_path / "further").left.gaussians == 60


def test_numbers_that_break_down_end_it_with_what_is_kept(trained, tmp_path, monkeypatch):
    class Spoilt(repair_module.RowResets):
        def reset_broken(self, objective, optimizer, noted, step):
            if step == STEPS + 5:
                objective.parameters["means"].fill_(math.nan)
            return super().reset_broken(objective, optimizer, noted, step)

    monkeypatch.setattr(repair_module, "RowResets", Spoilt)
    with pytest.raises(
        NonFiniteError, match=r"pruning stopped: .*means .* whole run, of the last round that ended; prune it"
    ):
        prune(open_run(trained), PruneOptions(to=60, repair=3), tmp_path / "new")
    assert len(open_run(tmp_path / "new").trained) == 104


def test_nothing_is_written_where_something_is(trained, tmp_path):
    run, options = open_run(trained), PruneOptions(to=100, repair=1)
    with pytest.raises(InputError, match="holds a run already, and nothing in it is overwritten"):
        prune(run, options, trained)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a run of splatopt"):
        prune(run, options, tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(InputError, match="--to must lie below the 120 Gaussians"):
        prune(run, PruneOptions(to=120), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_capture_is_refused(trained, tmp_path):
    other = make_toy_capture(tmp_path / "other", width=32, height=24, points=POINTS, views=9)
    run = open_run(trained)
    moved = Run(**{**vars(run), "config": run.config.changed(capture=str(other))})
    with pytest.raises(InputError, match="what its Gaussians cost would be of something else"):
        prune(moved, PruneOptions(to=100), tmp_path / "new")
    gone = Run(**{**vars(run), "config": run.config.changed(capture=str(tmp_path / "gone"))})
    with pytest.raises(InputError, match="no capture at"):
        prune(gone, PruneOptions(to=100), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_metrics_are_left_out_with_a_warning(trained, tmp_path):
    folder, told = tmp_path / "run", []
    for name, content in files_of(trained).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "metrics.jsonl").write_text("{\n")
    result = prune(open_run(folder), PruneOptions(to=110, repair=2), tmp_path / "new", tell=told.append)
    assert "the metrics of the new run begin with the repair" in told[0].message
    assert [line["step"] for line in lines(result.folder)] == [STEPS + 2]
