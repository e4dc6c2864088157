"""Objectives from functions, against dense derivatives; and every optimizer on them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

import splatopt
from splatopt.core.checks import InputError
from splatopt.core.function_objectives import ModuleObjective, ResidualObjective
from splatopt.core.objective import MissingOracleError, Objective, Oracle
from splatopt.core.optimizer import Progress, find_optimizer, optimizer_names
from splatopt.core.scene_edit import SceneEdit
from splatopt.core.schema import BLOCK_TENSORS, tensor_shapes
from splatopt.curvature.blocks import unpack_blocks
from splatopt.curvature.estimators import ParameterProbes, ResidualProbes
from splatopt.curvature.hessian import CentralDifference, ExactHessian


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    return model, x, torch.sin(2 * x[:, :1])


def scene(rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = tensor_shapes(rows, 3)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


MIXING = torch.randn(40, 5 * 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 10


def mixed(params: dict[str, torch.Tensor], _: object) -> torch.Tensor:
    """Residuals that all entries of all rows have a part in, and that are not linear."""
    flat = torch.cat([value.flatten() for value in params.values()])
    return torch.sin(MIXING[:, : len(flat)] @ flat) - 0.5


def dense(function, params) -> torch.Tensor:
    """J, a row for each residual."""
    found = jacrev(lambda values: function(values, None))({name: value.detach() for name, value in params.items()})
    return torch.cat([found[name].flatten(1) for name in params], dim=1)


def flat(tensors, names) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in names])


def test_all_products_of_a_dictionary_are_those_of_dense_derivatives():
    params = scene()
    objective = ResidualObjective(params, mixed, chunk=7)
    jacobian, names = dense(mixed, params), list(params)
    residual = mixed(params, None).detach()
    evaluation = objective.gradient(None)
    assert evaluation.loss == pytest.approx(0.5 * float(residual.square().sum()))
    torch.testing.assert_close(flat(evaluation.gradient, names), jacobian.T @ residual)
    tangent = scene(seed=2)
    torch.testing.assert_close(objective.jvp(None, tangent)[0], jacobian @ flat(tangent, names))
    only = {"quats": tangent["quats"]}
    padded = {name: only.get(name, torch.zeros_like(value)) for name, value in params.items()}
    torch.testing.assert_close(objective.jvp(None, only)[0], jacobian @ flat(padded, names))
    torch.testing.assert_close(flat(objective.vjp(None, (residual,)), names), jacobian.T @ residual)
    product = objective.gauss_newton_product(None, tangent)
    torch.testing.assert_close(flat(product, names), jacobian.T @ jacobian @ flat(tangent, names))
    torch.testing.assert_close(flat(objective.exact_gauss_newton_diagonal(None), names), jacobian.square().sum(dim=0))
    whole = hessian(lambda values: 0.5 * mixed(values, None).square().sum())(
        {name: value.detach() for name, value in params.items()}
    )
    rows = [sum((whole[a][b].flatten(params[a].dim()) @ tangent[b].flatten()).flatten() for b in names) for a in names]
    torch.testing.assert_close(flat(objective.hvp(None, tangent, ExactHessian()), names), torch.cat(rows))


@pytest.mark.parametrize("chunk", [1, 64])
def test_blocks_of_gaussians_are_those_of_the_dense_matrix(chunk):
    params = scene()
    objective = ResidualObjective(params, mixed, chunk)
    found = objective.gauss_newton_blocks(None)
    assert found.names == BLOCK_TENSORS
    whole = dense(mixed, params).T @ dense(mixed, params)
    places = torch.arange(len(whole)).split([value.numel() for value in params.values()])
    index = {name: part.view(value.shape) for (name, value), part in zip(params.items(), places, strict=True)}
    for row, block in enumerate(unpack_blocks(found.blocks)):
        own = torch.cat([index[name][row].reshape(-1) for name in BLOCK_TENSORS])
        torch.testing.assert_close(block, whole[own][:, own])
    torch.testing.assert_close(found.diagonal["sh_rest"].flatten(), whole.diagonal()[index["sh_rest"].flatten()])


def test_a_module_is_differentiated_in_its_own_parameters():
    model, x, y = network()
    objective = ResidualObjective(model, lambda model, rows: model(x[rows]) - y[rows])
    rows, names = torch.arange(8), [name for name, _ in model.named_parameters()]

    def residuals(values, _):
        return (functional_call(model, values, (x[rows],)) - y[rows]).flatten()

    jacobian = dense(residuals, dict(model.named_parameters()))
    tangent = {name: torch.randn_like(value) for name, value in objective.parameters.items()}
    torch.testing.assert_close(objective.jvp(rows, tangent)[0], jacobian @ flat(tangent, names))
    torch.testing.assert_close(flat(objective.exact_gauss_newton_diagonal(rows), names), jacobian.square().sum(dim=0))
    assert Oracle.GAUSS_NEWTON_BLOCKS not in objective.oracles, "its parameters have no rows together"
    with pytest.raises(MissingOracleError, match="gauss_newton_blocks"):
        objective.gauss_newton_blocks(rows)


def test_frozen_parameters_of_a_module_stay_as_they_are():
    model, x, y = network()
    model[0].weight.requires_grad_(False)
    objective = ModuleObjective(model, lambda model, _: (model(x) - y).square().mean())
    assert set(objective.parameters) == {"0.bias", "2.weight", "2.bias"}
    before = model[0].weight.clone()
    splatopt.make_optimizer("adam", objective, rate=1e-2).step(None, Progress(0, 1))
    assert torch.equal(model[0].weight, before)
    assert not model[0].weight.requires_grad


def test_a_loss_alone_gives_its_gradient_and_hessian_product_and_no_residuals():
    params = scene()
    objective = ModuleObjective(params, lambda params, _: mixed(params, None).square().sum() / 2)
    residuals = ResidualObjective(scene(), mixed)
    for name, part in objective.gradient(None).gradient.items():
        torch.testing.assert_close(part, residuals.gradient(None).gradient[name])
    tangent = scene(seed=2)
    exact = objective.hvp(None, tangent, ExactHessian())
    near = objective.hvp(None, tangent, CentralDifference())
    for name, part in exact.items():
        torch.testing.assert_close(part, near[name], rtol=1e-4, atol=1e-6)
    for ask in (objective.residuals, objective.empty_residuals, lambda _: objective.jvp(None, tangent)):
        with pytest.raises(MissingOracleError):
            ask(None)
    with pytest.raises(MissingOracleError, match="needs"):
        splatopt.make_optimizer("block-gn", objective)


class _NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, along):
        return along * ctx.saved_tensors[0].cos()


def test_a_function_that_has_no_forward_mode_is_refused_in_a_sentence_and_has_rows_all_the_same():
    params = {"a": torch.randn(4, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}

    def residuals(params, _):
        return _NoForward.apply(params["a"]).sum(dim=1) * params["b"]

    objective = ResidualObjective(params, residuals, chunk=3)
    with pytest.raises(MissingOracleError, match="cannot differentiate forwards"):
        objective.jvp(None, {"a": torch.ones(4, 2, dtype=torch.float64)})
    # `vmap` has no rule for it either, so the rows of J come one by one.
    expected = ((params["a"].cos() * params["b"][:, None]) ** 2).detach()
    torch.testing.assert_close(objective.exact_gauss_newton_diagonal(None)["a"], expected)
    generator = torch.Generator().manual_seed(0)
    found = objective.gauss_newton_diagonal(None, ResidualProbes(2), generator)["a"]
    torch.testing.assert_close(found, expected, msg="each entry has one residual, so probes are exact")


def test_an_error_of_the_function_itself_stays_as_it_is():
    def broken(params, _):
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        ResidualObjective({"a": torch.ones(2)}, broken).jvp(None, {"a": torch.ones(2)})


def test_what_is_given_wrongly_is_a_sentence():
    leaf = torch.ones(2)
    with pytest.raises(InputError, match="must be a leaf"):
        ModuleObjective({"a": leaf.requires_grad_() * 2}, lambda p, _: p["a"].sum())
    with pytest.raises(InputError, match="at least one parameter"):
        ModuleObjective({}, lambda p, _: torch.zeros(()))
    with pytest.raises(InputError, match="scalar tensor with its graph"):
        ModuleObjective({"a": leaf}, lambda p, _: p["a"]).gradient(None)
    with pytest.raises(InputError, match="tensor or several"):
        ResidualObjective({"a": leaf}, lambda p, _: 3.0).gradient(None)
    with pytest.raises(InputError, match="chunk"):
        ResidualObjective({"a": leaf}, lambda p, _: p["a"], 0)
    with pytest.raises(InputError, match="no option 'lr'"):
        splatopt.make_optimizer("tr2", ResidualObjective({"a": leaf}, lambda p, _: p["a"]), lr=1)


def test_unused_parameters_have_zero_gradients():
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    objective = ResidualObjective(params, lambda p, _: p["a"])
    assert torch.equal(objective.gradient(None).gradient["b"], torch.zeros(3))
    assert torch.equal(objective.vjp(None, (torch.ones(2),))["b"], torch.zeros(3))


def test_rows_of_a_dictionary_are_edited_in_place():
    params = scene()
    objective = ResidualObjective(params, lambda p, _: p["means"].flatten() - 1)
    kept = dict(params)
    before = params["means"].detach().clone()
    objective.edit_rows(SceneEdit(torch.tensor([3, 3, 0]), torch.tensor([False, True, False])))
    assert all(params[name] is value for name, value in kept.items())
    assert torch.equal(params["means"].detach(), before[[3, 3, 0]])
    assert objective.gradient(None).gradient["means"].shape == (3, 3)


ON_ANYTHING = [name for name in optimizer_names() if name not in ("learned", "block-gn")]


@pytest.mark.parametrize("name", [*ON_ANYTHING, "sgd", "shampoo", "kfac", "esgd-max", "adahessian-j", "zoo:lion"])
def test_every_optimizer_lowers_a_residual_objective_of_a_module(name):
    model, x, y = network()
    options = {"lm": {"preconditioner": "diagonal"}, "adam": {"rate": 1e-2}, "adahessian-j": {"rate": 1e-2}}
    objective = ResidualObjective(model, lambda model, rows: (model(x[rows]) - y[rows]) * (2 / len(rows)) ** 0.5)
    optimizer = splatopt.make_optimizer(name, objective, **options.get(name, {}))
    everything = torch.arange(len(x))
    steps = 4 if name == "lm" else 20
    first = optimizer.step(everything, Progress(0, 20)).loss
    for step in range(1, steps):
        last = optimizer.step(everything, Progress(step, 20)).loss
    assert last < first


@pytest.mark.parametrize("name", ["block-gn", "lm", "learned", "tr2"])
def test_optimizers_of_scenes_lower_a_residual_objective_of_gaussians(name):
    params = scene(rows=12)
    target = {key: value + 0.1 for key, value in scene(rows=12).items()}

    def residuals(params, _):
        return torch.cat([(params[key] - target[key]).flatten() for key in params])

    objective = ResidualObjective(params, residuals)
    optimizer = splatopt.make_optimizer(name, objective)
    first = optimizer.step(None, Progress(0, 20)).loss
    for step in range(1, 4 if name == "lm" else 20):
        last = optimizer.step(None, Progress(step, 20)).loss
    assert last < 0.9 * first


class Autograd(Objective):
    """What someone writes who knows PyTorch and not that an optimizer's step switches autograd off."""

    def __init__(self) -> None:
        self.theta = torch.ones(3, requires_grad=True)

    parameters = property(lambda self: {"theta": self.theta})
    oracles = property(lambda self: frozenset({Oracle.GRADIENT, Oracle.JVP, Oracle.VJP}))
    length_scale = property(lambda self: 1.0)
    backend = property(lambda self: "autograd")

    def gradient(self, batch):
        loss = self.theta.square().sum()
        (found,) = torch.autograd.grad(loss, self.theta)
        return splatopt.Evaluation(loss.item(), {"theta": found}, None, {})

    def empty_residuals(self, batch):
        return (torch.empty(3),)

    def vjp(self, batch, cotangent):
        return {"theta": torch.autograd.grad(2**0.5 * self.theta, self.theta, cotangent[0])[0]}

    def jvp(self, batch, tangent):
        return (2**0.5 * tangent["theta"],)


