"""Our density strategies where gsplat's trainers have theirs."""

from __future__ import annotations

import pytest
import torch

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError
from splatopt.torch_api import SceneOptimizer, SceneStrategy, rasterization
from splatopt.torch_api.scene_parameters import GSPLAT_NAMES
from torch_api.scenes import arguments_of, plain_scene
from torch_api.toy_scene import SIDE, loss_of, parameters, photographs, render, residuals

TARGETS = photographs()
RATES = dict.fromkeys(GSPLAT_NAMES, 1e-2)


def adams(params) -> dict[str, torch.optim.Optimizer]:
    return {key: torch.optim.Adam([params[key]], lr=rate) for key, rate in RATES.items() if key in params}


def one_step(params, optimizers, strategy, state, step, *, absgrad=True, **more):
    image, info = render(params, step % 3)
    strategy.step_pre_backward(params, optimizers, state, step, info)
    (image - TARGETS[step % 3]).square().mean().backward()
    if absgrad and info["means2d"].grad is not None:
        info["means2d"].absgrad = info["means2d"].grad.abs()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    strategy.step_post_backward(params, optimizers, state, step, info, **more)
    return info


STRATEGIES = {
    "gain": {"every": 3},
    "adc": {"start": 4, "until": 20, "every": 5, "horizon": 0, "min_gradient": 1e-3, "clone_size": 0.15},
    "mcmc": {"start": 4, "until": 20, "every": 5, "horizon": 0},
}


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_strategy_of_ours_grows_a_scene_in_their_loop(name, ours):
    params = parameters()
    optimizers = SceneOptimizer("adam-searched", params, steps=24).optimizers if ours else adams(params)
    strategy = SceneStrategy(name, steps=24, max_gaussians=40, **STRATEGIES[name])
    strategy.check_sanity(params, optimizers)
    state, counts = strategy.initialize_state(scene_scale=1.0), []
    before = loss_of(params, TARGETS)
    for step in range(24):
        one_step(params, optimizers, strategy, state, step)
        counts.append(len(params["means"]))
    assert max(counts) > 24
    assert max(counts) <= 40
    assert all(torch.isfinite(value).all() for value in params.values())
    assert loss_of(params, TARGETS) < before
    if not ours:
        for key, adam in optimizers.items():
            (parameter,) = adam.param_groups[0]["params"]
            assert parameter is params[key]
            assert adam.state[parameter]["exp_avg"].shape == parameter.shape


def test_children_of_gain_carry_halved_momentum_in_a_torch_adam():
    params = parameters()
    optimizers = adams(params)
    strategy = SceneStrategy("gain", steps=100, max_gaussians=48, every=4, until=0.05)
    state = strategy.initialize_state()
    moments = []
    for step in range(4):
        if step == 3:
            optimizers["sh0"].register_step_post_hook(
                lambda adam, *_: moments.append(adam.state[params["sh0"]]["exp_avg"].clone())
            )
        one_step(params, optimizers, strategy, state, step)
    assert len(params["means"]) == 48, "every row was split"
    after = optimizers["sh0"].state[params["sh0"]]["exp_avg"]
    torch.testing.assert_close(after, 0.5 * torch.cat([moments[0], moments[0]]))


