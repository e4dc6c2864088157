"""gsplat's real strategies on ``SceneOptimizer.optimizers``: rows and states follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress
from splatopt.core.schema import rotation_matrices
from splatopt.density.relocation import relocation
from splatopt.optim.first_order import AdamOptions
from splatopt.torch_api import SceneOptimizer
from splatopt.torch_api.scene_parameters import GSPLAT_NAMES
from torch_api.toy_scene import loss_of, parameters, photographs, render, residuals

gsplat = pytest.importorskip("gsplat", reason="the strategies of the gsplat package drive these tests")
ops = pytest.importorskip("gsplat.strategy.ops")

TARGETS = photographs()


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Two functions of gsplat are of CUDA alone; ``MCMCStrategy`` calls them."""

    def compute_relocation(opacities, scales, ratios, binoms):
        shared, factor = relocation(opacities.flatten(), ratios.long())
        return shared.to(opacities).view(opacities.shape), (scales.double() * factor[:, None]).to(scales)

    def quat_scale_to_covar_preci(quats, scales, compute_covar=True, compute_preci=True, triu=False):
        axes = rotation_matrices(quats) * scales[:, None, :]
        return axes @ axes.mT, None

    monkeypatch.setattr(ops, "compute_relocation", compute_relocation)
    monkeypatch.setattr(ops, "quat_scale_to_covar_preci", quat_scale_to_covar_preci)


def default_strategy(**changes):
    often = {"refine_start_iter": 4, "refine_every": 5, "grow_grad2d": 1e-3, "grow_scale3d": 0.15, "prune_opa": 0.3}
    return gsplat.DefaultStrategy(**(often | changes))


def run(params, optimizers, strategy, steps: int, after=None, **more) -> None:
    """A trainer's loop, with one optimizer for each key."""
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(**({"scene_scale": 1.0} if "cap_max" not in vars(strategy) else {}))
    for step in range(steps):
        image, info = render(params, step % 3)
        loss = (image - TARGETS[step % 3]).square().mean()
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        strategy.step_post_backward(params, optimizers, state, step, info, **more)
        if after is not None:
            after(step)


def adams(params) -> dict[str, torch.optim.Optimizer]:
    rates = AdamOptions().rates(1.0, Progress(0, 1))
    return {key: torch.optim.Adam([params[key]], lr=rates[name], eps=1e-15) for key, name in GSPLAT_NAMES.items()}


def test_adam_is_driven_as_a_torch_adam_of_each_key():
    ours, theirs = parameters(), parameters()
    optimizer = SceneOptimizer("adam", ours, means_final_factor=1.0)
    counts = []
    for params, optimizers in ((theirs, adams(theirs)), (ours, optimizer.optimizers)):
        torch.manual_seed(0)
        run(params, optimizers, default_strategy(), 16, after=lambda _, p=params: counts.append(len(p["means"])))
    assert counts[:16] == counts[16:]
    assert len(set(counts)) > 2, "rows come and go"
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["learned", "sign-tr", "tr2", "block-gn"])
def test_states_follow_clones_splits_and_prunes(name):
    params = parameters()
    optimizer = SceneOptimizer(name, params, steps=30)
    strategy, counts = default_strategy(refine_stop_iter=16), []
    state = strategy.initialize_state(scene_scale=1.0)
    for step in range(29):
        image, info = render(params, step % 3)
        strategy.step_pre_backward(params, optimizer.optimizers, state, step, info)
        (image - TARGETS[step % 3]).square().mean().backward()
        optimizer.step(lambda view=step % 3: residuals(params, view, TARGETS))
        optimizer.zero_grad()
        strategy.step_post_backward(params, optimizer.optimizers, state, step, info)
        counts.append(len(params["means"]))
        if step == 16:
            grown = loss_of(params, TARGETS)
    assert len(set(counts)) > 2, "rows come and go"
    assert all(torch.isfinite(value).all() for value in params.values())
    assert loss_of(params, TARGETS) < grown, "steps go on from there"
    rows = {len(value) for key, value in optimizer.state_dict()["tensors"].items() if "visited" not in key}
    assert rows == {len(params["means"])}


