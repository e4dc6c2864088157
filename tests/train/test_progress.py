"""What is said while a run goes on."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from splatopt.metrics.image import ViewScore
from splatopt.runs import live_line as live_line_module
from splatopt.runs.events import Ended, Warned
from splatopt.runs.live_line import _clock
from splatopt.scene.gaussians import GaussianCloud
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import Scores
from splatopt.train.events import Evaluated, Scoring, Started, Stepped
from splatopt.train.progress import ProgressLine


def cloud(count: int) -> GaussianCloud:
    return GaussianCloud(
        *(torch.zeros(count, 3), torch.zeros(count, 3), torch.zeros(count, 4), torch.zeros(count)),
        *(torch.zeros(count, 3), torch.zeros(count, 0, 3)),
    )


def say(terminal: bool) -> str:
    stream = io.StringIO()
    line = ProgressLine(Console(file=stream, force_terminal=terminal, width=200))
    line(Started(TrainConfig.of("fox", optimizer="adam").resolved("fox", (0.0, 0.0, 0.0)), 0, 1234, 43, "native"))
    line(
        Evaluated(
            0, 0.0, Scores("every-8th-test", "test", (ViewScore("a", 10.0, 0.25), ViewScore("b", 12.0, 0.75))), cloud(1)
        )
    )
    scene = cloud(1234)
    for step in range(1, 101):
        line(Stepped(step, 100, 0.01 * step, 0.25, 20.0, scene))
    line(Warned("the disk is full [/nothing]"))
    line(Ended())
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_it_tells_everything_a_person_asks_for(terminal):
    said = say(terminal)
    for words in (
        "0 of 2000",
        "1,234 Gaussians",
        "43 views",
        "optimizer adam",
        "native renderer",
        "test PSNR 11.00 dB, SSIM 0.5000 (2 views, every-8th-test)",
        "step 100/100",
        "loss 0.2500",
        "PSNR 20.00 dB",
        " MB",
        "ms/step",
        "ETA 0:00",
        "warning: the disk is full [/nothing]",
    ):
        assert words in said, words


def test_a_run_that_plans_itself_says_when_it_ends_and_how_to_have_more():
    stream = io.StringIO()
    line = ProgressLine(Console(file=stream, width=300))
    line(Started(TrainConfig.of("fox").resolved("fox", (0.0, 0.0, 0.0)), 0, 1234, 43, "native"))
    for step in (1, 2):
        line(Stepped(step, 2, 0.01 * step, 0.25, 20.0, cloud(7), seconds_left=83.4))
    said = stream.getvalue().splitlines()
    assert said[0].startswith("the run ends 5 minutes after its start, or sooner once the training views no longer")
    assert "--minutes 10; --steps N trains plainly for N steps" in said[1]
    assert said[2].startswith("training, step 0: 1,234 Gaussians, 43 views, optimizer block-gn")
    assert said[-1].endswith("ETA 1:23")


def test_stages_are_told_apart(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(live_line_module.time, "perf_counter", lambda: clock[0])
    stream = io.StringIO()
    line = ProgressLine(Console(file=stream, width=300))
    config = TrainConfig.of("fox", stages="adam:1000,sign-tr:4").resolved("fox", (0.0, 0.0, 0.0))
    line(Started(config, 0, 5, 43, "native"))
    for step in range(1, 1005):
        stage = config.schedule.all_stages[step > 1000]
        clock[0] += 0.01 if step <= 1000 else 6.0
        line(Stepped(step, 1004, clock[0], 0.5 if step <= 1000 else 0.125, 20.0, cloud(5), stage))
    said = stream.getvalue().splitlines()
    assert "step 0 of 1004" in said[0]
    assert "stages adam:1000,sign-tr:4" in said[0]
    assert said[1].startswith("step 1/1004 (adam 1/1000)")
    assert "(adam 50" in said[2]
    assert "10.0 ms/step  ETA 0:05 of adam's end" in said[2]
    assert [text.split("  ")[0] for text in said[-4:]] == [f"step {1000 + i}/1004 (sign-tr {i}/4)" for i in range(1, 5)]
    assert "loss 0.1250" in said[-4], "running means begin anew"
    assert "6000.0 ms/step  ETA 0:12 of sign-tr's end" in said[-3]


def test_elsewhere_than_on_a_terminal_lines_are_few_and_plain():
    said = say(terminal=False)
    assert "\x1b" not in said
    assert said.count("\n") < 8


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "0:00"), (59.6, "1:00"), (125.0, "2:05"), (3725.0, "1:02:05")])
def test_durations(seconds, shown):
    assert _clock(seconds) == shown


def test_scoring_that_takes_long_is_told_of(monkeypatch):
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(live_line_module.time, "perf_counter", lambda: now[0])
    line = ProgressLine(Console(file=stream, width=200))
    line(Started(TrainConfig.of("fox").resolved("fox", (0.0, 0.0, 0.0)), 0, 1234, 43, "native"))
    for done in range(1, 20):
        now[0] += 1.0
        line(Scoring(done))
    notes = [one for one in stream.getvalue().splitlines() if "scoring" in one]
    assert notes == [f"scoring held-out views: {done} done" for done in (5, 10, 15)]