def test_statistics_are_those_of_the_centres_gradients():
    params = parameters()
    strategy = SceneStrategy("gain", steps=100)
    state, optimizers = strategy.initialize_state(), adams(params)
    sums = {"gradient": torch.zeros(24), "absolute": torch.zeros(24)}
    for step in range(2):
        info = one_step(params, optimizers, strategy, state, step)
        grad = info["means2d"].grad[0] * SIDE / 2
        sums["gradient"] += grad.norm(dim=1)
        sums["absolute"] += grad.abs().norm(dim=1)
    found = state["working"].strategy.gradient_statistics
    torch.testing.assert_close(found.gradient, sums["gradient"])
    torch.testing.assert_close(found.absolute, sums["absolute"])
    assert torch.equal(found.views, torch.full((24,), 2.0))
    assert float(found.max_radius.max()) == pytest.approx(float(info["radii"].max()) / SIDE, rel=0.5)


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
@pytest.mark.parametrize("views", [1, 2])
def test_rasterization_that_packs_by_default_counts_the_rows_that_it_drew(views):
    """Of shapes alone: nobody says that the rendering is packed, and rows that are not drawn move all others."""
    scene = {name: value.detach() for name, value in plain_scene(torch.float32, 24, views, degree=1).items()}
    scene["means"][::3, 2] = -10.0  # behind the cameras
    found = []
    for packing in ({}, {"packed": False}):
        shapes = {"scales": scene["scales"].log(), "opacities": scene["opacities"].logit()}
        shapes |= {"means": scene["means"], "quats": scene["quats"]}
        shapes |= {"sh0": scene["colors"][:, :1], "shN": scene["colors"][:, 1:]}
        params = torch.nn.ParameterDict({key: torch.nn.Parameter(value.clone()) for key, value in shapes.items()})
        strategy, optimizers = SceneStrategy("gain", steps=1000), adams(params)
        state = strategy.initialize_state()
        drawn = {
            **scene,
            "means": params["means"],
            "quats": params["quats"],
            "scales": params["scales"].exp(),
            "opacities": params["opacities"].sigmoid(),
            "colors": torch.cat([params["sh0"], params["shN"]], dim=1),
        }
        image, _, info = rasterization(**arguments_of(drawn, absgrad=True, **packing))
        assert (info["means2d"].dim() == 2) == (not packing)
        strategy.step_pre_backward(params, optimizers, state, 0, info)
        image.square().mean().backward()
        strategy.step_post_backward(params, optimizers, state, 0, info)
        found.append(state["working"].strategy.gradient_statistics)
    packed, whole = found
    assert not packed.views[::3].any()
    assert float(packed.views.max()) == views
    assert torch.equal(packed.views, whole.views)
    assert torch.equal(packed.max_radius, whole.max_radius)
    torch.testing.assert_close(packed.gradient, whole.gradient)
    torch.testing.assert_close(packed.absolute, whole.absolute)
    assert float(packed.gradient.max()) > 0


def test_a_packed_rendering_counts_alike():
    found = []
    for packed in (False, True):
        params = parameters()
        strategy = SceneStrategy("adc", steps=1000)
        state, optimizers = strategy.initialize_state(), adams(params)
        image, info = render(params)
        strategy.step_pre_backward(params, optimizers, state, 0, info)
        image.square().mean().backward()
        if packed:
            rows = torch.arange(24).flip(0)
            centers = info["means2d"][0, rows].detach()
            centers.grad = info["means2d"].grad[0, rows]
            info |= {"means2d": centers, "radii": info["radii"][0, rows], "gaussian_ids": rows}
        strategy.step_post_backward(params, optimizers, state, 0, info)
        found.append(state["working"].strategy.gradient_statistics)
    assert torch.equal(found[0].gradient, found[1].gradient)
    assert torch.equal(found[0].max_radius, found[1].max_radius)
    assert float(found[0].gradient.max()) > 0


def test_the_penalty_of_mcmc_is_in_the_gradients():
    params = parameters()
    strategy = SceneStrategy("mcmc", steps=100)
    state = strategy.initialize_state()
    strategy.step_pre_backward(params, adams(params), state, 0, {})
    opacities = params["opacities"].detach().sigmoid()
    torch.testing.assert_close(params["opacities"].grad, opacities * (1 - opacities) * 0.01 / 24)
    torch.testing.assert_close(params["scales"].grad, params["scales"].detach().exp() * 0.01 / 72)
    assert params["means"].grad is None


