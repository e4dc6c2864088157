"""Runs on two gloo processes: one process's run, one run folder, and a way on when one of them is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from core.process_group import ThreadProcesses, finish, in_threads, start
from splatopt.core import native
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.processes import Launch, Processes, ReportedElsewhereError, find_launch
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.version import __version__
from splatopt.density.strategy import STRATEGIES, DensityStrategy, register_density
from splatopt.optim.first_order import AdamOptions
from splatopt.train.config import TrainConfig
from splatopt.train.events import Stepped
from splatopt.train.loop import train
from splatopt.train.machine import own_threads, process_device
from splatopt.train.process_context import ProcessContext, fingerprint
from train.toys import Listener, ToyRenderer, lines, load_toy_capture, make_toy_capture

needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")
WORKER = str(Path(__file__).with_name("run_distributed.py"))


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return make_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


def words(capture: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(capture), "--out", str(out), "--sh-interval", "5", *more]


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(latest_checkpoint(folder / "checkpoints")[0].tensors)


# ---------------------------------------------------------------------- two real processes


@needs_native
def test_two_processes_make_the_run_of_one_and_one_goes_on_with_it(capture, tmp_path):
    # Batches of three leave one process with two views and the other with one. Adam's usual epsilon would blow up
    # the rounding of gradients that are zero: those of the quaternions of round Gaussians.
    options = ("--view-batch", "3", "--stages", "adam:8,block-gn:3", "--log-every", "4", "--adam.epsilon", "1e-3")
    two = finish(start(2, [WORKER, "fine", *words(capture, tmp_path / "two", *options)]))
    assert [code for code, _, _ in two] == [0, 0], two
    assert "11 steps in" in two[0][1]
    assert "2 processes" in two[0][2]
    assert two[1][1:] == ("", "")
    one = train(
        TrainConfig.of(
            str(capture),
            out=tmp_path / "one",
            sh_interval=5,
            view_batch=3,
            stages="adam:8,block-gn:3",
            log_every=4,
            optimizer_options={"adam": AdamOptions(epsilon=1e-3)},
        )
    )
    first, second = checkpoint_tensors(one.folder), checkpoint_tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    for name, value in first.items():
        if value.is_floating_point():
            assert float((second[name] - value).norm()) <= 1e-3 * float(value.norm()), name
        else:
            assert torch.equal(second[name], value), name
    assert [line["step"] for line in lines(tmp_path / "two")] == [line["step"] for line in lines(one.folder)]
    for mine, theirs in zip(lines(tmp_path / "two"), lines(one.folder), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["psnr"] == pytest.approx(theirs["psnr"], rel=1e-4)
    evaluation = json.loads((tmp_path / "two" / "eval.json").read_text())
    assert evaluation["psnr"] == pytest.approx(one.after.psnr, abs=1e-3)
    gone_on = train(TrainConfig.of(str(capture), out=tmp_path / "two", stages="adam:8,block-gn:5", resume=True))
    assert gone_on.steps == 13
    assert gone_on.before.psnr == evaluation["before"]["psnr"]


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["adc", "mcmc", "gain"])
def test_two_processes_grow_the_scene_of_one(strategy, capture, tmp_path):
    own = {"every": 1, "begin": 0.0, "until": 1.0} if strategy == "gain" else {"start": 0, "every": 1, "horizon": 0}
    shared = (f"--{strategy}.{name}" for name in own)
    words_of = [word for name, value in zip(shared, own.values(), strict=True) for word in (name, str(value))]
    options = (
        "--view-batch",
        "3",
        "--steps",
        "6",
        "--max-gaussians",
        "90",
        "--adam.epsilon",
        "1e-3",
        "--log-every",
        "2",
    )
    if strategy == "adc":
        own |= {"min_gradient": 5e-3}
        words_of += ["--adc.min-gradient", "5e-3"]
    two = finish(
        start(2, [WORKER, "fine", *words(capture, tmp_path / "two", "--density", strategy, *words_of, *options)])
    )
    assert [code for code, _, _ in two] == [0, 0], two
    one = train(
        TrainConfig.of(
            str(capture),
            out=tmp_path / "one",
            sh_interval=5,
            view_batch=3,
            steps=6,
            log_every=2,
            density=strategy,
            density_options=own,
            max_gaussians=90,
            optimizer_options=AdamOptions(epsilon=1e-3),
        )
    )
    edits = [
        [(one["step"], one["added"], one["removed"]) for one in map(json.loads, (folder / "density.jsonl").open())]
        for folder in (one.folder, tmp_path / "two")
    ]
    assert edits[0] == edits[1]
    assert sum(added for _, added, _ in edits[0]) > 0
    first, second = checkpoint_tensors(one.folder), checkpoint_tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    for name, value in first.items():
        if value.is_floating_point():
            assert float((second[name] - value).norm()) <= 2e-3 * float(value.norm()), name


@needs_native
@pytest.mark.parametrize(("how", "seconds"), [("dies", "60"), pytest.param("hangs", "3", marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_run_with_a_checkpoint_and_a_way_on(capture, tmp_path, how, seconds):
    out = tmp_path / "run"
    options = ("--view-batch", "2", "--steps", "200", "--checkpoint-every", "10", "--process-timeout", seconds)
    processes = start(2, [WORKER, how, *words(capture, out, *options)])
    code, _, said = finish(processes[:1])[0]
    processes[1].kill()
    processes[1].communicate()
    assert code == 2
    assert "Traceback" not in said
    sentence = next(line for line in said.splitlines() if line.startswith("splatopt: "))
    assert sentence.startswith("splatopt: another process of the run was lost at step 19; step-000010 is kept; go on")
    assert sentence.endswith(f"--out {out} --resume")
    assert latest_checkpoint(out / "checkpoints")[0].step == 10


@pytest.mark.slow
def test_different_versions_are_refused_in_one_sentence(capture, tmp_path):
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, WORKER, "version", *words(capture, out)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode != 0
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("splatopt: ")]
    assert len(sentences) == 1, ended.stderr
    assert f"{__version__} (process 0), 9.9.9 (process 1)" in sentences[0]
    assert not out.exists()


# ---------------------------------------------------------------------- played by threads


def run_in_threads(count: int, config: TrainConfig, stop_at: int | None = None, **settings):
    """Train on a toy renderer in each of ``count`` threads; returns results, listeners and renderers."""
    capture = load_toy_capture(config.folder.parent / f"capture-{config.folder.name}")

    def work(processes: Processes):
        listener, renderer = Listener(stop_at), ToyRenderer(**settings)
        try:
            result = train(config, [listener], capture=capture, renderer=renderer, processes=processes)
        except KeyboardInterrupt as stopped:
            result = stopped
        return result, listener, renderer

    return in_threads(count, work)


def test_only_the_first_listens_writes_and_evaluates(settings):
    (first, heard, looked), (second, unheard, shown) = run_in_threads(2, settings(steps=5, view_batch=2))
    assert len(heard.of(Stepped)) == 5
    assert unheard.events == []
    assert first.after == second.after
    assert first.before == second.before
    assert first.seconds == second.seconds
    assert looked.calls == shown.calls == 5
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name


def test_a_request_to_stop_reaches_all_at_the_same_step(settings):
    config = settings(steps=30, view_batch=2)
    (first, _, looked), (second, _, shown) = run_in_threads(2, config, stop_at=9)
    assert str(first).startswith("stopped at step 9 of 30, step-000009 is kept; go on with:")
    assert str(second).startswith("stopped at step 9 of 30")
    assert looked.calls == shown.calls == 9
    assert latest_checkpoint(config.folder / "checkpoints")[0].step == 9


def test_numbers_that_break_down_take_all_back_together(settings):
    def spoil(call: int, parts: dict[str, torch.Tensor]) -> None:
        if call == 9:
            parts["means"][:2] = float("nan")

    config = settings(steps=12, view_batch=2)
    (first, _, looked), (second, _, shown) = run_in_threads(2, config, spoil=spoil)
    assert first.steps == second.steps == 12
    assert looked.calls == shown.calls == 14
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name


def test_a_row_that_breaks_down_begins_anew_in_all_processes(settings):
    def spoil(call: int, parts: dict[str, torch.Tensor]) -> None:
        if call == 9:
            parts["means"][0] = float("nan")

    config = settings(steps=12, view_batch=2)
    (first, _, looked), (second, _, shown) = run_in_threads(2, config, spoil=spoil)
    assert looked.calls == shown.calls == 12, "nothing was taken back"
    first.cloud.check_finite("result")
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name
    assert sum(line.get("reset_rows", 0) for line in lines(config.folder)) == 1


@dataclass(frozen=True)
class WatcherOptions:
    """Nothing to choose."""


class Watcher(DensityStrategy[WatcherOptions]):
    """Looks at gradients, and edits nothing."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gradient_statistics = self.remember(GradientStatistics(self.objective.parameters))

    def edit(self, step) -> None:
        assert len(self.gradient_statistics.views) == len(self.objective.parameters["means"])


