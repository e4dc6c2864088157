"""Meta-training: the gradient of an episode, the buffer, rollouts, going on, and several processes."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import splatopt
from meta.clouds import stirred
from meta.toys import EPISODES, PRACTICE, SHAPE, make_lane, make_scenes
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.meta import episode as episode_module
from splatopt.meta import lane as lane_module
from splatopt.meta.buffer import DEPTHS, CheckpointBuffer
from splatopt.meta.command import MetaTrainOptions, meta_train
from splatopt.meta.episode import LossOptions, Situation, evaluate_step, roll_out, run_episode
from splatopt.meta.inner import GROUPS, InnerRates
from splatopt.meta.lane import Variant
from splatopt.meta.network import SIZES, LearnedNetwork
from splatopt.meta.practice import PracticeOptions, draw_practice, kept_capture, made_scene, scene_folders
from splatopt.meta.training import MetaTrainConfig, MetaTrainer
from splatopt.meta.weights import load_weights
from splatopt.raster.render import make_renderer
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("made"))


@pytest.fixture
def network():
    return stirred(LearnedNetwork(SHAPE), size=0.05)


def begin(scenes, network, seed=0, options=PRACTICE):
    generator = torch.Generator().manual_seed(seed)
    return Situation.begin(draw_practice(scenes[0], make_renderer("auto", 1), options, generator), network)


# ---- one episode


class Replayed:
    """Shows the network the gradients of the first run again, whatever they have become."""

    def __init__(self, monkeypatch, objective):
        self.monkeypatch, self.objective = monkeypatch, objective
        self.original = type(objective).gradient
        self.real = episode_module.evaluate_step
        self.shown, self.number, self.replays = [], 0, False
        monkeypatch.setattr(type(objective), "gradient", lambda objective, batch: self.copied(batch))
        monkeypatch.setattr(episode_module, "evaluate_step", self.step)

    def copied(self, batch):
        evaluation = self.original(self.objective, batch)
        return replace(evaluation, gradient={name: value.clone() for name, value in evaluation.gradient.items()})

    def step(self, network, rates, situation, parameters, views):
        if not self.replays:
            step, loss, gradient = self.real(network, rates, situation, parameters, views)
            self.shown.append(gradient)
            return step, loss, gradient
        here = self.copied(views)
        told = replace(here, gradient=self.shown[self.number])
        self.number += 1
        with self.monkeypatch.context() as patch:
            patch.setattr(type(self.objective), "gradient", lambda objective, batch: told)
            step, loss, _ = self.real(network, rates, situation, parameters, views)
        return step, loss, dict(here.gradient)


def small_practice(scene):
    """Twelve Gaussians in float64, large enough to overlap."""
    renderer = make_renderer("reference", 1)
    practice = draw_practice(scene, renderer, PRACTICE, torch.Generator().manual_seed(1))
    before = practice.objective
    cloud = GaussianCloud(**{name: value[:12].double() for name, value in before.cloud.tensors.items()})
    cloud.log_scales += 1.0
    objective = PhotometricObjective(
        cloud, before.cameras, before.images, renderer, before.options, length_scale=before.length_scale
    )
    return replace(practice, objective=objective)


def test_the_gradient_of_an_episode_is_that_of_its_meta_loss(scenes, monkeypatch):
    """Against finite differences in float64, the gradients that the network is shown held as they were."""
    network = stirred(LearnedNetwork(SHAPE), size=0.05).double()
    practice = small_practice(scenes[0])
    cloud = practice.objective.cloud
    start = {name: value.clone() for name, value in cloud.tensors.items()}
    rates = InnerRates(means=1e-3, log_scales=1e-2, quats=1e-2, logit_opacities=1e-2, sh_dc=1e-2, sh_rest=1e-3)
    replayed = Replayed(monkeypatch, practice.objective)

    def run():
        for name, value in cloud.tensors.items():
            value.copy_(start[name])
        replayed.number = 0
        situation, generator = Situation.begin(practice, network), torch.Generator().manual_seed(2)
        return run_episode(network, rates, situation, 2, LossOptions(delta_weight=0.0), generator, delta_penalty=False)

    assert run() is not None
    replayed.replays = True
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    checked = 0
    for name, parameter in network.named_parameters():
        flat = parameter.data.view(-1)
        place = int(gradients[name].abs().view(-1).argmax())
        value, step = float(flat[place]), 1e-4
        values = []
        for moved in (value + step, value - step):
            flat[place] = moved
            values.append(run().meta_loss)
        flat[place] = value
        difference = (values[0] - values[1]) / (2 * step)
        expected = float(gradients[name].view(-1)[place])
        # What the network is told of the loss is not held, and nothing is differentiated through it.
        assert difference == pytest.approx(expected, rel=2e-2, abs=2e-5), name
        checked += abs(expected) > 1e-4
    assert checked >= 8


def test_an_episode_moves_the_cloud_and_leaves_no_graph(scenes, network):
    situation = begin(scenes, network)
    before = {name: value.clone() for name, value in situation.practice.objective.parameters.items()}
    result = run_episode(network, InnerRates(), situation, 6, LossOptions(), torch.Generator().manual_seed(0))
    assert result is not None
    assert len(result.target_loss) == 2  # the last third
    assert situation.state.steps == 6
    assert not situation.state.latent.requires_grad
    for name, value in situation.practice.objective.parameters.items():
        assert not value.requires_grad
        assert not torch.equal(value, before[name]) or name == "sh_rest"
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_an_episode_takes_the_steps_of_a_rollout(scenes, network):
    one, two = begin(scenes, network), begin(scenes, network)
    assert roll_out(network, InnerRates(), one, 4, torch.Generator().manual_seed(9))
    run_episode(network, InnerRates(), two, 4, LossOptions(), torch.Generator().manual_seed(9))
    for name in GROUPS:
        torch.testing.assert_close(
            one.practice.objective.parameters[name], two.practice.objective.parameters[name], rtol=1e-6, atol=1e-7
        )
    torch.testing.assert_close(one.state.latent, two.state.latent)


def test_the_meta_loss_is_of_the_average_of_the_iterates(scenes, network):
    # Later than what an average remembers, an episode of six steps is judged at their plain mean.
    situation = begin(scenes, network)
    situation.state.age += 1000
    iterates = []
    twin = begin(scenes, network)
    twin.state.age += 1000
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        assert roll_out(network, InnerRates(), twin, 1, generator)
        iterates.append({name: value.clone() for name, value in twin.practice.objective.parameters.items()})
    for name, value in twin.practice.objective.parameters.items():
        value.copy_(torch.stack([iterate[name] for iterate in iterates]).mean(dim=0))
    expected = twin.practice.objective.gradient(twin.practice.targets).facts["psnr"]
    result = run_episode(network, InnerRates(), situation, 6, LossOptions(), torch.Generator().manual_seed(4))
    assert result.psnr == pytest.approx(expected, abs=1e-3)
    losses = [twin.practice.objective.value((view,)) for view in twin.practice.targets]
    assert result.target_loss[-1] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_penalties_add_to_the_gradient(scenes, network):
    hot = InnerRates(log_scales=3.0, logit_opacities=4.0)  # so that views that had become better do get worse

    def gradient(options, penalty=True):
        network.zero_grad()
        generator, situation = torch.Generator().manual_seed(3), begin(scenes, network)
        assert roll_out(network, InnerRates(), situation, 20, generator)
        run_episode(network, hot, situation, 6, options, generator, delta_penalty=penalty)
        return torch.cat([parameter.grad.reshape(-1).clone() for parameter in network.parameters()])

    plain = gradient(LossOptions(inputs_weight=0, stability_weight=0, delta_weight=0))
    for changed in ({"inputs_weight": 1.0}, {"stability_weight": 5.0}, {"delta_weight": 1.0}):
        options = LossOptions(**({"inputs_weight": 0, "stability_weight": 0, "delta_weight": 0} | changed))
        assert not torch.allclose(gradient(options), plain), changed
    late = LossOptions(inputs_weight=0, stability_weight=0, delta_weight=1.0)
    assert torch.equal(gradient(late, penalty=False), plain)


def test_numbers_that_break_down_end_an_episode_without_a_gradient(scenes, network):
    situation = begin(scenes, network)
    situation.practice.objective.parameters["means"][0, 0] = math.nan
    network.zero_grad()
    assert run_episode(network, InnerRates(), situation, 2, LossOptions(), torch.Generator()) is None
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


# ---- the buffer


def situation_of(scenes, network, steps):
    situation = begin(scenes, network)
    situation.state.steps = steps
    return situation


def test_the_buffer_keeps_by_depth_and_the_longest_there_leaves(scenes, network):
    generator = torch.Generator().manual_seed(0)
    buffer = CheckpointBuffer(capacity=2, deepest=1000, push=0.5)
    young = [situation_of(scenes, network, steps) for steps in (1, 2, 3)]
    for situation in young:
        assert buffer.put(situation, None, generator)
    assert buffer.classes[0] == young[1:]
    deep = [situation_of(scenes, network, DEPTHS[1] + k) for k in range(2)]
    for situation in deep:
        assert buffer.put(situation, 1, generator)
    assert buffer.classes[2] == deep
    tries = [buffer.put(situation_of(scenes, network, DEPTHS[1]), 1, generator) for _ in range(40)]
    assert 8 <= sum(tries) <= 32, "a newcomer is let in half of the time"
    assert buffer.put(situation_of(scenes, network, DEPTHS[1]), 2, generator), "one that was taken from there goes back"
    assert not buffer.put(situation_of(scenes, network, 1001), 2, generator)
    assert len(buffer.classes[2]) == 2


def test_the_buffer_draws_from_every_depth_alike(scenes, network):
    generator = torch.Generator().manual_seed(0)
    buffer = CheckpointBuffer(capacity=4)
    for steps in (1, 2, 3, DEPTHS[1]):
        buffer.put(situation_of(scenes, network, steps), None, generator)
    drawn = []
    for _ in range(60):
        situation, place = buffer.take(generator)
        drawn.append(place)
        buffer.put(situation, place, generator)
    assert set(drawn) == {0, 2}
    assert 18 <= drawn.count(2) <= 42


# ---- lanes and variants


def test_episodes_look_as_far_ahead_as_their_scene_is_on_its_way(scenes, network, monkeypatch):
    taken = []

    def noted(network, rates, situation, steps, *arguments, **more):
        taken.append((situation.state.steps, steps))
        return run_episode(network, rates, situation, steps, *arguments, **more)

    monkeypatch.setattr(lane_module, "run_episode", noted)
    lane = make_lane(scenes, episodes=replace(EPISODES, unroll=8, outlook=3))
    for _ in range(25):
        lane.run(network)
    assert {steps for age, steps in taken if age == 0} == {2, 3}
    for age, steps in taken:
        assert min(8, age + 3) / 2 <= steps <= min(8, age + 3)
    assert max(steps for _, steps in taken) > 4


def test_a_lane_goes_deeper_through_buffer_and_rollout(scenes, network):
    lane = make_lane(scenes)
    for _ in range(12):
        assert lane.run(network) is not None
    depths = [situation.state.steps for kept in lane.buffer.classes for situation in kept]
    assert max(depths) > EPISODES.unroll + 1
    without = make_lane(scenes, Variant.NO_ROLLOUT)
    for _ in range(12):
        without.run(network)
    assert len(without.buffer) > 0
    calls = [situation.state.steps for kept in without.buffer.classes for situation in kept]
    assert max(calls) < max(depths)
    bare = make_lane(scenes, Variant.NO_BUFFER)
    for _ in range(4):
        bare.run(network)
    assert len(bare.buffer) == 0


def test_a_fixed_horizon_goes_through_whole_runs(scenes):
    network = LearnedNetwork(replace(SHAPE, clock=True))
    lane = make_lane(scenes, Variant.FIXED_HORIZON)
    steps = []
    for _ in range(12):
        lane.run(network)
        steps.append(lane.current.state.steps if lane.current else 0)
    assert 0 in steps, "a run that has reached its horizon makes room for a new one"
    assert max(steps) < EPISODES.fixed_horizon
    assert any(later > earlier > 0 for earlier, later in itertools.pairwise(steps))


def test_practice_mixes_dense_and_sparse_views_points_and_starts(scenes):
    generator = torch.Generator().manual_seed(0)
    renderer = make_renderer("auto", 1)
    shares = PracticeOptions(sparse=0.5, random_start=0.5, targets=2)
    drawn = [draw_practice(scenes[0], renderer, shares, generator) for _ in range(30)]
    views = len(kept_capture(scenes[0]).cameras)
    for practice in drawn:
        assert not set(practice.inputs) & set(practice.targets)
        assert set(practice.draw_views(generator)) <= set(practice.inputs)
    assert {len(practice.inputs) for practice in drawn} == {3, 4, 5} & set(range(views)) | {views - views // 4}
    counts = {len(practice.objective.cloud) for practice in drawn}
    assert len(counts) > 5
    never = draw_practice(scenes[0], renderer, replace(shares, random_start=0.0, fewest_points=1.0), generator)
    assert torch.equal(
        never.objective.cloud.means.sort(dim=0).values,
        kept_capture(scenes[0]).points.positions.float().sort(dim=0).values,
    )


def test_scenes_are_made_on_the_way_without_data(network, monkeypatch):
    asked = []

    def small(seed):
        asked.append(seed)
        return original(seed, make_scenes.__globals__["SCENES"])

    from splatopt.meta import practice

    original = practice.make_scene
    monkeypatch.setattr(practice, "make_scene", small)
    lane = make_lane(())
    for _ in range(3):
        assert lane.run(network) is not None
    assert asked
    assert kept_capture(made_scene(asked[0])) is kept_capture(made_scene(asked[0]))


# ---- whole runs


def config(scenes, out, **changed):
    settings = {
        "steps": 6,
        "lanes": 2,
        "save_every": 3,
        "validate_every": 6,
        "practice": PRACTICE,
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
    for one, other in zip(straight.lanes, resumed.lanes, strict=True):
        tensors, scalars = one.state()
        again, numbers = other.state()
        assert scalars == numbers
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    loaded = load_weights(str(tmp_path / "resumed" / "weights.safetensors"))
    assert torch.equal(loaded.network.enter.weight, straight.average.enter.weight)
    assert loaded.facts["meta_steps"] == 6


def test_two_processes_give_the_result_of_one(scenes, tmp_path):
    settings = {
        "data": Path(scenes[0]).parent,
        "steps": 4,
        "save_every": 4,
        "practice": PRACTICE,
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
    trainer = MetaTrainer(config(scenes, tmp_path / "run", validation=scenes, steps=2, lanes=1, validate_every=1))
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
        ({"data": tmp_path}, "made scenes"),
        ({"data": folder, "validation": folder}, "both"),
        ({"steps": 0}, "steps"),
        ({"processes": 3, "lanes": 2, "data": folder}, "--lanes"),
    ):
        with pytest.raises(InputError, match=message):
            meta_train(MetaTrainOptions(out=tmp_path / "run", **options))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="something else"):
        meta_train(MetaTrainOptions(out=tmp_path / "mine", data=folder))


def test_another_run_in_the_same_folder_is_refused(scenes, tmp_path):
    folder = Path(scenes[0]).parent
    settings = {"out": tmp_path / "run", "data": folder, "practice": PRACTICE, "episodes": EPISODES, "save_every": 1}
    meta_train(MetaTrainOptions(steps=1, **settings))
    with pytest.raises(InputError, match="seed"):
        meta_train(MetaTrainOptions(steps=1, seed=4, **settings))
    meta_train(MetaTrainOptions(steps=2, **settings))
    assert load_weights(str(tmp_path / "run" / "weights.safetensors")).facts["meta_steps"] == 2


def test_sizes_and_scenes_are_what_they_say(scenes):
    counts = {size: sum(p.numel() for p in LearnedNetwork(shape).parameters()) for size, shape in SIZES.items()}
    assert counts["tiny"] < counts["small"] < counts["base"]
    assert SIZES["base"].width == 256
    assert counts["base"] * 4 < 5 * 2**20 * 2
    assert len(scene_folders(Path(scenes[0]).parent)) == 2
    assert evaluate_step.__doc__


def test_processes_end_with_the_command_that_began_them(scenes, tmp_path):
    command = [
        sys.executable,
        "-m",
        "splatopt",
        "meta-train",
        "--data",
        str(Path(scenes[0]).parent),
        "--processes",
        "2",
    ]
    command += ["--out", str(tmp_path / "run"), "--steps", "100000", "--save-every", "1"]
    source = Path(splatopt.__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(source)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "step-000001").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
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
