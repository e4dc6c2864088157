"""One episode: its gradient, what it leaves, and what is penalised."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from meta.clouds import stirred
from meta.toys import SHAPE, TASKS, begin
from splatopt.core import native
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta import episode as episode_module
from splatopt.meta.episode import EpisodeState, LossOptions, roll_out, run_episode
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.tasks import MetaTaskOptions, draw_task
from splatopt.meta.validation import validate
from splatopt.optim.averaging import RunningAverage
from splatopt.raster.render import make_renderer
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective


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

    def step(self, network, rates, episode_state, parameters, views):
        if not self.replays:
            step, loss, gradient = self.real(network, rates, episode_state, parameters, views)
            self.shown.append(gradient)
            return step, loss, gradient
        here = self.copied(views)
        told = replace(here, gradient=self.shown[self.number])
        self.number += 1
        with self.monkeypatch.context() as patch:
            patch.setattr(type(self.objective), "gradient", lambda objective, batch: told)
            step, loss, _ = self.real(network, rates, episode_state, parameters, views)
        return step, loss, dict(here.gradient)


def small_practice(scene):
    """Twelve Gaussians in float64, large enough to overlap."""
    renderer = make_renderer("reference", 1)
    options = replace(TASKS, view_batches=(1,))  # nothing is differentiated through the gradients that are shown
    task = draw_task(scene, renderer, options, torch.Generator().manual_seed(1))
    before = task.objective
    cloud = GaussianCloud(**{name: value[:12].double() for name, value in before.cloud.tensors.items()})
    cloud.log_scales += 1.0
    objective = PhotometricObjective(
        cloud, before.cameras, before.images, renderer, before.options, length_scale=before.length_scale
    )
    return replace(task, objective=objective)


def test_the_gradient_of_an_episode_is_that_of_its_meta_loss(scenes, monkeypatch):
    """Against finite differences in float64, the gradients that the network is shown held as they were."""
    network = stirred(LearnedNetwork(SHAPE), size=0.05).double()
    task = small_practice(scenes[0])
    cloud = task.objective.cloud
    start = {name: value.clone() for name, value in cloud.tensors.items()}
    rates = InnerRates(means=1e-3, log_scales=1e-2, quats=1e-2, logit_opacities=1e-2, sh_dc=1e-2, sh_rest=1e-3)
    replayed = Replayed(monkeypatch, task.objective)

    def run():
        for name, value in cloud.tensors.items():
            value.copy_(start[name])
        replayed.number = 0
        episode_state, generator = EpisodeState.begin(task, network), torch.Generator().manual_seed(2)
        return run_episode(
            network, rates, episode_state, 2, LossOptions(delta_weight=0.0), generator, delta_penalty=False
        )

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
    episode_state = begin(scenes, network)
    before = {name: value.clone() for name, value in episode_state.task.objective.parameters.items()}
    result = run_episode(network, InnerRates(), episode_state, 6, LossOptions(), torch.Generator().manual_seed(0))
    assert result is not None
    assert len(result.target_loss) == 6, "a new scene is looked at after every step"
    assert episode_state.state.steps == 6
    assert not episode_state.state.latent.requires_grad
    for name, value in episode_state.task.objective.parameters.items():
        assert not value.requires_grad
        assert not torch.equal(value, before[name]) or name == "sh_rest"
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    later = run_episode(network, InnerRates(), episode_state, 6, LossOptions(), torch.Generator().manual_seed(0))
    assert later is not None
    assert len(later.target_loss) == 2, "and later on in the last third"


def test_an_episode_takes_the_steps_of_a_rollout(scenes, network):
    one, two = begin(scenes, network), begin(scenes, network)
    assert roll_out(network, InnerRates(), one, 4, torch.Generator().manual_seed(9))
    run_episode(network, InnerRates(), two, 4, LossOptions(), torch.Generator().manual_seed(9))
    for name in GAUSSIAN_TENSORS:
        torch.testing.assert_close(
            one.task.objective.parameters[name], two.task.objective.parameters[name], rtol=1e-6, atol=1e-7
        )
    torch.testing.assert_close(one.state.latent, two.state.latent)


def test_the_meta_loss_is_of_the_average_of_the_iterates(scenes, network):
    # Later than what an average remembers, an episode of six steps is judged at their plain mean.
    episode_state = begin(scenes, network)
    episode_state.state.steps = 1000
    iterates = []
    twin = begin(scenes, network)
    twin.state.steps = 1000
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        assert roll_out(network, InnerRates(), twin, 1, generator)
        iterates.append({name: value.clone() for name, value in twin.task.objective.parameters.items()})
    for name, value in twin.task.objective.parameters.items():
        value.copy_(torch.stack([iterate[name] for iterate in iterates]).mean(dim=0))
    expected = twin.task.objective.gradient(twin.task.targets).metrics["psnr"]
    result = run_episode(network, InnerRates(), episode_state, 6, LossOptions(), torch.Generator().manual_seed(4))
    assert result.psnr == pytest.approx(expected, abs=1e-3)
    losses = [twin.task.objective.value((view,)) for view in twin.task.targets]
    assert result.target_loss[-1] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("power", [20.0, 0.0])
def test_the_average_is_the_one_that_the_optimizer_leaves(scenes, network, monkeypatch, power):
    rates, left, gradient = InnerRates(average_power=power), {}, PhotometricObjective.gradient

    def of_two_thirds(objective, views):
        evaluation = gradient(objective, views)
        return replace(evaluation, seen=torch.arange(len(evaluation.seen)) % 3 != views[0] % 3)

    monkeypatch.setattr(PhotometricObjective, "gradient", of_two_thirds)
    twin = begin(scenes, network)
    average = RunningAverage(twin.task.objective.parameters, power) if power else None
    assert roll_out(network, rates, twin, 5, torch.Generator().manual_seed(4), average)
    assert len(twin.state.age.unique()) > 1, "some rows were seen less often than others"
    monkeypatch.setattr(episode_module, "_psnr", lambda task, values: left.update(values) or 0.0)
    run_episode(network, rates, begin(scenes, network), 5, LossOptions(), torch.Generator().manual_seed(4))
    for name, value in (average.values if average else twin.task.objective.parameters).items():
        torch.testing.assert_close(left[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [20.0, 0.0])
def test_validation_looks_at_what_the_optimizer_leaves(scenes, network, power):
    rates, renderer = InnerRates(average_power=power), make_renderer("auto", 1)
    found = validate(network, rates, scenes[:1], renderer, steps=(4,))
    generator = torch.Generator().manual_seed(0)
    task = draw_task(scenes[0], renderer, MetaTaskOptions.plain(), generator)
    parameters, average = task.objective.parameters, RunningAverage(task.objective.parameters, power)
    assert roll_out(network, rates, EpisodeState.begin(task, network), 4, generator, average)
    if power:
        average.exchange(parameters)
    assert found == {4: task.objective.gradient(task.targets).metrics["psnr"]}


def test_a_validation_stops_before_its_next_step(scenes, network):
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) == 3

    assert validate(network, InnerRates(), scenes, make_renderer("auto", 1), steps=(2, 9), stopping=stopping) is None
    assert len(asked) == 3


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
def test_neighbours_are_searched_for_on_the_renderers_threads(scenes, network, monkeypatch):
    told, search = [], episode_module.nearest_others
    monkeypatch.setattr(episode_module, "nearest_others", lambda *args: told.append(args[2]) or search(*args))
    generator = torch.Generator().manual_seed(0)
    task = draw_task(scenes[0], make_renderer("native", 2), TASKS, generator)
    roll_out(network, InnerRates(), EpisodeState.begin(task, network), 1, generator)
    assert told == [2, 2]


def test_the_meta_loss_that_is_told_has_all_its_parts(scenes, network):
    def loss(weight, penalty=True):
        options, generator = LossOptions(delta_weight=weight), torch.Generator().manual_seed(3)
        episode_state = begin(scenes, network)
        return run_episode(network, InnerRates(), episode_state, 2, options, generator, delta_penalty=penalty).meta_loss

    plain = loss(0.0)
    assert loss(1.0, penalty=False) == plain
    assert loss(1.0) > plain + 1e-3
    assert loss(2.0) - plain == pytest.approx(2 * (loss(1.0) - plain), rel=1e-6)


def test_penalties_add_to_the_gradient(scenes, network):
    hot = InnerRates(log_scales=3.0, logit_opacities=4.0)  # so that views that had become better do get worse

    def gradient(options, penalty=True):
        network.zero_grad()
        generator, episode_state = torch.Generator().manual_seed(3), begin(scenes, network)
        assert roll_out(network, InnerRates(), episode_state, 20, generator)
        run_episode(network, hot, episode_state, 6, options, generator, delta_penalty=penalty)
        return torch.cat([parameter.grad.reshape(-1).clone() for parameter in network.parameters()])

    plain = gradient(LossOptions(inputs_weight=0, stability_weight=0, delta_weight=0))
    for changed in ({"inputs_weight": 1.0}, {"stability_weight": 5.0}, {"delta_weight": 1.0}):
        options = LossOptions(**({"inputs_weight": 0, "stability_weight": 0, "delta_weight": 0} | changed))
        assert not torch.allclose(gradient(options), plain), changed
    late = LossOptions(inputs_weight=0, stability_weight=0, delta_weight=1.0)
    assert torch.equal(gradient(late, penalty=False), plain)


def test_numbers_that_break_down_end_an_episode_without_a_gradient(scenes, network):
    episode_state = begin(scenes, network)
    with torch.no_grad():
        network.sizes.bias[0] = math.nan
    network.zero_grad()
    assert run_episode(network, InnerRates(), episode_state, 2, LossOptions(), torch.Generator()) is None
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