def test_a_row_that_breaks_down_is_removed_in_all_processes_and_from_what_each_has_counted(settings):
    def spoil(call: int, parts: dict[str, torch.Tensor]) -> None:
        if call == 9:
            parts["means"][0] = float("nan")

    register_density("watcher", Watcher, WatcherOptions)
    try:
        config = settings(steps=12, view_batch=2, density="watcher")
        (first, _, looked), (second, _, shown) = run_in_threads(2, config, spoil=spoil)
    finally:
        STRATEGIES.forget("watcher")
    assert looked.calls == shown.calls == 12, "nothing was taken back"
    for name, value in first.cloud.tensors.items():
        assert torch.equal(value, second.cloud.tensors[name]), name
    assert sum(line.get("broken_rows", 0) for line in lines(config.folder)) == 1


def test_versions_that_differ_are_said_once():
    def work(processes: ThreadProcesses):
        texts = processes.texts
        processes.texts = lambda text: texts("9.9.9" if processes.rank else text)
        said = rf"{__version__} \(process 0\), 9\.9\.9 \(process 1\); install one for all"
        with pytest.raises(InputError if processes.is_first else ReportedElsewhereError, match=said):
            processes.check_versions()

    in_threads(2, work)


def test_states_that_differ_are_found(settings):
    capture = load_toy_capture(settings().folder.parent / "capture")

    def work(processes):
        context = ProcessContext(torch.device("cpu"), capture, processes)
        state = {"cloud.means": torch.zeros(3, 3), "sampler": torch.tensor([1, 2])}
        context.check_alike(state, 4)
        state["cloud.means"][1, 2] = 1e-30 * processes.rank
        with pytest.raises(InputError, match="differ in cloud.means at step 4: all processes must read the same"):
            context.check_alike(state, 4)

    in_threads(2, work)


