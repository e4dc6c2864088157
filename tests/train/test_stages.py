"""Stages: one optimizer after the other, bit-exactly resumed within each and across."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.optimizer import OPTIMIZERS, register
from splatopt.core.state import OptimizerState
from splatopt.optim import Adam, AdamOptions
from splatopt.runs.events import Warned
from splatopt.runs.resumable import InterruptedRunError
from splatopt.train.config import TrainConfig
from splatopt.train.events import Started, Stepped
from splatopt.train.loop import train
from splatopt.train.stages import Stage, check_continues, parse_stages, stage_at
from train.test_loop import assert_same
from train.toys import Listener, ToyRenderer, lines

PLAN = "adam:12,wide:6,adam:10"


@dataclass(frozen=True)
class WideOptions(AdamOptions):
    """Adam that looks at several views."""

    views: int = 0
    """Views a step. Unit: views. Source: this test."""

    def __post_init__(self) -> None:
        """Zero views are all of them."""


class Wide(Adam):
    """Notes where it stands, and refuses too few views."""

    told: ClassVar[list[tuple[int, int]]] = []

    @property
    def batch_size(self) -> int:
        return self.options.views

    def check_batch(self, batch) -> None:
        if len(batch) < self.options.views:
            raise InputError(f"wide needs {self.options.views} views")

    def step(self, batch, progress):
        self.told.append((progress.step, progress.horizon))
        evaluation = super().step(batch, progress)
        return replace(evaluation, metrics={**evaluation.metrics, "breadth": len(batch)})


@pytest.fixture(autouse=True)
def wide():
    Wide.told.clear()
    register("wide", Wide, WideOptions)
    yield
    OPTIMIZERS.forget("wide")


@pytest.fixture
def staged(settings):
    """Settings of a short run in stages."""

    def make(name: str = "run", stages: str = PLAN, **changes) -> TrainConfig:
        return settings(name, steps=None, stages=stages, **changes)

    return make


# ---------------------------------------------------------------------- what is written on the command line


def test_stages_are_read_in_order():
    assert parse_stages(" adam:12, wide : 6 ,adam:10") == (
        Stage("adam", 0, 12),
        Stage("wide", 12, 6),
        Stage("adam", 18, 10),
    )
    assert [stage_at(parse_stages(PLAN), step) for step in (0, 11, 12, 17, 18, 27, 28, 99)] == [0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "stage 1 of --stages must be NAME:STEPS, got '' in ''"),
        ("adam:5,", "stage 2 of --stages must be NAME:STEPS, got '' in 'adam:5,'"),
        ("adam:5,,wide:3", "stage 2"),
        ("adam", "must be NAME:STEPS, got 'adam'"),
        ("adam:", "must be NAME:STEPS"),
        (":5", "must be NAME:STEPS"),
        ("adm:5", "did you mean adam"),
        ("adam:0", "at least 1, got 'adam:0'"),
        ("adam:5,wide:-3", "stage 2 of --stages must have a whole number of steps of at least 1, got 'wide:-3'"),
        ("adam:1.5", "whole number"),
        ("adam:1e3", "whole number"),
        ("adam:5:6", "no optimizer is named 'adam:5'"),
        ("adam:٣", "whole number"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(text, said):
    with pytest.raises(InputError) as caught:
        TrainConfig.of("fox", stages=text)
    assert said in str(caught.value)


def test_the_steps_are_the_sum():
    config = TrainConfig.of("fox", stages=PLAN)
    assert config.schedule.total_steps == 28
    assert config.resolved("fox", (0.0, 0.0, 0.0)).schedule.steps == 28
    assert TrainConfig.of("fox", stages=PLAN, steps=28).schedule.total_steps == 28
    with pytest.raises(InputError, match=r"--steps 2000 contradicts --stages adam:12.*sum to 28"):
        TrainConfig.of("fox", stages=PLAN, steps=2000)


def test_another_optimizer_beside_stages_is_refused():
    with pytest.raises(InputError, match=r"--optimizer wide contradicts --stages adam:12"):
        TrainConfig.of("fox", stages=PLAN, optimizer="wide")
    assert TrainConfig.of("fox", stages="wide:3,adam:2").schedule.optimizer == "wide"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sign-tr": AdamOptions()}, "options of optimizer 'sign-tr' are given, which the run does not use"),
        ({"wide": AdamOptions()}, "the options of optimizer 'wide' must be a WideOptions, got a AdamOptions"),
    ],
)
def test_options_must_be_of_the_stages_optimizers(options, said):
    with pytest.raises(InputError, match=said):
        TrainConfig.of("fox", stages=PLAN, optimizer_options=options)


def test_a_configuration_in_stages_survives_json():
    options = {"wide": WideOptions(views=3, quats_rate=1 / 3)}
    config = TrainConfig.of("/data/fox", stages=PLAN, optimizer_options=options)
    for one in (config, config.resolved("fox", (0.0, 0.0, 0.0))):
        assert TrainConfig.from_json(json.loads(json.dumps(one.to_json())), "config.json") == one
    resolved = config.resolved("fox", (0.0, 0.0, 0.0))
    assert resolved.schedule.optimizer_options == {"adam": AdamOptions(), **options}
    assert resolved.folder == Path("runs/fox-adam-wide")


# ---------------------------------------------------------------------- a run


def test_each_stage_has_its_own_horizon_views_and_facts(staged):
    renderer, listener = ToyRenderer(), Listener()
    result = train(staged(), [listener], renderer=renderer)
    assert result.steps == 28
    assert Wide.told == [(step, 6) for step in range(6)]
    assert renderer.calls == 12 + 6 * 8 + 10
    assert len(set(renderer.views[12:20])) == 8, "all training views, each once"
    assert [event.stage.optimizer for event in listener.of(Stepped)] == ["adam"] * 12 + ["wide"] * 6 + ["adam"] * 10
    written = lines(result.folder)
    steps = [line["step"] for line in written]
    assert steps == [3, 6, 9, 12, 15, 18, 21, 24, 27, 28]
    assert [line["optimizer"] for line in written] == ["adam"] * 4 + ["wide"] * 2 + ["adam"] * 4
    assert [line.get("breadth") for line in written] == [None] * 4 + [8, 8] + [None] * 4
    assert renderer.degrees == [0] * 10 + [1] * 2 + [1] * 8 * 6 + [1] * 2 + [2] * 8, "degrees go on over the run"


def test_a_line_of_metrics_never_holds_two_stages(staged):
    listener = Listener()
    result = train(staged(stages="adam:5,wide:4", log_every=100), [listener], renderer=ToyRenderer())
    losses = [event.loss for event in listener.of(Stepped)]
    written = lines(result.folder)
    assert [(line["step"], line["optimizer"]) for line in written] == [(5, "adam"), (9, "wide")]
    assert written[1]["loss"] == pytest.approx(sum(losses[5:]) / 4)


def test_a_stage_starts_with_an_empty_state(staged, settings):
    """Two stages of Adam are two runs of Adam, the second from the first one's scene."""
    listener = Listener()
    result = train(staged(stages="adam:6,adam:5", sh_interval=0), [listener], renderer=ToyRenderer())
    checkpoint, _ = latest_checkpoint(result.folder / "checkpoints")
    assert checkpoint.scalars["optimizer"]["steps"] == 5
    assert checkpoint.scalars["stage"] == 1
    straight = train(settings("straight", steps=11, sh_interval=0), renderer=ToyRenderer())
    assert not torch.equal(straight.cloud.means, result.cloud.means)


