"""Any torch optimizer as one of splatopt, on any objective."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch

from fields.cases import random_tangent, tiny_image_task
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.optimizer import Progress
from splatopt.core.scene_edit import SceneEdit, Written
from splatopt.core.state import OptimizerState
from splatopt.optim.bridge import Feed, bridge, objective_loss
from splatopt.optim.curvature_diagonal import ESGD
from splatopt.optim.shampoo import Shampoo
from splatopt.optim.torch_state import edited_state

BOTH = frozenset({Oracle.GRADIENT, Oracle.HVP})


@dataclass(frozen=True)
class Rate:
    rate: float = 0.05


BRIDGED = {
    "adam": bridge(lambda groups, options, _: torch.optim.Adam(groups, lr=options.rate)),
    "sgd": bridge(lambda groups, options, _: torch.optim.SGD(groups, lr=options.rate, momentum=0.9)),
    "shampoo": bridge(lambda groups, options, _: Shampoo(groups, options.rate)),
    "esgd": bridge(lambda groups, options, g: ESGD(groups, options.rate, generator=g), Feed.GRAPH, BOTH),
    "lbfgs": bridge(
        lambda groups, options, _: torch.optim.LBFGS(groups, max_iter=1, max_eval=9, line_search_fn="strong_wolfe"),
        Feed.CLOSURE,
    ),
}


def make(name, objective):
    return BRIDGED[name](objective, Rate(), torch.Generator().manual_seed(3))


def take(optimizer, first, count, batch=None):
    for step in range(first, first + count):
        optimizer.step(batch, Progress(step, 100))


def through_json(state):
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    return OptimizerState(tensors, json.loads(json.dumps(state.scalars)))


def test_the_bridge_takes_the_optimizers_own_steps():
    objective, twin = Quadratic(), Quadratic()
    optimizer = make("adam", objective)
    params = {name: torch.nn.Parameter(value.clone()) for name, value in twin.parameters.items()}
    own = torch.optim.Adam(params.values(), lr=0.05)
    for step in range(5):
        for name, value in twin.parameters.items():
            value.copy_(params[name].detach())
        gradient = twin.gradient(None).gradient
        for name, parameter in params.items():
            parameter.grad = gradient[name].clone()
        own.step()
        optimizer.step(None, Progress(step, 5))
    for name, value in objective.parameters.items():
        assert torch.equal(value, params[name])


@pytest.mark.parametrize("name", BRIDGED)
def test_a_quadratic_falls_in_place_and_the_evaluation_is_of_the_start(name):
    objective = Quadratic()
    optimizer = make(name, objective)
    before, tensors = objective.loss(), dict(objective.parameters)
    evaluation = optimizer.step(None, Progress(0, 100))
    assert evaluation.loss == pytest.approx(before, rel=1e-6)
    assert set(evaluation.gradient) == set(tensors)
    take(optimizer, 1, 60)
    assert objective.loss() < 0.1 * before
    assert all(value is tensors[key] for key, value in objective.parameters.items())


@pytest.mark.parametrize("name", BRIDGED)
def test_the_gradient_that_is_returned_is_that_of_the_start(name):
    objective, twin = Quadratic(), Quadratic()
    returned = make(name, objective).step(None, Progress(0, 100)).gradient
    expected = twin.gradient(None).gradient
    for key, value in returned.items():
        assert torch.allclose(value, expected[key], rtol=1e-6)


@pytest.mark.parametrize("name", BRIDGED)
@pytest.mark.parametrize("graph", [False, True])
def test_a_saved_state_goes_on_bit_exactly(name, graph):
    def fresh():
        return tiny_image_task("sine") if graph else Quadratic()

    batch = torch.arange(36) if graph else None
    straight, resumed = fresh(), fresh()
    optimizer = make(name, straight)
    take(optimizer, 0, 6, batch)
    saved, drawn = through_json(optimizer.state()), optimizer.generator.get_state()
    for key, value in resumed.parameters.items():
        value.copy_(straight.parameters[key])
    second = make(name, resumed)
    second.load_state(saved)
    second.generator.set_state(drawn)
    kept = {key: value.clone() for key, value in saved.tensors.items()}
    take(optimizer, 6, 6, batch)
    take(second, 6, 6, batch)
    for key, value in straight.parameters.items():
        assert torch.equal(value, resumed.parameters[key]), key
    assert all(torch.equal(value, saved.tensors[key]) for key, value in kept.items()), "loading copies"


def test_a_state_of_other_parameters_is_refused():
    optimizer = make("adam", Quadratic(rows=5))
    take(optimizer, 0, 1)
    state = through_json(optimizer.state())
    with pytest.raises(InputError, match=r"shapes.*\(4, 3\)"):
        make("adam", Quadratic(rows=4)).load_state(state)
    with pytest.raises(InputError, match="incomplete"):
        optimizer.load_state(OptimizerState({}, {}))


@pytest.mark.parametrize("name", ["adam", "sgd", "esgd"])
def test_row_edits_keep_the_state_of_kept_rows(name):
    objective = Quadratic(rows=5)
    optimizer = make(name, objective)
    take(optimizer, 0, 4)
    old = {key: dict(optimizer.torch.state[leaf]) for key, leaf in optimizer._leaves.items()}
    source, fresh = torch.tensor([4, 0, 0, 2]), torch.tensor([False, False, True, False])
    edit = SceneEdit(source, fresh)
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    for key, leaf in optimizer._leaves.items():
        assert leaf.data_ptr() == objective.parameters[key].data_ptr()
        for what, value in optimizer.torch.state[leaf].items():
            before = old[key][what]
            if not (isinstance(value, torch.Tensor) and value.dim()):
                assert value == before
                continue
            assert torch.equal(value[~fresh], before[source[~fresh]])
            assert not value[fresh].any()
    loss = objective.loss()
    take(optimizer, 4, 60)
    assert objective.loss() < loss


def test_what_is_not_kept_by_rows_starts_anew():
    objective = Quadratic(rows=5)
    optimizer = make("shampoo", objective)
    take(optimizer, 0, 4)
    edit = SceneEdit.keep(torch.tensor([True, True, False, True, True]))
    objective.edit_rows(edit)
    optimizer.edit_rows(edit)
    assert not optimizer.torch.state
    loss = objective.loss()
    take(optimizer, 4, 60)
    assert objective.loss() < loss


def test_a_missing_oracle_is_refused_by_name():
    with pytest.raises(MissingOracleError, match="hvp"):
        make("esgd", WithoutHessian())


# ---------------------------------------------------------------------- objectives as graphs


class WithoutHessian(Quadratic):
    """Gives its gradient alone."""

    @property
    def oracles(self):
        return frozenset({Oracle.GRADIENT})


@pytest.mark.parametrize("kind", [Quadratic, WithoutHessian])
def test_the_graph_of_an_objective_has_its_gradient_and_its_hessian_product(kind):
    objective = kind(dtype=torch.float64)
    leaves = {name: torch.nn.Parameter(value) for name, value in objective.parameters.items()}
    before = {name: value.clone() for name, value in objective.parameters.items()}
    loss, evaluation = objective_loss(objective, None, leaves)
    assert float(loss.detach()) == evaluation.loss == objective.loss()
    gradients = torch.autograd.grad(2 * loss, list(leaves.values()), create_graph=True)
    for name, part in zip(leaves, gradients, strict=True):
        assert torch.allclose(part, 2 * evaluation.gradient[name])
    v = random_tangent(objective.parameters)
    products = torch.autograd.grad(gradients, list(leaves.values()), [v[name] for name in leaves])
    for name, product in zip(leaves, products, strict=True):
        assert torch.allclose(product, 2 * objective.curvature[name] * v[name], rtol=1e-6)
    for name, value in objective.parameters.items():
        assert torch.equal(value, before[name])


def test_esgd_on_an_objective_that_is_no_graph_divides_by_its_hessian():
    """Of a diagonal Hessian c every probe tells c itself, so the first step is rate · g / (c + damping)."""
    objective, twin = Quadratic(dtype=torch.float64), Quadratic(dtype=torch.float64)
    make("esgd", objective).step(None, Progress(0, 1))
    gradient = twin.gradient(None).gradient
    for name, value in objective.parameters.items():
        step = 0.05 * gradient[name] / (twin.curvature[name] + 1e-4)
        assert torch.allclose(value, twin.parameters[name] - step, rtol=1e-12)


def test_a_reset_leaves_places_and_factors_reach_what_is_of_the_gradient():
    """Slow weights of a row that a reset does not write stay; a child's states take its share of the gradient."""
    leaf = torch.tensor([-6.0, -4.6, 1.0])
    everywhere = torch.ones(3, dtype=torch.bool)
    state = {"slow_params": leaf + 0.5, "exp_avg": torch.ones(3), "exp_avg_var": torch.ones(3)}
    lowered = Written(torch.tensor([2]), torch.tensor([-4.6]))
    edit = SceneEdit.in_place(3, leaf.device, {"logit_opacities": lowered}, resets={"logit_opacities": everywhere})
    leaf[2] = -4.6
    edited = edited_state("logit_opacities", leaf.shape, state, edit, leaf)
    assert edited["slow_params"].tolist() == pytest.approx([-5.5, -4.1, -4.6])
    assert edited["exp_avg"].tolist() == [0, 0, 0]
    halved = SceneEdit.in_place(3, leaf.device, {}, factors={"logit_opacities": torch.tensor([0.5, 1.0, 1.0])})
    state |= {name: torch.ones(3) for name in ("exp_avg_diff", "previous_grad", "exp_avg_sq", "step_size")}
    edited = edited_state("logit_opacities", leaf.shape, state, halved, leaf)
    shares = {name: float(edited[name][0]) for name in edited if name != "slow_params"}
    by_degree = (
        (0, ("step_size",)),
        (1, ("exp_avg", "exp_avg_diff", "previous_grad")),
        (2, ("exp_avg_var", "exp_avg_sq")),
    )
    assert shares == {name: 0.5**degree for degree, names in by_degree for name in names}
