"""A run's own files may be damaged in any way: each command says in one sentence which, or takes what is whole."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from faults.run_damage import DEEP, damaged_json, damaged_tensors, sign
from faults.run_file_campaign import campaign, damage
from faults.run_targets import Workshop, in_one_process, run_quietly
from splatopt.cli import _COMMANDS, main
from splatopt.core import reading
from splatopt.optim.bridge import TorchOptimizer
from splatopt.optim.first_order import Adam

ALL = ("eval", "render", "export", "report", "train")


def by_all(cases, *names: str, others: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of a case and a command: all commands for ``names``, some for the rest."""
    return [(name, command) for name in cases for command in (ALL if name in names else others)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Iterator[Workshop]:
    with in_one_process():
        yield Workshop(tmp_path_factory.mktemp("workshop"), ("adam",), ("adam",), others=False)


@pytest.fixture
def run(workshop) -> Path:
    """A finished run that a test may damage; its newest checkpoint is that of step 4."""
    return workshop.fresh(workshop.targets["train adam"])


def call(workshop: Workshop, command: str, target: str = "train adam") -> tuple[int, str]:
    """Call the last of a target's commands of this name; returns its code and what it said."""
    words = [one for one in workshop.targets[target].commands if one[0] == command][-1]
    code, said = run_quietly(words)
    assert sum(line.startswith("splatopt: ") and "warning" not in line for line in said.splitlines()) == (code == 2)
    return code, said


def change_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_tensors(folder: Path, change) -> None:
    """Change the tensors of a checkpoint, and have its numbers say that they are whole."""
    path = folder / "tensors.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    sign(folder / "checkpoint.json", path)


# ---------------------------------------------------------------------- one damage at a time

CONFIGS = {
    "nested": (lambda path: path.write_text("[" * DEEP), "config.json cannot be read: it is nested more than 48 deep"),
    "a number for a name": (lambda v: v.update(view_choice=1), "view_choice must be shuffled or farthest, got 1"),
    "a list for a text": (lambda v: v.update(renderer=["native"]), "renderer must be a text, got a list of 1"),
    "a capture of a number": (lambda v: v.update(capture=3), "capture must be a text, got 3"),
    "a format of a list": (lambda v: v.update(format=["x"]), "config.json names the format a list of 1"),
    "an option refused": (lambda v: v["optimizer_options"].update(beta1=-1), "beta1 must be at least 0 and below 1"),
    "an option of text": (lambda v: v["optimizer_options"].update(beta1="x"), "beta1 must be a number, got 'x'"),
    "a setting refused": (lambda v: v.update(seed=-1), "--seed must be at least 0, got -1"),
    "other bands": (lambda v: v.update(sh_degree=3), "the scene holds colours of degree 1, and the run's config"),
    "no capture": (lambda v: v.pop("capture"), "capture is missing"),
    "letters that act": (lambda v: v.update({"\x1b[31m" * 99: 1}), "there is no setting '\\x1b[31m"),
}


@pytest.mark.parametrize(
    ("name", "command"), by_all(CONFIGS, "nested", "a number for a name", "other bands", others=("eval",))
)
def test_a_damaged_configuration_is_named(workshop, run, name, command):
    change, said = CONFIGS[name]
    if name == "nested":
        change(run / "config.json")
    else:
        change_json(run / "config.json", change)
    code, told = call(workshop, command)
    assert code == 2
    assert said in told
    assert "config.json" in told
    assert len(told.splitlines()) == 1
    assert len(told) < 800


SCALARS = {
    "null": (lambda v: v.update(scalars=None), "scalars must be an object, got null"),
    "a sum of text": (lambda v: v["scalars"]["sums"].update(count="many"), "sums: count must be a whole number from 0"),
    "steps of text": (lambda v: v["scalars"]["optimizer"].update(steps="four"), "steps must be a number, got 'four'"),
    "steps below zero": (lambda v: v["scalars"]["optimizer"].update(steps=-4), "steps must be a whole number from 0"),
    "steps in parts": (lambda v: v["scalars"]["optimizer"].update(steps=1.5), "steps must be a whole number from 0"),
    "seconds below zero": (lambda v: v["scalars"].update(seconds=-1), "seconds must be a number of a reasonable size"),
    "a stage of text": (lambda v: v["scalars"].update(stage="one"), "stage must be a whole number from 0"),
    "another step": (lambda v: v.update(step=3), "step must be 4, as its folder says, got 3"),
    "no step": (lambda v: v.pop("step"), "step must be a whole number from 0"),
    "no sum": (lambda v: v["scalars"]["sums"].pop("psnr"), "sums must be the sums of loss, psnr, count"),
}


@pytest.mark.parametrize("name", SCALARS)
def test_damaged_numbers_of_a_checkpoint_are_named_or_the_one_before_is_used(workshop, run, name):
    change, said = SCALARS[name]
    newest = run / "checkpoints" / "step-000004"
    change_json(newest / "checkpoint.json", change)
    code, told = call(workshop, "train")
    assert said in told
    assert "step-000004" in told
    assert (code, "using the one before" in told) in ((0, True), (2, False))
    assert ((code == 2) == name.startswith("steps ") and name != "steps of text") or code == 0


TENSORS = {
    "another": (lambda t: t.update({"cloud.another": torch.ones(3)}), "the scene holds a tensor 'another'"),
    "one missing": (lambda t: t.pop("cloud.quats"), "the scene lacks the tensor 'quats'"),
    "double": (lambda t: t.update({"cloud.means": t["cloud.means"].double()}), "means of the scene must hold rows of"),
    "other rows": (lambda t: t.update({"cloud.sh_dc": t["cloud.sh_dc"][:-1]}), "sh_dc must have shape"),
    "infinite": (lambda t: t["cloud.means"].fill_(float("inf")), "means holds NaN or infinite values"),
    "no rows": (lambda t: t.update({"cloud.quats": torch.zeros(0, 4)}), "quats of the scene must hold rows of"),
    "other bands": (lambda t: t.update({"cloud.sh_rest": torch.zeros(24, 5, 3)}), "0, 3, 8 or 15 coefficients"),
}


@pytest.mark.parametrize(("name", "command"), by_all(TENSORS, "another", others=("eval", "train")))
def test_damaged_tensors_of_a_scene_are_named_or_the_one_before_is_used(workshop, run, name, command):
    change, said = TENSORS[name]
    change_tensors(run / "checkpoints" / "step-000004", change)
    (run / "scene.ply").unlink()
    code, told = call(workshop, command)
    assert code == 0
    assert said in told
    assert "step-000004" in told
    assert "using the one before" in told


def test_where_no_checkpoint_is_whole_the_damaged_one_is_named(workshop, run):
    (run / "scene.ply").unlink()
    for folder in (run / "checkpoints").iterdir():
        change_tensors(folder, TENSORS["another"][0])
    for command in ALL:
        code, told = call(workshop, command)
        assert code == 2
        assert f"{run / 'checkpoints' / 'step-000004' / 'tensors.safetensors'}: the scene holds a tensor" in told


STATES = {
    "an order twice": (lambda t: t.update(sampler=torch.tensor([1, 1])), "sampler must hold numbers of views"),
    "an order of text": (lambda t: t.update(sampler=torch.zeros(3, dtype=torch.uint8)), "sampler must hold numbers"),
    "a generator cut": (
        lambda t: t.update(generator=t["generator"][:-1]),
        "no state of a random generator",
    ),
    "a generator of 255": (lambda t: t["generator"].fill_(255), "no state of a random generator"),
    "a generator of floats": (lambda t: t.update(generator=t["generator"].float()), "no state of a random generator"),
    "a stranger": (lambda t: t.update(stranger=torch.ones(1)), "holds a tensor 'stranger'"),
    "moments cut": (
        lambda t: t.update({"optimizer.exp_avg.means": t["optimizer.exp_avg.means"][1:]}),
        "'optimizer.exp_avg.means' must be (24, 3) torch.float32, got (23, 3) torch.float32",
    ),
    "moments of NaN": (lambda t: t["optimizer.exp_avg.means"].fill_(float("nan")), "lower the optimizer's rates"),
    "no moments": (lambda t: t.pop("optimizer.exp_avg.means"), "exp_avg.means must be (24, 3)"),
    "a view beyond": (lambda t: t.update(sampler=torch.tensor([99])), "more training views than"),
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_run_goes_on_from_is_checked(workshop, run, name):
    change, said = STATES[name]
    change_tensors(run / "checkpoints" / "step-000004", change)
    code, told = call(workshop, "train")
    assert said in told
    assert (code, "using the one before" in told) in ((0, True), (2, False))


FITS = {
    "a loss of text": (lambda v: v["scalars"].update(loss="low"), "loss must be a list"),
    "a loss of one": (lambda v: v["scalars"].update(loss=[1]), "loss must be a sum and a count"),
    "a place below zero": (lambda v: v["scalars"]["sampler"].update(position=-1), "position must be a whole number"),
    "a seed of text": (lambda v: v["scalars"]["sampler"].update(seed="x"), "seed must be a whole number"),
    "groups in parts": (lambda v: v["scalars"]["optimizer"].update({"/groups[]": 7}), "incomplete: it lacks '/groups'"),
}


@pytest.mark.parametrize("name", FITS)
def test_what_a_fit_goes_on_from_is_checked(workshop, name):
    change, said = FITS[name]
    fit = workshop.fresh(workshop.targets["fit adam"])
    change_json(fit / "checkpoints" / "step-000004" / "checkpoint.json", change)
    code, told = call(workshop, "fit", "fit adam")
    assert said in told
    assert (code, "using the one before" in told) in ((0, True), (2, False))


MOMENTS = {
    "a moment missing": lambda t: t.pop(next(name for name in t if name.endswith("/exp_avg"))),
    "a moment in halves": lambda t: t.update({n: v.half() for n, v in t.items() if n.endswith("/exp_avg")}),
    "a moment cut": lambda t: t.update({n: v[:-1] for n, v in t.items() if n.endswith("/exp_avg_sq")}),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_the_state_of_a_torch_optimizer_is_checked_before_its_step(workshop, name):
    fit = workshop.fresh(workshop.targets["fit adam"])
    change_tensors(fit / "checkpoints" / "step-000004", MOMENTS[name])
    code, told = call(workshop, "fit", "fit adam")
    assert code == 2
    assert "step-000004" in told
    assert "the optimizer's state" in told


def test_damaged_scores_are_written_anew_by_eval_and_named_by_all_others(workshop, run):
    path = run / "eval.json"
    path.write_text('{"psnr": "high"}')
    for command in ("report", "train"):
        code, told = call(workshop, command)
        assert code == 2
        assert f"{path}: psnr must be a number" in told
        assert "splatopt eval" in told
    code, told = call(workshop, "eval")
    assert code == 0
    assert "warning" in told
    assert str(path) in told
    assert call(workshop, "report")[0] == 0


def test_a_damaged_line_of_metrics_is_named_and_a_cut_one_left_out(workshop, run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"ste')
    assert call(workshop, "report")[0] == 0
    path.write_bytes(whole.replace(b'"step": 2', b'"step": null', 1))
    for command in ("report", "train"):
        code, told = call(workshop, command)
        assert code == 2
        assert f"{path}, line 2: step must be a whole number" in told


# ---------------------------------------------------------------------- many damages


def test_the_same_seed_does_the_same_damage():
    data = json.dumps({"a": [1, 2, {"b": "c"}], "d": None}).encode()
    tensors = safetensors.torch.save({"x": torch.ones(3, 2), "y": torch.arange(4)})
    first, again = ([damaged_json(data, random.Random(k)) for k in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 30
    first, again = ([damaged_tensors(tensors, random.Random(k)) for k in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 30


def test_many_damages_end_in_a_sentence(workshop):
    counts = campaign(40, 0, workshop=workshop)
    assert counts.mutations == 40
    assert counts.refused > 10
    assert not counts.failures, "\n\n".join(counts.failures)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_damages_of_runs_of_every_kind_end_in_a_sentence():
    counts = campaign(300, 1, seconds=300)
    assert {name.partition(" ")[0] for name in counts.targets} == {"train", "fit", "bench", "meta-train"}
    assert counts.refused > 0.2 * counts.commands
    assert not counts.failures, "\n\n".join(counts.failures)
    assert counts.peak_mebibytes < 4096


def test_a_campaign_notices_a_trace(workshop, monkeypatch):
    def broken(*_: object) -> None:
        raise TypeError("planted")

    monkeypatch.setattr(reading, "_check_form", broken)
    counts = campaign(3, 0, workshop=workshop)
    assert counts.traces > 0
    assert "planted" in counts.failures[0]


# ---------------------------------------------------------------------- faults of our own keep their trace

WORDS = {
    "train": ["train", "capture", "--out", "new"],
    "eval": ["eval", "run"],
    "render": ["render", "run", "--path", "test"],
    "prune": ["prune", "run", "--to", "5"],
    "export": ["export", "run", "x.ply"],
    "convert": ["convert", "run/scene.ply", "x.splat"],
    "view": ["view", "run/scene.ply", "--view-port", "0"],
    "demo": ["demo", "--steps", "2", "--out", "demo"],
    "report": ["report", "run"],
    "bench": ["bench", "--scenes", "capture", "--optimizers", "adam", "--out", "new"],
    "data": ["data", "make", "--out", "new"],
    "meta-train": ["meta-train", "--out", "new", "--steps", "1"],
    "fit": ["fit", "image.png", "--out", "new"],
    "diagnose": ["diagnose", "field", "--out", "new"],
    "inspect": ["inspect", "capture"],
    "poses": ["poses", "capture", "--out", "new"],
    "doctor": ["doctor"],
}
PLANTED = {
    "train": ("splatopt.train.loop", "open_training"),
    "eval": ("splatopt.train.run", "latest_checkpoint"),
    "render": ("splatopt.train.run", "latest_checkpoint"),
    "prune": ("splatopt.train.repair", "check_memory"),
    "export": ("splatopt.train.run", "scene_of"),
    "convert": ("splatopt.commands.convert", "load_scene"),
    "view": ("splatopt.commands.view", "load_scene"),
    "demo": ("splatopt.commands.demo", "run_demo"),
    "report": ("splatopt.train.run", "read_evaluation"),
    "bench": ("splatopt.bench.session", "make_cells"),
    "data": ("splatopt.data.synthetic.folder", "build_scene"),
    "meta-train": ("splatopt.meta.training", "find_backend"),
    "fit": ("splatopt.fit.setup", "load_image"),
    "diagnose": ("splatopt.report.diagnosis", "dense_hessian"),
    "inspect": ("splatopt.commands.inspect", "inspect_capture"),
    "poses": ("splatopt.commands.poses", "pose_images"),
    "doctor": ("splatopt.commands.doctor", "findings"),
}


def planted(*_: object, **__: object) -> None:
    raise TypeError("planted")


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_a_fault_of_our_own_ends_every_command_in_a_trace(workshop, run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    Path("capture").symlink_to(workshop.capture)
    Path("image.png").symlink_to(workshop.image)
    monkeypatch.setattr(".".join(PLANTED[command]), planted)
    with pytest.raises(TypeError, match="planted"):
        main(WORDS[command])


@pytest.mark.parametrize(("target", "command"), [("train adam", "train"), ("fit adam", "fit")])
@pytest.mark.parametrize("place", ["core.typed.Fields.count", "core.checkpoint.parse_tensors", "optim.load_state"])
def test_a_fault_of_our_own_on_the_way_back_to_a_run_keeps_its_trace(workshop, monkeypatch, target, command, place):
    owner = {"train": Adam, "fit": TorchOptimizer}[command]
    workshop.fresh(workshop.targets[target])
    if place == "optim.load_state":
        monkeypatch.setattr(owner, "load_state", planted)
    else:
        monkeypatch.setattr(f"splatopt.{place}", planted)
    with pytest.raises(TypeError, match="planted"):
        call(workshop, command, target)


def test_damage_is_told_in_words(workshop):
    target = workshop.targets["train adam"]
    told = set()
    for number in range(30):
        workshop.fresh(target)
        told.add(damage(workshop, target, random.Random(number)).split("/")[0].split(" ")[0])
    assert told >= {"config.json", "eval.json", "metrics.jsonl", "checkpoints"}