def test_a_stage_ends_with_a_checkpoint(staged):
    result = train(staged(checkpoint_every=0, checkpoint_seconds=0.0), renderer=ToyRenderer())
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir()) == ["step-000018", "step-000028"]


@pytest.mark.parametrize("stop_at", [5, 11, 12, 13, 17, 18, 20])
def test_resuming_is_bit_exact_within_and_across_stages(staged, stop_at):
    options = {"wide": WideOptions(views=3, quats_rate=5e-3)}
    straight = train(staged("straight", optimizer_options=options), renderer=ToyRenderer())
    with pytest.raises(InterruptedRunError, match=f"stopped at step {stop_at} of 28"):
        train(staged("parts", optimizer_options=options), [Listener(stop_at)], renderer=ToyRenderer())
    saved = staged("parts")
    resumed = TrainConfig.of(saved.data.capture, out=saved.folder, resume=True)
    listener = Listener()
    result = train(resumed, [listener], renderer=ToyRenderer())
    assert listener.of(Started)[0].step == stop_at
    assert result.config.schedule.stages == PLAN
    assert_same(straight, result)


def test_a_kill_at_a_stages_beginning_repeats_it(staged):
    straight = train(staged("straight"), renderer=ToyRenderer())

    class KilledError(Exception):
        pass

    def kill(event) -> None:
        if isinstance(event, Stepped) and event.step == 13:
            raise KilledError

    config = staged("killed")
    with pytest.raises(KilledError):
        train(config, [kill], renderer=ToyRenderer())
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 12
    assert_same(straight, train(config.changed(resume=True), renderer=ToyRenderer()))


def test_a_finished_run_may_go_on_with_another_stage(staged, settings):
    straight = train(staged("straight", stages="adam:8,wide:3", checkpoint_every=0), renderer=ToyRenderer())
    train(settings("parts", steps=8, checkpoint_every=0), renderer=ToyRenderer())
    resumed = staged("parts", stages="adam:8,wide:3", resume=True, checkpoint_every=0)
    assert_same(straight, train(resumed, renderer=ToyRenderer()))


@pytest.mark.parametrize(
    ("saved", "stages", "step"),
    [
        ("adam:12,wide:6", "adam:12,wide:9", 15),
        ("adam:12,wide:6", "adam:12,wide:6,adam:5", 18),
        ("adam:12,wide:6", "adam:12,adam:6", 12),
        ("adam:12", "adam:20", 12),
        ("adam:12", "adam:8,wide:6", 8),
        ("adam:12,wide:6", "wide:2", 0),
    ],
)
def test_stages_to_come_may_change(saved, stages, step):
    check_continues(parse_stages(stages), parse_stages(saved), step)