def test_each_row_keeps_its_own_state():
    params = parameters()
    optimizer = SceneOptimizer("sign-tr", params)
    residuals(params, 0, TARGETS).square().sum().backward()
    optimizer.step()
    before = optimizer.state_dict()["tensors"]["momentum.sh_dc"]
    gone, twice, split = (torch.zeros(24, dtype=torch.bool) for _ in range(3))
    gone[[2, 3]], twice[7], split[0] = True, True, True
    ops.duplicate(params, optimizer.optimizers, {}, twice)
    ops.split(params, optimizer.optimizers, {}, torch.cat([split, torch.zeros(1, dtype=torch.bool)]))
    ops.remove(params, optimizer.optimizers, {}, torch.cat([gone[1:], torch.zeros(3, dtype=torch.bool)]))
    after = optimizer.state_dict()["tensors"]["momentum.sh_dc"]
    kept = [row for row in range(1, 24) if row not in (2, 3)]
    assert torch.equal(after[: len(kept)], before[kept])
    assert len(after) == len(kept) + 3
    assert not after[len(kept) :].any(), "a clone and two children begin anew"


def test_a_reset_of_opacities_clears_their_momentum_alone():
    params = parameters()
    optimizer = SceneOptimizer("adam", params)
    residuals(params, 0, TARGETS).square().sum().backward()
    optimizer.step()
    before = optimizer.state_dict()["tensors"]
    ops.reset_opa(params, optimizer.optimizers, {}, value=0.01)
    after = optimizer.state_dict()["tensors"]
    assert float(params["opacities"].max()) < -4
    assert not after["exp_avg.logit_opacities"].any()
    for name in ("means", "log_scales", "quats", "sh_dc", "sh_rest"):
        assert torch.equal(after[f"exp_avg.{name}"], before[f"exp_avg.{name}"])


def test_the_average_of_learned_begins_anew_where_opacities_were_reset():
    params = parameters()
    optimizer = SceneOptimizer("learned", params)
    residuals(params, 0, TARGETS).square().sum().backward()
    optimizer.step()
    ops.reset_opa(params, optimizer.optimizers, {}, value=0.01)
    with optimizer.averaged():
        assert float(params["opacities"].max()) < -4


@pytest.mark.parametrize("name", ["learned", "sign-tr", "adam"])
def test_mcmc_relocates_adds_and_moves(name, on_a_cpu):
    params = parameters()
    with torch.no_grad():
        params["opacities"][:6] = -7.0
    optimizer = SceneOptimizer(name, params)
    strategy = gsplat.MCMCStrategy(cap_max=30, refine_start_iter=1, refine_every=4, noise_lr=1.0)
    torch.manual_seed(0)
    before, counts = loss_of(params, TARGETS), []
    run(params, optimizer.optimizers, strategy, 30, lambda _: counts.append(len(params["means"])), lr=1e-4)
    assert counts[-1] == 30
    assert float(params["opacities"].min()) > -6.5, "the dead live elsewhere"
    assert all(torch.isfinite(value).all() for value in params.values())
    assert loss_of(params, TARGETS) < before


def test_a_relocated_row_begins_anew_where_it_has_come_to(on_a_cpu):
    params = parameters()
    optimizer = SceneOptimizer("learned", params)
    for _ in range(3):
        residuals(params, 0, TARGETS).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dead = torch.arange(24) == 4
    with torch.no_grad():
        params["means"].add_(0.01)  # as noise does
    strategy = gsplat.MCMCStrategy()
    torch.manual_seed(1)
    ops.relocate(params, optimizer.optimizers, {}, dead, strategy.initialize_state()["binoms"])
    tensors = optimizer.state_dict()["tensors"]
    parent = int(((params["means"] == params["means"][4]).all(dim=1) & ~dead).nonzero())
    for row in (4, parent):
        assert not tensors["exp_avg.means"][row].any()
        assert int(tensors["age"][row]) == 0
        assert torch.equal(tensors["average.means"][row], params["means"][row])
    others = [row for row in range(24) if row not in (4, parent)]
    assert bool((tensors["age"][others] > 0).all()), "noise changes nothing for the others"


def test_tensors_replaced_without_their_state_are_refused_in_a_sentence():
    params = parameters()
    optimizer = SceneOptimizer("adam", params)
    for key in list(params):
        params[key] = nn.Parameter(params[key].detach()[:5].clone())
        optimizer.optimizers[key].param_groups[0]["params"] = [params[key]]
    with pytest.raises(InputError, match="without its state"):
        optimizer.follow()
