"""When a run is scored, when it ends, and which views it sees."""

from __future__ import annotations

import json

import pytest

from splatopt.core.checks import InputError
from splatopt.runs import resumable as kept_run_module
from splatopt.train import trainer as trainer_module
from splatopt.train.events import Evaluated
from splatopt.train.loop import train
from splatopt.train.sampler import ViewChoice
from train.toys import Listener, ToyRenderer, lasting, lines


class Clock:
    """A clock of which every reading is a quarter of a second after the one before."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.25
        return self.now


@pytest.fixture
def clock(monkeypatch):
    ticking = Clock()
    for module in (trainer_module, kept_run_module):
        monkeypatch.setattr(module, "time", ticking)


def run(config, **more):
    listener = Listener()
    result = train(config, [listener], renderer=ToyRenderer(), **more)
    return result, [(event.step, event.seconds) for event in listener.of(Evaluated)]


def test_steps_that_were_asked_for_are_scored(settings):
    _, readings = run(settings(eval_at=(1, 5, 17, 1000), eval_every=20))
    assert [step for step, _ in readings] == [0, 1, 5, 17, 20, 40]


def test_a_run_is_scored_ten_times_where_nothing_was_asked(settings):
    """Of the toy one view is scored, so that 40 steps are too few for more than eight times."""
    for steps, expected in ((100, range(10, 101, 10)), (40, range(10, 41, 10)), (4, [4])):
        _, readings = run(settings(str(steps), steps=steps, eval_every=None))
        assert [step for step, _ in readings] == [0, *expected]


def test_a_step_that_is_asked_for_twice_is_scored_once(settings):
    _, readings = run(settings(eval_at=(20, 40), eval_every=20))
    assert [step for step, _ in readings] == [0, 20, 40]


def test_times_that_were_asked_for_are_scored_once_each(settings, clock):
    """A step takes a quarter of a second, and what follows it another; two times within one are one reading."""
    _, readings = run(settings(eval_at_seconds=(1.0, 2.0, 2.1, 500.0)))
    assert [step for step, _ in readings] == [0, 3, 5, 40]
    assert [seconds for _, seconds in readings][1:3] == [1.25, 2.25]


def test_scoring_changes_nothing_of_the_training(settings):
    plain, _ = run(settings("plain"))
    scored, _ = run(settings("scored", eval_at=(1, 2, 3, 7, 13, 39)))
    assert (plain.folder / "scene.ply").read_bytes() == (scored.folder / "scene.ply").read_bytes()
    assert plain.after == scored.after


def test_a_run_ends_when_its_time_is_up(settings, clock):
    result, readings = run(settings(max_seconds=2.0, checkpoint_every=0, log_every=1000))
    assert result.steps == 5
    assert readings[-1][0] == 5
    assert lines(result.folder)[-1]["step"] == 5
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir())[-1] == "step-000005"
    again, _ = run(settings(max_seconds=2.0, resume=True))
    assert again.steps == 5
    longer, _ = run(settings(max_seconds=3.0, resume=True))
    assert 5 < longer.steps < 40


def test_schedules_end_at_the_horizon(settings):
    """A run that goes on past its horizon begins as one that ends there."""
    short, _ = run(settings("short", steps=12, log_every=4))
    long, _ = run(settings("long", steps=24, horizon=12, log_every=4))
    other, _ = run(settings("other", steps=24, log_every=4))
    assert lasting(long.folder)[:3] == lasting(short.folder)
    assert lasting(other.folder)[:3] != lasting(short.folder)


def test_input_views_alone_are_trained_on(settings):
    config = settings(input_views=3)
    result, _ = run(config)
    assert len(result.capture.split.train) == 3
    assert len(result.after.views) == 7
    record = json.loads((result.folder / "eval.json").read_text())
    assert record["split"] == "sparse-3-of-10"


def test_far_views_go_on_where_they_were(settings):
    far = {"view_choice": ViewChoice.FARTHEST, "view_batch": 3}
    straight, _ = run(settings("straight", **far))
    shuffled, _ = run(settings("shuffled", view_batch=3))
    with pytest.raises(KeyboardInterrupt):
        train(settings("stopped", **far), [Listener(stop_at=11)], renderer=ToyRenderer())
    resumed, _ = run(settings("stopped", **far, resume=True))
    scenes = [(result.folder / "scene.ply").read_bytes() for result in (straight, resumed, shuffled)]
    assert scenes[0] == scenes[1] != scenes[2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"eval_at": (-1,)}, "--eval-at must be at least 0"),
        ({"eval_at_seconds": (float("inf"),)}, "--eval-at-seconds must be at least 0"),
        ({"max_seconds": -1.0}, "--max-seconds must be at least 0"),
        ({"horizon": 0}, "--horizon must be at least 1"),
        ({"input_views": -1}, "--input-views must be at least 0"),
    ],
)
def test_nonsense_is_refused(settings, wrong, said):
    with pytest.raises(InputError, match=said):
        settings(**wrong)


def test_too_many_input_views_are_refused_before_anything_is_written(settings):
    config = settings(input_views=10)
    with pytest.raises(InputError, match="input views must lie between 1 and 9"):
        run(config)
    assert not config.folder.exists()
