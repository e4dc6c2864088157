"""Edits of rows under ``SceneOptimizer``: values, states, and what is no Gaussian's follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splatopt.core.checks import InputError
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.torch_api import SceneOptimizer
from splatopt.torch_api.scene_parameters import GSPLAT_NAMES
from torch_api.toy_scene import BRIEFLY, TARGETS, backward, parameters, residuals, train


def test_what_is_no_gaussians_takes_adams_steps_and_follows_edits():
    params, alone = parameters(), nn.Parameter(torch.ones(24, 5))
    params["features"] = nn.Parameter(torch.ones(24, 5))
    optimizer, adam = SceneOptimizer("sign-tr", params), torch.optim.Adam([alone], lr=2.5e-3, eps=1e-15)
    for _ in range(3):
        backward(params, 0)
        for features in (params["features"], alone):
            features.grad = torch.arange(120.0).view(24, 5) - 50
        optimizer.step()
        adam.step()
    assert torch.equal(params["features"], alone)
    saved = optimizer.state_dict()
    optimizer.apply(SceneEdit.keep(torch.arange(24) < 10))
    assert params["features"].shape == (10, 5)
    state = optimizer.optimizers["features"].state[params["features"]]
    assert torch.equal(state["exp_avg"], adam.state[alone]["exp_avg"][:10])
    assert saved["others"]["features"]["state"][0]["exp_avg"].shape == (24, 5)


def test_frozen_tensors_that_are_no_gaussians_follow_edits():
    params = parameters()
    params["labels"] = nn.Parameter(torch.arange(24), requires_grad=False)
    params["shN"].requires_grad_(False)
    bands = params["shN"].detach().clone()
    optimizer = SceneOptimizer("sign-tr", params)
    source = torch.tensor([7, 2, 2])
    optimizer.apply(SceneEdit(source, torch.tensor([False, False, True])))
    assert torch.equal(params["labels"], source)
    assert not params["labels"].requires_grad
    assert torch.equal(params["shN"], bands[source])
    assert not params["shN"].requires_grad
    assert set(optimizer.optimizers) == set(params) - {"labels", "shN"}


@pytest.mark.parametrize("shape", [(3,), ()])
@pytest.mark.parametrize("trained", [False, True])
def test_a_tensor_without_the_scenes_rows_is_refused_before_an_edit(trained, shape):
    params = parameters()
    params["background"] = nn.Parameter(torch.ones(shape), requires_grad=trained)
    optimizer = SceneOptimizer("sign-tr", params)
    backward(params, 0)
    if trained:
        params["background"].grad = torch.ones(shape)
    optimizer.step()
    optimizer.zero_grad()
    held, before = dict(params), optimizer.state_dict()
    with pytest.raises(InputError, match="'background' of shape"):
        optimizer.apply(SceneEdit.keep(torch.arange(24) < 10))
    assert all(params[key] is value for key, value in held.items())
    for name, value in optimizer.state_dict()["tensors"].items():
        assert torch.equal(value, before["tensors"][name])
    train(optimizer, params, 1)
    for key in GSPLAT_NAMES:
        params[key] = nn.Parameter(params[key].detach()[:10])
    with pytest.raises(InputError, match="'background' of shape"):
        optimizer.edit_rows(torch.arange(10))


def test_edit_rows_refuses_states_of_other_rows():
    params = parameters()
    params["background"] = nn.Parameter(torch.ones(3))
    optimizer = SceneOptimizer("sign-tr", params)
    for key in GSPLAT_NAMES:
        params[key] = nn.Parameter(params[key].detach()[:3])
    with pytest.raises(InputError, match="'background' of shape"):
        optimizer.edit_rows(torch.arange(3))


@pytest.mark.parametrize("name", ["learned", "block-gn", "tr2", "adam"])
def test_an_edit_of_ours_gathers_values_and_states(name):
    params = parameters()
    optimizer = SceneOptimizer(name, params, steps=40)
    train(optimizer, params, 4)
    values = {key: value.detach().clone() for key, value in params.items()}
    before = optimizer.state_dict()["tensors"]
    source = torch.cat([torch.arange(20), torch.tensor([3, 3])])
    fresh = torch.arange(22) == 21
    low = Written(torch.tensor([0, 5]), torch.tensor([-2.0, -3.0]))
    optimizer.apply(SceneEdit(source, fresh, {"logit_opacities": low}))
    expected = values["opacities"][source]
    expected[[0, 5]] = low.values
    assert torch.equal(params["opacities"], expected)
    assert torch.equal(params["sh0"], values["sh0"][source])
    after = optimizer.state_dict()["tensors"]
    assert after.keys() == before.keys() - {"near"}, "neighbours are searched for again"
    momentum = "exp_avg.quats" if name in ("learned", "adam") else "momentum.quats"
    assert torch.equal(after[momentum][:21], before[momentum][source[:21]])
    assert not after[momentum][21].any()
    train(optimizer, params, 4, begin=4)
    assert all(torch.isfinite(value).all() for value in params.values())


def test_rows_that_someone_else_replaced_are_followed_when_they_are_told():
    params = parameters()
    optimizer = SceneOptimizer("adam", params)
    train(optimizer, params, 3)
    before = optimizer.state_dict()["tensors"]["exp_avg.means"]
    source = torch.tensor([5, 1, 1])
    for key in list(params):
        params[key] = nn.Parameter(params[key].detach()[source])
    with pytest.raises(InputError, match="call edit_rows"):
        optimizer.step()
    optimizer.edit_rows(source, torch.tensor([False, False, True]))
    after = optimizer.state_dict()["tensors"]["exp_avg.means"]
    assert torch.equal(after[:2], before[[5, 1]])
    assert not after[2].any()
    assert optimizer.step() is None, "the gradients went with the tensors"
    train(optimizer, params, 3, begin=3)


def test_keys_may_be_stepped_one_by_one_as_trainers_do():
    whole, keys = parameters(), parameters()
    one, other = SceneOptimizer("sign-tr", whole), SceneOptimizer("sign-tr", keys)
    for step in range(3):
        for params in (whole, keys):
            backward(params, step)
        one.step()
        one.zero_grad()
        for optimizer in other.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for key, value in whole.items():
        assert torch.equal(value, keys[key])
    assert keys["means"].grad is None


def test_the_means_rate_is_told_for_noise():
    optimizer = SceneOptimizer("adam", parameters(), scene_scale=2.0)
    assert optimizer.optimizers["means"].param_groups[0]["lr"] == pytest.approx(2 * 1.6e-4)
    assert SceneOptimizer("sign-tr", parameters()).position_rate == 0.0


@pytest.mark.parametrize("name", BRIEFLY)
def test_steps_go_on_after_the_last_gaussian_was_pruned(name):
    params = parameters()
    optimizer = SceneOptimizer(name, params, steps=40)
    train(optimizer, params, 2)
    optimizer.apply(SceneEdit.keep(torch.zeros(24, dtype=torch.bool)))
    train(optimizer, params, 3, begin=2)
    evaluation = optimizer.step(lambda: residuals(params, 0, TARGETS))
    assert evaluation.seen.shape == (0,)
    assert evaluation.loss == pytest.approx(residuals(params, 0, TARGETS).detach().square().sum().item() / 2)
    assert {key: value.shape for key, value in params.items()} == {
        key: (0, *value.shape[1:]) for key, value in parameters().items()
    }
