"""``SceneOptimizer`` over gsplat's dictionary, with a renderer that is not ours."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import splatopt
from splatopt.core.checks import InputError
from splatopt.core.objective import Evaluation, MissingOracleError, Objective, Oracle
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.curvature.blocks import unpack_blocks
from splatopt.curvature.estimators import ResidualProbes
from splatopt.optim.first_order import AdamOptions
from splatopt.torch_api import SceneOptimizer
from splatopt.torch_api.scene_objective import SceneObjective, StepInputs
from splatopt.torch_api.scene_parameters import GSPLAT_NAMES, SceneParameters
from torch_api.toy_scene import BRIEFLY, TARGETS, backward, loss_of, parameters, photographs, render, residuals, train

BY_GRADIENTS = ("learned", "sign-tr", "adam-tr", "adam", "adam-tuned", "adam-searched", "zoo:lion")
BY_CURVATURE = ("tr2", "tr2-paper", "sophia", "block-gn")
EVERY = [
    name if name in BRIEFLY else pytest.param(name, marks=pytest.mark.slow) for name in BY_GRADIENTS + BY_CURVATURE
]


@pytest.mark.parametrize("name", EVERY)
def test_the_loss_falls_and_parameters_are_shared(name):
    params = parameters()
    held = dict(params)
    places = {key: value.data_ptr() for key, value in params.items()}
    optimizer = SceneOptimizer(name, params, scene_scale=1.0, steps=24)
    before = loss_of(params, TARGETS)
    train(optimizer, params, 24)
    slow = name in ("adam", "adam-tr", "tr2-paper", "sophia", "zoo:lion")
    assert loss_of(params, TARGETS) < (0.98 if slow else 0.85) * before
    for key, value in params.items():
        assert value is held[key]
        assert value.data_ptr() == places[key], "steps write in place"
        assert value.grad is None


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_goes_on_bit_for_bit(name):
    params = parameters()
    optimizer = SceneOptimizer(name, params, steps=40)
    train(optimizer, params, 13)
    file = io.BytesIO()
    torch.save({"scene": params.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(optimizer, params, 12, begin=13)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = parameters(seed=5)
    again.load_state_dict(saved["scene"])
    resumed = SceneOptimizer(name, again, steps=40)
    resumed.load_state_dict(saved["optimizer"])
    train(resumed, again, 12, begin=13)
    for key, value in params.items():
        assert torch.equal(value, again[key]), key
    with resumed.averaged(), optimizer.averaged():
        for key, value in params.items():
            assert torch.equal(value, again[key]), key


def test_adam_takes_the_steps_of_one_torch_adam_a_key():
    ours, theirs = parameters(), parameters()
    optimizer = SceneOptimizer("adam", ours, scene_scale=1.7, means_final_factor=1.0)
    rates = AdamOptions().rates(1.7, Progress(0, 1))
    adams = [torch.optim.Adam([theirs[key]], lr=rates[name], eps=1e-15) for key, name in GSPLAT_NAMES.items()]
    for step in range(8):
        for params in (ours, theirs):
            backward(params, step % 3)
        optimizer.step()
        optimizer.zero_grad()
        for adam in adams:
            adam.step()
            adam.zero_grad()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, parameters()[key])


class Rendered(Objective):
    """The same scene as an objective of ours, for what must be the same."""

    def __init__(self, params) -> None:
        self.params, self.scene = params, SceneParameters(params)

    parameters = property(lambda self: self.scene.views)
    oracles = property(lambda self: frozenset({Oracle.GRADIENT}))
    length_scale = property(lambda self: 1.0)
    backend = property(lambda self: "toy")

    def views(self, batch):
        return [batch]

    def gradient(self, batch):
        for key, name in GSPLAT_NAMES.items():  # an average and the last iterate change places by their memory
            self.params[key].data = self.scene.views[name].data.view(self.params[key].shape)
        loss = backward(self.params, batch)
        found = self.scene.in_our_shapes({key: value.grad for key, value in self.params.items()})
        for value in self.params.values():
            value.grad = None
        return Evaluation(loss.item(), found, None, {})


def test_learned_is_what_it_is_in_our_own_loop():
    ours, theirs = parameters(), parameters()
    optimizer = SceneOptimizer("learned", theirs, steps=12)
    entry = find_optimizer("learned")
    own = entry.optimizer(Rendered(ours), entry.options())
    for step in range(12):
        own.step(step % 3, Progress(step, 12))
    train(optimizer, theirs, 12)
    views = SceneParameters(theirs).views
    with optimizer.averaged():
        for name, value in own.objective.parameters.items():
            assert torch.equal(value, views[name])
    with own.at_last_iterate():
        for name, value in own.objective.parameters.items():
            assert torch.equal(value, views[name]), "between steps the last iterate is there"


def test_learned_without_a_loss_or_views_still_learns():
    params = parameters()
    optimizer = SceneOptimizer("learned", params, averaged=False)
    before = loss_of(params, TARGETS)
    for step in range(30):
        backward(params, step % 3)
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(params, TARGETS) < 0.8 * before
    kept = params["means"].clone()
    with optimizer.averaged():
        assert torch.equal(params["means"], kept), "there is no average"


def test_without_backward_the_loss_is_that_of_the_residuals():
    first, second = parameters(), parameters()
    one, two = (SceneOptimizer("sign-tr", params) for params in (first, second))
    for step in range(3):
        loss = backward(first, step)
        one.step()
        one.zero_grad()
        evaluation = two.step(lambda view=step: residuals(second, view, TARGETS))
        assert evaluation.loss == pytest.approx(loss.item(), rel=1e-5)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key])


# ---------------------------------------------------------------------- curvature


def objective_of(params, probes: int = 1) -> SceneObjective:
    objective = SceneObjective(SceneParameters(params), 1.0, probes, torch.Generator().manual_seed(0))
    objective.begin(StepInputs(lambda: residuals(params, 0, photographs(torch.float64))))
    return objective


def exact_of(params) -> splatopt.ResidualObjective:
    """The same, by forward mode and all rows of J; of our names."""
    back = {ours: theirs for theirs, ours in GSPLAT_NAMES.items()}

    def rendered(tensors, _):
        named = {back[name]: value for name, value in tensors.items()}
        return residuals(named | {"sh0": named["sh0"][:, None]}, 0, photographs(torch.float64))

    views = SceneParameters(params).views
    return splatopt.ResidualObjective({name: value.clone() for name, value in views.items()}, rendered, chunk=256)


def test_products_through_a_renderer_are_those_of_autograd():
    params = parameters(6, dtype=torch.float64)
    objective, exact = objective_of(params), exact_of(params)
    before = {key: value.detach().clone() for key, value in params.items()}
    generator = torch.Generator().manual_seed(3)
    tangent = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in objective.parameters.items()
    }
    along = objective.jvp(None, tangent)[0]
    torch.testing.assert_close(along.flatten(), exact.jvp(None, tangent)[0], rtol=1e-4, atol=1e-6)
    for key, value in params.items():
        assert torch.equal(value, before[key]), "a difference puts the parameters back"
    product, expected = objective.vjp(None, (along,)), exact.vjp(None, (along.flatten(),))
    for name, value in expected.items():
        torch.testing.assert_close(product[name], value)
    assert objective.gradient(None).loss == pytest.approx(exact.gradient(None).loss)


def test_blocks_by_probes_come_to_the_exact_ones_at_the_rate_of_a_mean():
    params = parameters(4, dtype=torch.float64)
    exact = exact_of(params).gauss_newton_blocks(None)
    errors = []
    for probes in (8, 128):
        found = objective_of(params, probes).gauss_newton_blocks(None)
        assert found.names == exact.names
        errors.append(float((found.blocks - exact.blocks).norm() / exact.blocks.norm()))
        assert float(torch.linalg.eigvalsh(unpack_blocks(found.blocks)).min()) > -1e-9, "none is negative"
    assert errors[1] < 0.3
    assert errors[1] < 0.5 * errors[0]
    torch.testing.assert_close(found.diagonal["sh_rest"], exact.diagonal["sh_rest"], rtol=0.5, atol=1e-6)


def test_curvature_is_rendered_only_where_it_is_due():
    params, calls = parameters(), []
    optimizer = SceneOptimizer("tr2", params, refresh=4)
    for step in range(8):
        backward(params, 0)
        optimizer.step(lambda step=step: calls.append(step) or residuals(params, 0, TARGETS))
        optimizer.zero_grad()
    assert calls == [0, 4]


@pytest.mark.parametrize(
    ("name", "first"), [("tr2", "graph"), ("tr2-paper", "ahead behind graph"), ("block-gn", "graph ahead behind")]
)
@pytest.mark.parametrize("backs", [True, False])
def test_residuals_are_called_as_often_as_the_docs_say(name, first, backs):
    """Once with a graph, and twice without at parameters to either side, h v and -h v, where J v is asked for."""
    params, steps = parameters(), []
    optimizer = SceneOptimizer(name, params, steps=100)

    def rendered():
        steps[-1].append((torch.is_grad_enabled(), params["means"].detach() - start))
        return residuals(params, 0, TARGETS)

    for _ in range(11):
        start = params["means"].detach().clone()
        steps.append([])
        if backs:
            backward(params, 0)
        optimizer.step(rendered)
        optimizer.zero_grad()
    moved = [change for has_graph, change in steps[0] if not has_graph]
    wanted = first.split()
    if not backs:
        wanted.sort(key=lambda word: word != "graph")
    assert [has_graph for has_graph, _ in steps[0]] == [word == "graph" for word in wanted]
    assert all(not change.any() for has_graph, change in steps[0] if has_graph)
    if moved:
        assert float(moved[0].abs().max()) > 0
        torch.testing.assert_close(moved[0], -moved[1], rtol=1e-2, atol=1e-6)
    assert [len(calls) for calls in steps[1:10]] == [0 if backs else 1] * 9
    assert len(steps[10]) == (3 if name == "tr2-paper" else 1)


def test_the_diagonal_is_measured_by_residual_probes():
    params = parameters(4, dtype=torch.float64)
    exact, objective = exact_of(params).exact_gauss_newton_diagonal(None), objective_of(params)
    found = objective.gauss_newton_diagonal(None, ResidualProbes(100), torch.Generator().manual_seed(1))
    for name in ("means", "sh_dc", "logit_opacities"):
        assert float((found[name] - exact[name]).norm() / exact[name].norm()) < 0.4


def test_a_parameter_probe_survives_the_difference_before_it():
    params = parameters()
    optimizer = SceneOptimizer("tr2-paper", params, estimator="parameter")
    before = loss_of(params, TARGETS)
    train(optimizer, params, 12)
    assert loss_of(params, TARGETS) < before


# ---------------------------------------------------------------------- names and shapes


def test_our_names_and_a_mapping_mean_the_same_scene():
    theirs = parameters()
    shapes = {"sh0": (-1, 3)}
    ours = {
        name: nn.Parameter(theirs[key].detach().clone().reshape(shapes.get(key, theirs[key].shape)))
        for key, name in GSPLAT_NAMES.items()
    }
    words = {key.upper(): nn.Parameter(value.detach().clone()) for key, value in theirs.items()}
    names = {key.upper(): name for key, name in GSPLAT_NAMES.items()}
    optimizers = [SceneOptimizer("sign-tr", theirs), SceneOptimizer("sign-tr", ours)]
    optimizers.append(SceneOptimizer("sign-tr", words, names=names))
    for step in range(4):
        backward(theirs, step % 3)
        for key, name in GSPLAT_NAMES.items():
            ours[name].grad = theirs[key].grad.clone().reshape(ours[name].shape)
            words[key.upper()].grad = theirs[key].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for key, name in GSPLAT_NAMES.items():
        assert torch.equal(theirs[key].flatten(), ours[name].flatten())
        assert torch.equal(theirs[key], words[key.upper()])


def test_opacities_of_two_dimensions_slices_and_scenes_without_bands():
    params = parameters(bands=0)
    del params["shN"]
    params["opacities"] = nn.Parameter(params["opacities"].detach()[:, None].clone())
    both = torch.randn(24, 4, 3)
    params["sh0"] = nn.Parameter(both[:, :1])
    assert not params["sh0"].is_contiguous()
    held = params["sh0"]
    optimizer = SceneOptimizer("learned", params)
    before = loss_of(params, TARGETS)
    train(optimizer, params, 20)
    assert loss_of(params, TARGETS) < before
    assert params["sh0"] is held
    assert params["sh0"].is_contiguous()
    assert params["opacities"].shape == (24, 1)


def test_frozen_parameters_stay():
    params = parameters()
    params["shN"].requires_grad_(False)
    before = params["shN"].clone()
    optimizer = SceneOptimizer("learned", params)
    train(optimizer, params, 5)
    assert torch.equal(params["shN"], before)
    assert set(optimizer.optimizers) == set(params) - {"shN"}


def test_rows_that_are_not_visible_stay_where_learned_knows_of_them():
    params = parameters()
    before = params["means"].detach().clone()
    visible = torch.arange(24) % 2 == 0
    optimizer = SceneOptimizer("learned", params)
    backward(params, 0)
    optimizer.step(visible=visible)
    assert torch.equal(params["means"][~visible], before[~visible])
    assert not torch.isclose(params["means"][visible], before[visible]).all(dim=1).any()


# ---------------------------------------------------------------------- sentences


def test_what_cannot_be_used_is_refused_in_a_sentence():
    params = parameters()
    with pytest.raises(InputError, match="sh0 is missing"):
        SceneOptimizer("adam", {key: value for key, value in params.items() if key != "sh0"})
    with pytest.raises(InputError, match="'shN' must be"):
        SceneOptimizer("adam", {**params, "shN": nn.Parameter(torch.zeros(24, 4, 3))})
    with pytest.raises(InputError, match="same rows"):
        SceneOptimizer("adam", {**params, "quats": nn.Parameter(torch.zeros(23, 4))})
    with pytest.raises(InputError, match="float16"):
        SceneOptimizer("adam", {key: nn.Parameter(value.detach().half()) for key, value in params.items()})
    with pytest.raises(InputError, match="leaf"):
        SceneOptimizer("adam", {**params, "quats": params["quats"] * 2})
    with pytest.raises(InputError, match="no option 'lr'"):
        SceneOptimizer("adam", params, lr=1e-3)
    with pytest.raises(InputError, match="scene_scale"):
        SceneOptimizer("adam", params, scene_scale=0.0)
    with pytest.raises(InputError, match="call loss.backward"):
        SceneOptimizer("adam", params).step()
    with pytest.raises(MissingOracleError, match="gauss_newton_diagonal"):
        SceneOptimizer("lm", params)
    with pytest.raises(InputError, match="no state of adam, but of tr2"):
        SceneOptimizer("adam", params).load_state_dict(SceneOptimizer("tr2", params).state_dict())
    with pytest.raises(InputError, match="saved state"):
        SceneOptimizer("adam", parameters(9)).load_state_dict(SceneOptimizer("adam", params).state_dict())


def test_steps_without_what_they_ask_for_are_refused_in_a_sentence():
    params = parameters()
    backward(params, 0)
    with pytest.raises(MissingOracleError, match=r"call step\(residuals_fn\)"):
        SceneOptimizer("block-gn", params).step()
    with pytest.raises(InputError, match="with their graph"):
        SceneOptimizer("block-gn", params).step(lambda: torch.zeros(3))
    with pytest.raises(InputError, match="visible must be"):
        SceneOptimizer("adam", params).step(visible=torch.ones(3, dtype=torch.bool))
    with pytest.raises(MissingOracleError, match="hvp"):
        SceneOptimizer("adahessian", params, product="exact")
    esgd = SceneOptimizer("esgd", params, product="difference")
    with pytest.raises(MissingOracleError, match="second point"):
        esgd.step()
    image, _ = render(params)
    assert torch.isfinite(image).all()
