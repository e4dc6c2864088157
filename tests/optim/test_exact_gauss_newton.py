"""EGN's step against the dense solve, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, jacrev

from fields.cases import MILD, NAMES, generator
from optim.quadratic import Quadratic
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress
from splatopt.curvature.layer_jacobian import layer_jacobian
from splatopt.fields import Architecture, ImageTask, make_field
from splatopt.optim.exact_gauss_newton import ExactGaussNewton, ExactGaussNewtonOptions

BATCHES = (torch.tensor([3, 17, 0, 22, 9]), torch.tensor([1, 5, 29, 11, 2]))


def colour_task(name: str) -> ImageTask:
    source = generator(2)
    field = make_field(name, Architecture(2, 3, 5, 1), source, **MILD.get(name, {})).double()
    return ImageTask(field, torch.rand(5, 6, 3, generator=source, dtype=torch.float64))


def flat(tensors) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def dense(task: ImageTask, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """r, J and the diagonal of P: each number's weight."""

    def residual(tensors):
        found = functional_call(task.module, tensors, (task.points[batch],)) - task.colors[batch]
        return (found * (2 / found.numel()) ** 0.5).reshape(-1)

    parts = {name: part.flatten(1) for name, part in jacrev(residual)(dict(task.parameters)).items()}
    layers = {name.rsplit(".", 1)[0] for name in parts}
    sides = {layer: [part for name, part in parts.items() if name.startswith(f"{layer}.")] for layer in layers}
    weight = {layer: 1 / torch.cat(side, dim=1).square().sum(dim=0).mean() for layer, side in sides.items()}
    weights = torch.cat([weight[name.rsplit(".", 1)[0]].expand(part.shape[1]) for name, part in parts.items()])
    return residual(task.parameters), torch.cat(list(parts.values()), dim=1), weights


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_are_the_dense_ones(name):
    """d = argmin ½‖r + Jd‖² + ½λκ (d - μd₋)ᵀP⁻¹(d - μd₋), solved in the d×d normal equations."""
    task = colour_task(name)
    optimizer = ExactGaussNewton(task, ExactGaussNewtonOptions(rate=0.3, damping=0.2, momentum=0.6))
    last = torch.zeros_like(flat(task.parameters))
    for step, batch in enumerate(BATCHES):
        r, jacobian, weights = dense(task, batch)
        kappa = float(((jacobian * weights) @ jacobian.T).diagonal().mean())
        stiff = 0.2 * kappa / weights
        normal = jacobian.T @ jacobian + torch.diag(stiff)
        expected = torch.linalg.solve(normal, stiff * 0.6 * last - jacobian.T @ r)
        before = flat(task.parameters).clone()
        evaluation = optimizer.step(batch, Progress(step, 2))
        moved = flat(task.parameters) - before
        assert moved.norm() > 1e-4
        assert torch.allclose(moved, 0.3 * expected, rtol=0, atol=1e-10 * float(expected.norm()))
        assert evaluation.loss == pytest.approx(0.5 * float(r @ r), rel=1e-12)
        assert torch.allclose(flat(evaluation.gradient), jacobian.T @ r, rtol=1e-10, atol=1e-13)
        last = expected


def test_a_linear_field_ends_in_one_step_as_the_damping_vanishes():
    source = generator(3)
    field = make_field("sine", Architecture(2, 3, 8, 0), source).double()
    for layer in field.layers:  # the head alone moves the residuals
        torch.nn.init.zeros_(layer.weight)
    field.head.weight.data.zero_()
    task = ImageTask(field, torch.full((3, 3, 3), 0.4, dtype=torch.float64))
    optimizer = ExactGaussNewton(task, ExactGaussNewtonOptions(rate=1.0, damping=1e-9, momentum=0.0))
    everything = torch.arange(9)
    optimizer.step(everything, Progress(0, 1))
    assert float(task.residual(everything).detach().norm()) < 1e-6


def test_the_units_of_a_layer_do_not_matter():
    """The weights P are those that give each layer a mean of 1 on diag(JᵀJ)."""
    task = colour_task("sine")
    jacobian = layer_jacobian(task.module, lambda: task.residual(BATCHES[0]))
    _, whole, weights = dense(task, BATCHES[0])
    shares = [1 / square for square in jacobian.mean_squares()]
    assert torch.allclose(jacobian.gram(shares).trace(), ((whole * weights) @ whole.T).trace(), rtol=1e-12)


def test_what_is_no_number_moves_nothing():
    task = colour_task("sine")
    optimizer = ExactGaussNewton(task, ExactGaussNewtonOptions())
    task.colors[3, 0] = float("nan")
    before = flat(task.parameters).clone()
    assert optimizer.step(BATCHES[0], Progress(0, 1)).loss != optimizer.step(BATCHES[0], Progress(0, 1)).loss
    assert torch.equal(flat(task.parameters), before)


def test_an_objective_without_layers_is_refused():
    with pytest.raises(InputError, match="needs the layers of a network"):
        ExactGaussNewton(Quadratic(4), ExactGaussNewtonOptions())