def test_fingerprints_tell_bits_and_places_apart():
    values = [
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([2.0, 1.0, 3.0]),
        torch.tensor([1.0, 2.0, -3.0]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([0.0, -0.0]),
        torch.tensor([0, 0], dtype=torch.uint8),
        torch.tensor([0, 1], dtype=torch.uint8),
        torch.tensor([]),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(values[0]) == fingerprint(values[0].clone())


# ---------------------------------------------------------------------- launches


def test_a_launch_is_read_from_what_torchrun_sets():
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert find_launch(told) == Launch(rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert find_launch({"RANK": "1", "WORLD_SIZE": "2"}) == Launch(1, 2, 1, 2)
    assert find_launch({}) == Launch()


@pytest.mark.parametrize(("rank", "size"), [("two", "4"), ("4", "4"), ("-1", "2")])
def test_a_launch_that_cannot_be_is_refused(rank, size):
    with pytest.raises(InputError, match="torchrun"):
        find_launch({"RANK": rank, "WORLD_SIZE": size})


def test_processes_of_one_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr("splatopt.train.machine.default_threads", lambda: 8)
    assert own_threads(0, Launch(0, 4, 0, 3)) == 2
    assert own_threads(0, Launch(0, 20, 0, 20)) == 1
    assert own_threads(5, Launch(0, 4, 0, 4)) == 5
    assert own_threads(0, Launch()) == 0


def test_each_process_has_the_gpu_of_its_own_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert process_device(torch.device("cuda"), Launch(5, 8, 1, 2)) == torch.device("cuda:1")
    assert process_device(torch.device("cuda"), Launch()) == torch.device("cuda:0")
    assert process_device(torch.device("cuda:1"), Launch()) == torch.device("cuda:1")
    assert process_device(torch.device("cpu"), Launch(5, 8, 7, 8)) == torch.device("cpu")
    with pytest.raises(InputError, match="3 processes need a GPU each, and there are 2 here"):
        process_device(torch.device("cuda"), Launch(2, 3, 2, 3))
    with pytest.raises(InputError, match="--device cuda:1 is one GPU, and 2 processes need one each"):
        process_device(torch.device("cuda:1"), Launch(0, 2, 0, 2))