@pytest.mark.parametrize("name", ["adam", "sign-tr", "tr2"])
def test_an_objective_may_use_autograd_inside_a_step(name):
    objective = Autograd()
    entry = find_optimizer(name)
    options = {"estimator": "residual"} if name == "tr2" else {}
    optimizer = entry.optimizer(objective, entry.options(**options), torch.Generator().manual_seed(0))
    before = float(objective.theta.detach().square().sum())
    for step in range(3):
        optimizer.step(None, Progress(step, 3))
    assert float(objective.theta.detach().square().sum()) < before
    assert objective.theta.requires_grad
    assert optimizer.state().tensors, "what is kept has no graph"
    assert not any(value.requires_grad for value in optimizer.state().tensors.values())


def test_parameter_probes_ask_for_forward_mode():
    params = {"a": torch.randn(6, dtype=torch.float64)}
    objective = ResidualObjective(params, lambda p, _: p["a"] * torch.arange(1.0, 7.0))
    found = objective.gauss_newton_diagonal(None, ParameterProbes(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found["a"], torch.arange(1.0, 7.0, dtype=torch.float64) ** 2)


@pytest.mark.slow
def test_all_names_are_known_in_a_fresh_process():
    source = Path(splatopt.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import splatopt; print(*splatopt.optimizer_names())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"adam", "tr2", "block-gn", "lm", "esgd", "learned"} <= set(found)
    assert tuple(found) == optimizer_names()


def test_every_optimizer_is_importable_by_its_class():
    import splatopt.meta
    import splatopt.optim

    for name in optimizer_names():
        kind = find_optimizer(name).optimizer
        home = splatopt.meta if name == "learned" else splatopt.optim
        assert getattr(home, kind.__name__) is kind
