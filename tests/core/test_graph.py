"""Objectives that are graphs answer every question as dense derivatives do."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, hessian, jacrev

from fields.cases import NAMES, SMOOTH, random_tangent, tiny_image_task
from splatopt.core.objective import Oracle
from splatopt.curvature.hessian import CentralDifference, ExactHessian


def flat(tensors):
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def dense(task, batch):
    """Loss, residual, Jacobian and Hessian as functions of one flat vector, by torch.func."""
    shapes = {name: value.shape for name, value in task.parameters.items()}

    def residual(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: part.reshape(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        out = functional_call(task.module, values, (task.points[batch],))
        return ((out - task.colors[batch]) * (2 / out.numel()) ** 0.5).reshape(-1)

    return residual, flat(task.parameters)


BATCH = torch.tensor([3, 17, 8, 30])


@pytest.mark.parametrize("name", NAMES)
def test_every_oracle_agrees_with_dense_derivatives(name):
    task = tiny_image_task(name)
    residual, theta = dense(task, BATCH)
    jacobian = jacrev(residual)(theta)
    full = hessian(lambda vector: 0.5 * residual(vector).square().sum())(theta)
    v = random_tangent(task.parameters)
    evaluation = task.gradient(BATCH)
    assert evaluation.loss == pytest.approx(0.5 * float(residual(theta).square().sum()), rel=1e-12)
    mean_squared = (task.module(task.points[BATCH]) - task.colors[BATCH]).square().mean()
    assert evaluation.loss == pytest.approx(float(mean_squared.detach()), rel=1e-12)
    assert torch.allclose(flat(evaluation.gradient), jacobian.T @ residual(theta), rtol=1e-9, atol=1e-14)
    (r,) = task.residuals(BATCH)
    assert torch.allclose(r.reshape(-1), residual(theta), rtol=1e-12)
    (jv,) = task.jvp(BATCH, v)
    assert torch.allclose(jv.reshape(-1), jacobian @ flat(v), rtol=1e-9, atol=1e-14)
    u = torch.randn(r.shape, dtype=r.dtype, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(flat(task.vjp(BATCH, (u,))), jacobian.T @ u.reshape(-1), rtol=1e-9, atol=1e-14)
    assert torch.allclose(flat(task.exact_hvp(BATCH, v)), full @ flat(v), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_hessian_product_agrees_with_finite_differences(name):
    task = tiny_image_task(name)
    v = random_tangent(task.parameters)
    exact = flat(task.hvp(BATCH, v, ExactHessian()))
    near = flat(task.hvp(BATCH, v, CentralDifference(1e-6)))
    assert (exact - near).norm() < 1e-7 * exact.norm()


def test_a_missing_tangent_is_zero():
    task = tiny_image_task("sine")
    v = random_tangent(task.parameters)
    alone = {"head.weight": v["head.weight"]}
    padded = {n: t if n == "head.weight" else torch.zeros_like(t) for n, t in v.items()}
    assert torch.equal(flat(task.exact_hvp(BATCH, alone)), flat(task.exact_hvp(BATCH, padded)))
    assert torch.equal(task.jvp(BATCH, alone)[0], task.jvp(BATCH, padded)[0])


def test_parameters_are_the_modules_own_memory_outside_the_graph():
    task = tiny_image_task("sine")
    task.parameters["head.bias"].add_(1.0)
    assert not task.parameters["head.bias"].requires_grad
    assert torch.equal(task.parameters["head.bias"], task.module.head.bias)
    before = task.gradient(BATCH).loss
    task.parameters["head.bias"].sub_(0.5)
    assert task.gradient(BATCH).loss != before


def test_what_it_says_of_itself():
    task = tiny_image_task("sine")
    assert task.oracles == {Oracle.GRADIENT, Oracle.JVP, Oracle.VJP, Oracle.HVP}
    assert (task.length_scale, task.backend) == (1.0, "autograd")
    assert task.gradient(BATCH).seen is None
    assert task.empty_residuals(BATCH)[0].shape == task.residuals(BATCH)[0].shape
