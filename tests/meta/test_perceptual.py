"""Image losses in the meta-loss: their gradient through the renderer, and their place in an episode."""

from __future__ import annotations

import pytest
import torch

from meta.clouds import stirred
from meta.toys import SHAPE, TASKS, make_scenes
from splatopt.core.objective import Oracle
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.episode import EpisodeState, LossOptions, run_episode
from splatopt.meta.inner import InnerRates
from splatopt.meta.network import LearnedNetwork
from splatopt.meta.perceptual import gives_image_loss_gradient, image_loss_gradient
from splatopt.meta.tasks import draw_task
from splatopt.raster.losses import L1Ssim
from splatopt.raster.render import make_renderer


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("synthetic"), 1)


def practice_of(scenes):
    return draw_task(scenes[0], make_renderer("auto", 1), TASKS, torch.Generator().manual_seed(0))


def absolute(image, target):
    return (image - target).abs().mean()


def test_the_pull_of_an_l1_loss_is_the_gradient_of_the_objective_without_ssim(scenes):
    objective = practice_of(scenes).objective
    objective.loss = L1Ssim(0.0)
    assert gives_image_loss_gradient(objective)
    assert Oracle.VJP in objective.oracles
    value, slope = image_loss_gradient(objective, 1, absolute)
    expected = objective.gradient((1,))
    assert value == pytest.approx(expected.loss, rel=1e-5)
    for name in GAUSSIAN_TENSORS:
        torch.testing.assert_close(slope[name], expected.gradient[name], rtol=1e-3, atol=1e-7)


def test_an_image_loss_is_part_of_the_meta_loss(scenes):
    network = stirred(LearnedNetwork(SHAPE), size=0.05)

    def run(weight, loss):
        network.zero_grad()
        episode_state = EpisodeState.begin(practice_of(scenes), network)
        options = LossOptions(lpips_weight=weight)
        result = run_episode(
            network, InnerRates(), episode_state, 1, options, torch.Generator().manual_seed(1), perceptual=loss
        )
        gradient = torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None]).clone()
        targets = episode_state.task.targets
        mean = sum(image_loss_gradient(episode_state.task.objective, view, absolute)[0] for view in targets) / len(
            targets
        )
        return result.meta_loss, gradient, mean

    plain, gradient, mean = run(0.5, None)
    assert run(0.0, absolute)[0] == plain
    with_loss, other, _ = run(0.5, absolute)
    assert with_loss == pytest.approx(plain + 0.5 * mean, rel=1e-6)
    doubled = run(1.0, absolute)[1]
    torch.testing.assert_close(doubled - gradient, 2 * (other - gradient), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(other, gradient)