@pytest.mark.parametrize(
    ("saved", "stages", "step"),
    [
        ("adam:12,wide:6", "adam:13,wide:6", 15),
        ("adam:12,wide:6", "adam:13,wide:6", 12),
        ("adam:12,wide:6", "wide:12,wide:6", 15),
        ("adam:12,wide:6", "adam:12,adam:6", 15),
        ("adam:12,wide:6", "adam:12", 15),
        ("adam:12", "adam:8,wide:6", 9),
    ],
)
def test_stages_taken_may_not(saved, stages, step):
    with pytest.raises(InputError, match=f"the run took {step} steps as {saved}, and cannot go on as {stages}"):
        check_continues(parse_stages(stages), parse_stages(saved), step)


def test_resuming_with_another_past_is_refused(staged):
    config = staged()
    with pytest.raises(InterruptedRunError):
        train(config, [Listener(14)], renderer=ToyRenderer())
    before = (config.folder / "config.json").read_bytes()
    with pytest.raises(InputError, match="took 14 steps as adam:12,wide:6,adam:10"):
        train(staged(stages="adam:13,wide:6", resume=True), renderer=ToyRenderer())
    with pytest.raises(InputError, match=r"--wide.views 0, and cannot go on with 2"):
        train(staged(resume=True, optimizer_options={"wide": WideOptions(views=2)}), renderer=ToyRenderer())
    with pytest.raises(InputError, match=r"--steps 99 contradicts --stages adam:12"):
        train(TrainConfig.of(config.data.capture, out=config.folder, steps=99, resume=True), renderer=ToyRenderer())
    assert (config.folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("broken_call", [14, 12 + 3 * 8 + 1])
def test_rolling_back_lands_in_the_stage_of_the_checkpoint(staged, broken_call):
    """Broken in the first step of the second stage, and in its fourth; checkpoints are at 7, 12, 14 and 18."""

    def spoil(call, parts):
        if call == broken_call:
            parts["means"][:2] = float("nan")

    listener = Listener()
    result = train(staged(), [listener], renderer=ToyRenderer(spoil))
    (warning,) = listener.of(Warned)
    back = 12 if broken_call == 14 else 14
    assert f"went back to the checkpoint of step {back}" in warning.message
    assert "with a new order" not in warning.message, "the second stage takes all views at once"
    assert [event.step for event in listener.of(Stepped)][-(28 - back) :] == list(range(back + 1, 29))
    assert result.steps == 28
    result.cloud.check_finite("result")


def test_many_views_are_not_all_named(staged):
    def spoil(call, parts):
        if call == 1:
            parts["means"][:2] = float("nan")

    listener = Listener()
    train(staged(stages="wide:3"), [listener], renderer=ToyRenderer(spoil))
    assert "view_" in listener.of(Warned)[0].message
    loop_names = listener.of(Warned)[0].message.count("view_")
    assert loop_names == 8


@pytest.mark.parametrize(("stages", "said"), [("wide:3", 1), ("adam:2,wide:1", 0)])
def test_a_batch_of_views_that_nobody_reads_is_warned_of(staged, stages, said):
    listener = Listener()
    train(staged(stages=stages, view_batch=4), [listener], renderer=ToyRenderer())
    found = [event.message for event in listener.of(Warned)]
    assert found == ["--view-batch is not read by wide, which takes views of its own number"] * said


def test_what_a_later_stage_refuses_is_refused_at_once(staged):
    config = staged(optimizer_options={"wide": WideOptions(views=500)})
    renderer = ToyRenderer()
    with pytest.raises(InputError, match="wide needs 500 views"):
        train(config, renderer=renderer)
    assert renderer.calls == 0
    assert not config.folder.exists()
    lm = staged(stages="adam:5,lm:2")
    with pytest.raises(InputError, match=r"LevenbergMarquardt.*jvp.*toy backend"):
        train(lm, renderer=renderer)
    assert not lm.folder.exists()


def test_an_old_checkpoint_without_a_stage_is_of_the_only_one(settings):
    config = settings(steps=9, checkpoint_every=0)
    train(config, renderer=ToyRenderer())
    newest = config.folder / "checkpoints" / "step-000009" / "checkpoint.json"
    header = json.loads(newest.read_text())
    del header["scalars"]["stage"]
    newest.write_text(json.dumps(header))
    train(config.changed(steps=12, resume=True), renderer=ToyRenderer())
    assert latest_checkpoint(config.folder / "checkpoints")[0].scalars["optimizer"]["steps"] == 12


def test_a_state_of_one_stage_never_reaches_another(staged, monkeypatch):
    loaded = []
    load = Adam.load_state

    def note(self, state: OptimizerState) -> None:
        loaded.append(type(self).__name__)
        load(self, state)

    monkeypatch.setattr(Adam, "load_state", note)
    config = staged()
    with pytest.raises(InterruptedRunError):
        train(config, [Listener(12)], renderer=ToyRenderer())
    train(config.changed(resume=True), renderer=ToyRenderer())
    assert loaded == ["Wide"]
