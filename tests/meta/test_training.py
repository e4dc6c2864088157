"""Whole runs of meta-training: going on, several processes, the log, and bad input."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import splatopt
from meta.toys import EPISODES, SCENES, SHAPE, TASKS, begin, make_scenes
from splatopt.cli import main
from splatopt.commands import meta_train as command_module
from splatopt.commands.meta_train import MetaTrainOptions, meta_train
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.data.synthetic import make_scene, write_scenes
from splatopt.meta.episode import LossOptions, run_episode
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.tasks import scene_folders
from splatopt.meta.training import MetaTrainConfig, MetaTrainer
from splatopt.meta.weights import load_weights

BRIEF_STEPS = ["--tasks.view-batches", "2", "--tasks.targets", "2", "--tasks.sh-degree", "1"]
BRIEF_STEPS += ["--episodes.unroll", "2", "--episodes.rollout", "6", "--episodes.rollout-growth", "3"]
"""TASKS and EPISODES, for the command line."""


def config(scenes, out, **changed):
    settings = {
        "steps": 6,
        "streams": 2,
        "save_every": 3,
        "validate_every": 6,
        "tasks": TASKS,
        "episodes": EPISODES,
    }
    return MetaTrainConfig(out=out, network=SHAPE, rates=InnerRates(), scenes=scenes, **(settings | changed))


def test_a_run_goes_on_bit_exactly(scenes, tmp_path):
    straight = MetaTrainer(config(scenes, tmp_path / "straight"))
    straight.run()
    first = MetaTrainer(config(scenes, tmp_path / "resumed"))
    first.run(until=3)
    resumed = MetaTrainer(config(scenes, tmp_path / "resumed"))
    assert resumed.step == 3
    resumed.run()
    for one, other in ((straight.network, resumed.network), (straight.average, resumed.average)):
        for (name, value), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(value, again), name
    for one, other in zip(straight.streams, resumed.streams, strict=True):
        tensors, scalars = one.state()
        again, numbers = other.state()
        assert scalars == numbers
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    loaded = load_weights(str(tmp_path / "resumed" / "weights.safetensors"))
    assert torch.equal(loaded.network.enter.weight, straight.average.enter.weight)
    assert loaded.metadata["meta_steps"] == 6


def test_the_largest_seed_goes_on_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr("splatopt.meta.tasks.make_scene", lambda seed: make_scene(seed, SCENES))
    settings = {"seed": 2**31 - 1, "streams": 1, "steps": 2, "episodes": replace(EPISODES, inserted=1.0)}
    MetaTrainer(config((), tmp_path, **settings)).run(until=1)
    resumed = MetaTrainer(config((), tmp_path, **settings))
    assert resumed.step == 1
    (kept,) = (one for states in resumed.streams[0].buffer.classes for one in states)
    assert len(kept.task.scene) == len("synthetic:") + 19


def test_a_request_to_stop_keeps_the_step_at_hand(scenes, tmp_path, monkeypatch):
    straight = MetaTrainer(config(scenes, tmp_path / "straight"))
    straight.run()
    stopped = MetaTrainer(config(scenes, tmp_path / "stopped"))
    step = stopped._meta_step

    def asked_in_the_second():
        if stopped.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    monkeypatch.setattr(stopped, "_meta_step", asked_in_the_second)
    with pytest.raises(KeyboardInterrupt, match="stopped after meta-step 2 of 6"):
        stopped.run()
    resumed = MetaTrainer(config(scenes, tmp_path / "stopped"))
    assert resumed.step == 2
    resumed.run()
    for name in ("straight", "stopped"):
        assert load_weights(str(tmp_path / name / "weights.safetensors")).metadata["meta_steps"] == 6
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("straight", "stopped")]
    assert files[0] == files[1]


def test_weights_that_a_kill_left_behind_their_checkpoint_are_written_again(scenes, tmp_path):
    MetaTrainer(config(scenes, tmp_path, steps=2)).run()
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"of another step")
    MetaTrainer(config(scenes, tmp_path, steps=2)).run()
    assert weights.read_bytes() == whole


def test_the_log_goes_on_where_the_checkpoint_is(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("splatopt.meta.training._LOG_EVERY", 1)
    monkeypatch.setattr("splatopt.meta.training.validate", lambda *_, **__: {0: 1.0})
    settings = {"validation": ("somewhere",), "validate_every": 3}
    MetaTrainer(config(scenes, tmp_path, **settings)).run(until=3)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [(line["kind"][0], line["step"]) for line in lines] == [("v", 0), ("t", 1), ("t", 2), ("t", 3), ("v", 3)]
    # Killed before the validation, and then once more in a line of a step that was not kept.
    log.write_text("".join(f"{line}\n" for line in whole.splitlines()[:-1]) + '{"kind": "train", "step": 4}\n{"kind"')
    MetaTrainer(config(scenes, tmp_path, **settings)).run(until=3)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 1, 2, 3, 3]


def test_a_request_to_stop_in_a_validation_ends_it_and_it_is_done_at_last(scenes, tmp_path, monkeypatch):
    validated = []

    def asked_in_the_second(*given, stopping, **named):
        validated.append(1)
        if len(validated) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return None if stopping() else {10: 12.5}

    monkeypatch.setattr("splatopt.meta.training.validate", asked_in_the_second)
    settings = {"validation": ("somewhere",), "steps": 2, "streams": 1, "validate_every": 1, "save_every": 100}
    for done in ([0], [0, 1, 2]):
        trainer = MetaTrainer(config(scenes, tmp_path, **settings))
        if len(done) == 1:
            with pytest.raises(KeyboardInterrupt, match="stopped after meta-step 1 of 2"):
                trainer.run()
            assert latest_checkpoint(tmp_path / "checkpoints")[0].step == 1
        else:
            trainer.run()
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == done


@pytest.mark.parametrize("moment", ["save", "_meta_step"])
def test_a_request_to_stop_before_the_last_validation_is_told(scenes, tmp_path, monkeypatch, moment):
    trainer = MetaTrainer(config(scenes, tmp_path, validation=("somewhere",), steps=1, streams=1))
    answers, asked = iter([{10: 1.0}, None]), getattr(trainer, moment)

    def request():  # in a step it is noticed by the end of that
        trainer.requests.append(signal.SIGTERM)
        asked()

    monkeypatch.setattr("splatopt.meta.training.validate", lambda *_, **__: next(answers))
    monkeypatch.setattr(trainer, moment, request)
    with pytest.raises(KeyboardInterrupt, match="stopped after meta-step 1 of 1"):
        trainer.run()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_command_that_is_stopped_says_how_to_go_on(scenes, tmp_path, processes):
    run = tmp_path / "run"
    words = ["meta-train", "--data", str(Path(scenes[0]).parent), "--processes", processes, "--out", str(run)]
    words += ["--steps", "100000", "--save-every", "1", *BRIEF_STEPS]
    environment = os.environ | {"PYTHONPATH": str(Path(splatopt.__file__).resolve().parents[1])}
    command = [sys.executable, "-m", "splatopt", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "step-000001").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130
    kept = [path.name for path in sorted((run / "checkpoints").iterdir())][-1]
    assert "Traceback" not in said
    first, last = [line for line in said.splitlines() if line.startswith("splatopt: ")]
    assert first == "splatopt: stopping after the step at hand; once more to end at once"
    assert last.startswith("splatopt: stopped")
    assert f"; {kept} is kept; go on with: " in last
    assert last.endswith(f"splatopt {shlex.join(words)}")
    for stream in (run / "streams").iterdir():
        assert (stream / kept).is_dir()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(scenes, tmp_path):
    settings = {
        "data": Path(scenes[0]).parent,
        "steps": 4,
        "streams": 3,
        "save_every": 4,
        "tasks": TASKS,
        "episodes": EPISODES,
        "size": "tiny",
    }
    for processes in (1, 2):
        assert meta_train(MetaTrainOptions(out=tmp_path / str(processes), processes=processes, **settings)) == 0
    one, two = (load_weights(str(tmp_path / name / "weights.safetensors")).network for name in ("1", "2"))
    for (name, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not torch.equal(one.sizes.weight, torch.zeros_like(one.sizes.weight))


def test_the_gradient_of_episodes_leads_down(scenes):
    network = LearnedNetwork(SHAPE)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        result = run_episode(
            network, InnerRates(), begin(scenes, network), 3, LossOptions(), torch.Generator().manual_seed(0)
        )
        losses.append(result.meta_loss)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05, losses
    assert min(losses) == min(losses[-5:]), losses


def test_the_log_holds_validations_by_meta_steps_and_hours(scenes, tmp_path, monkeypatch):
    from splatopt.meta import training

    monkeypatch.setattr(training, "validate", lambda *args, **named: {10: 12.5})
    trainer = MetaTrainer(config(scenes, tmp_path / "run", validation=scenes, steps=2, streams=1, validate_every=1))
    seen = []
    trainer.run(seen.append)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == seen
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [0, 1, 2]
    assert all(line["psnr"] == {"10": 12.5} and line["hours"] >= 0 for line in lines)


# ---- bad input


def test_meta_train_refuses_what_cannot_be(scenes, tmp_path):
    folder = Path(scenes[0]).parent
    for options, message in (
        ({"size": "tinny"}, "did you mean tiny"),
        ({"processes": 0}, "--processes"),
        ({"data": tmp_path}, "synthetic scenes"),
        ({"data": folder, "validation": folder}, "same scene"),
        ({"steps": 0}, "steps"),
        ({"until": -5}, "--until must be at least 0, got -5"),
        ({"validation_scenes": 0}, "--validation-scenes must be at least 1, got 0"),
        ({"validation_scenes": -1}, "--validation-scenes must be at least 1, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seed": -1}, "seed must lie between 0 and 2,147,483,647, got -1"),
        ({"seed": 2**31}, "seed must lie"),
        ({"processes": 3, "streams": 2, "data": folder}, "--streams"),
    ):
        with pytest.raises(InputError, match=message):
            meta_train(MetaTrainOptions(out=tmp_path / "run", **options))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="something else"):
        meta_train(MetaTrainOptions(out=tmp_path / "mine", data=folder))


def test_scenes_that_were_made_alike_are_not_validated_on(scenes, tmp_path, monkeypatch):
    folder = Path(scenes[0]).parent
    monkeypatch.setattr(command_module, "MetaTrainer", lambda *args: pytest.fail("it was begun"))
    again, seen_otherwise, others = make_scenes(tmp_path / "again"), replace(SCENES, views=7), tmp_path / "others"
    for _ in write_scenes(tmp_path / "otherwise", 2, 3, seen_otherwise):
        pass
    for _ in write_scenes(others, 2, 4, SCENES):
        pass
    for validation in (Path(again[0]).parent, tmp_path / "otherwise"):
        with pytest.raises(InputError, match="same scene as .*another --seed") as caught:
            meta_train(MetaTrainOptions(out=tmp_path / "run", data=folder, validation=validation))
        assert "\n" not in str(caught.value)
    (validation / "scene-0000" / "procedural.json").write_text("{")
    with pytest.raises(InputError, match=r"scene-0000/procedural\.json cannot be read: it is not JSON"):
        command_module._check_others(scenes, scene_folders(validation))
    for scene in ("scene-0000", "scene-0001"):
        (validation / scene / "procedural.json").unlink()
    for unlike in (others, validation):
        command_module._check_others(scenes, scene_folders(unlike))


def test_another_run_in_the_same_folder_is_refused(scenes, tmp_path):
    folder = Path(scenes[0]).parent
    settings = {"out": tmp_path / "run", "data": folder, "tasks": TASKS, "episodes": EPISODES, "save_every": 1}
    meta_train(MetaTrainOptions(steps=1, **settings))
    with pytest.raises(InputError, match="seed"):
        meta_train(MetaTrainOptions(steps=1, seed=4, **settings))
    meta_train(MetaTrainOptions(steps=2, **settings))
    assert load_weights(str(tmp_path / "run" / "weights.safetensors")).metadata["meta_steps"] == 2


def test_a_run_is_the_same_by_any_name_of_its_folders(scenes, tmp_path, monkeypatch):
    settings = {"data": Path(scenes[0]).parent, "tasks": TASKS, "episodes": EPISODES, "save_every": 1}
    meta_train(MetaTrainOptions(out=tmp_path / "run", steps=1, **settings))
    monkeypatch.chdir(tmp_path)
    settings["data"] = Path(os.path.relpath(settings["data"]))
    meta_train(MetaTrainOptions(out=Path("run"), steps=2, **settings))
    assert load_weights("run/weights.safetensors").metadata["meta_steps"] == 2


def three_views(folder):
    """Write a scene that is refused when it is first looked at."""
    for _ in write_scenes(folder, 1, 3, replace(SCENES, views=3)):
        pass
    return folder


def test_a_start_that_failed_does_not_block_the_corrected_command(scenes, tmp_path):
    settings = {"data": Path(scenes[0]).parent, "steps": 1, "tasks": TASKS, "episodes": EPISODES}
    out, few = tmp_path / "run", three_views(tmp_path / "few")
    for wrong, message in (
        ({"processes": 3}, "--streams"),
        ({"device": "cuda:99"}, "cuda"),
        ({"data": few}, "3 views"),
    ):
        with pytest.raises(InputError, match=message):
            meta_train(MetaTrainOptions(out=out, **(settings | wrong)))
        assert not out.exists() or not any(out.iterdir()), wrong
    assert meta_train(MetaTrainOptions(out=out, **settings)) == 0
    assert (out / "config.json").exists()


def test_a_start_is_forgotten_only_where_it_left_nothing(tmp_path):
    for name in ("config.json", "log.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "streams").mkdir()
    command_module._forget_start(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "streams").rmdir()
    command_module._forget_start(tmp_path)
    assert not list(tmp_path.iterdir())
    command_module._forget_start(tmp_path / "none")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/log.jsonl"), "No space left on device: run/log.jsonl"),
        (OSError("run/log.jsonl: odd"), "run/log.jsonl: odd"),
        (InputError("three views"), "three views"),
    ],
)
def test_a_process_leaves_what_ends_it_to_its_parent(tmp_path, monkeypatch, error, said):
    def fails(*_):
        raise error

    monkeypatch.setattr(command_module, "_work", fails)
    for folder in (tmp_path, tmp_path / "full"):
        with pytest.raises(SystemExit) as ended:
            command_module._work_for_parent(1, config((), tmp_path), {}, 2, str(folder), 0)
        assert ended.value.code == 2
    assert (tmp_path / "refusal-1").read_text() == said


@pytest.mark.slow
def test_what_a_process_refuses_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    words = ["meta-train", "--data", str(three_views(tmp_path / "few")), "--processes", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has 3 views" in line
    assert not any((tmp_path / "run").iterdir())


def test_sizes_and_scenes_are_what_they_say(scenes):
    counts = {size: sum(p.numel() for p in LearnedNetwork(shape).parameters()) for size, shape in SIZES.items()}
    assert counts["tiny"] < counts["small"] < counts["base"]
    assert SIZES["base"].width == 256
    assert counts["base"] * 2 < 5 * 2**20, "as float16 it can be shipped; what is shipped is weighed in test_learned"
    assert len(scene_folders(Path(scenes[0]).parent)) == 2


@pytest.mark.slow
def test_processes_end_with_the_command_that_began_them(scenes, tmp_path):
    command = [sys.executable, "-m", "splatopt", "meta-train", "--data", str(Path(scenes[0]).parent)]
    command += ["--processes", "2", "--out", str(tmp_path / "run"), "--steps", "100000", "--save-every", "1"]
    command += BRIEF_STEPS
    source = Path(splatopt.__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(source)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "step-000001").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        run.kill()
        run.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    checkpoint, _ = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step >= 1