@pytest.mark.parametrize("backward", [False, True])
def test_the_penalty_of_mcmc_joins_whichever_gradient_a_step_of_ours_takes(backward):
    params = parameters()
    optimizer, strategy = SceneOptimizer("sign-tr", params), SceneStrategy("mcmc", steps=100, opacity_penalty=1.0)
    state, seen = strategy.initialize_state(), torch.arange(24) < 20

    def rendered():
        return residuals({key: value[:20] for key, value in params.items()}, 0, TARGETS)

    for is_penalised in (True, False):
        expected = torch.autograd.grad(rendered().square().sum() / 2, params["opacities"])[0]
        strategy.step_pre_backward(params, optimizer.optimizers, state, 0, {})
        if is_penalised:
            opacities = params["opacities"].detach().sigmoid()
            expected = expected + opacities * (1 - opacities) / 24
        else:
            optimizer.zero_grad()
        assert params["opacities"].grad is None
        loss = rendered().square().sum() / 2
        if backward:
            loss.backward()
        evaluation = optimizer.step(rendered, loss=loss)
        torch.testing.assert_close(evaluation.gradient["logit_opacities"], expected)
        assert torch.equal(evaluation.seen, seen), "a penalty draws no row"
        optimizer.zero_grad()
    evaluation = optimizer.step(rendered)
    assert not evaluation.gradient["logit_opacities"][20:].any(), "a step lets go of the penalty"
    strategy.step_pre_backward(params, optimizer.optimizers, state, 0, {})
    with pytest.raises(InputError, match="no gradient"):
        optimizer.step()


def test_mcmc_trains_on_residuals_without_a_backward_pass():
    params = parameters()
    optimizer, strategy = SceneOptimizer("block-gn", params, steps=20), SceneStrategy("mcmc", steps=20)
    state, before = strategy.initialize_state(), loss_of(params, TARGETS)
    for step in range(20):
        strategy.step_pre_backward(params, optimizer.optimizers, state, step, {})
        optimizer.step(lambda view=step % 3: residuals(params, view, TARGETS))
    assert loss_of(params, TARGETS) < 0.85 * before


def test_noise_follows_the_rate_that_is_told():
    moved = []
    for lr in (0.0001, 0.0002):
        params = parameters()
        with torch.no_grad():
            params["opacities"].fill_(-6.0)
        strategy = SceneStrategy("mcmc", steps=100)
        before = params["means"].detach().clone()
        strategy.step_post_backward(params, adams(params), strategy.initialize_state(), 0, {}, lr=lr)
        moved.append(params["means"].detach() - before)
    assert float(moved[0].abs().max()) > 0
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("ours", [True, False])
def test_a_tensor_without_the_scenes_rows_is_refused_and_nothing_replaced(ours):
    params = parameters()
    params["background"] = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    held = dict(params)
    optimizers = SceneOptimizer("adam", params).optimizers if ours else adams(params)
    strategy = SceneStrategy("gain", steps=100, max_gaussians=48, every=4, until=0.05)
    with pytest.raises(InputError, match="'background' of shape"):
        strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    for step in range(3):
        one_step(params, optimizers, strategy, state, step)
    with pytest.raises(InputError, match="'background' of shape"):
        one_step(params, optimizers, strategy, state, 3)
    assert all(params[key] is value for key, value in held.items())


def test_what_is_missing_is_said_in_a_sentence():
    params = parameters()
    with pytest.raises(InputError, match="no option 'rate'"):
        SceneStrategy("gain", rate=1)
    with pytest.raises(InputError, match="no density strategy"):
        SceneStrategy("gains")
    strategy = SceneStrategy("gain")
    with pytest.raises(InputError, match="an optimizer of its name"):
        strategy.check_sanity(params, {})
    with pytest.raises(InputError, match="absgrad=True"):
        one_step(params, adams(params), strategy, strategy.initialize_state(), 0, absgrad=False)
    with pytest.raises(InputError, match="means2d"):
        strategy.step_pre_backward(params, {}, strategy.initialize_state(), 0, {})
    state, optimizers = strategy.initialize_state(), adams(params)
    one_step(params, optimizers, strategy, state, 0)
    with pytest.raises(MissingOracleError, match="blending weights"):
        state["working"].strategy.objective.statistics(None, lambda *_: None)
