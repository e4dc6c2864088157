"""Spectra: dense Hessians, preconditioners, condition numbers, Lanczos."""

from __future__ import annotations

import math

import pytest
import torch

from fields.cases import NAMES, generator, tiny_image_task
from splatopt.core.checks import InputError
from splatopt.curvature.estimators import rademacher
from splatopt.curvature.hessian import CentralDifference
from splatopt.curvature.spectrum import (
    condition_number,
    dense_hessian,
    equilibrated,
    hessian_operator,
    jacobi,
    lanczos,
    preconditioned,
    product_density,
    spectral_pairs,
)

BATCH = torch.arange(36)


def symmetric(size=12, seed=0):
    root = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    return (root + root.T) / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_hessian_is_that_of_torch_func(name):
    task = tiny_image_task(name, width=3)
    shapes = {key: value.shape for key, value in task.parameters.items()}

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: part.reshape(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        out = torch.func.functional_call(task.module, values, (task.points,))
        return (out - task.colors).square().mean()

    theta = torch.cat([value.reshape(-1) for value in task.parameters.values()])
    assert torch.allclose(dense_hessian(task, BATCH), torch.func.hessian(loss)(theta), atol=1e-12)


def test_another_product_can_be_asked_for():
    task = tiny_image_task("sine", width=3)
    exact, near = dense_hessian(task, BATCH), dense_hessian(task, BATCH, CentralDifference(1e-6))
    assert 0 < (exact - near).norm() < 1e-6 * exact.norm()


def test_a_dense_hessian_that_does_not_fit_is_refused():
    task = tiny_image_task("relu", width=200)
    with pytest.raises(InputError, match="dense Hessian of 41001 parameters"):
        dense_hessian(task, BATCH)


def test_preconditioners_are_row_norms_and_diagonal():
    matrix = torch.tensor([[3.0, 4.0, 0.0], [4.0, -1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(equilibrated(matrix), torch.tensor([5.0, math.sqrt(17), 0.0], dtype=torch.float64))
    assert jacobi(matrix).tolist() == [3.0, 1.0, 0.0]
    scaled = preconditioned(matrix, jacobi(matrix))
    expected = [[1.0, 4 / math.sqrt(3), 0.0], [4 / math.sqrt(3), -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(scaled, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(preconditioned(matrix, equilibrated(matrix))[0, 0], torch.tensor(0.6, dtype=torch.float64))


def test_condition_numbers_leave_out_what_is_zero():
    diagonal = torch.tensor([-8.0, 2.0, 0.5, 1e-14, 0.0], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(symmetric(5))
    assert condition_number(rotation @ torch.diag(diagonal) @ rotation.T) == pytest.approx(16)
    assert condition_number(torch.diag(diagonal), zero=0.1) == pytest.approx(4)
    assert math.isnan(condition_number(torch.zeros(2, 2)))


def test_equilibration_undoes_a_bad_scaling_of_the_parameters():
    well = symmetric() + 12 * torch.eye(12, dtype=torch.float64)
    scales = torch.logspace(-3, 3, 12, dtype=torch.float64)
    badly = scales[:, None] * well * scales[None]
    numbers = [condition_number(m) for m in (badly, preconditioned(badly, jacobi(badly)))]
    assert numbers[0] > 1e9
    assert numbers[1] < 4
    assert condition_number(preconditioned(badly, equilibrated(badly))) < 1e-3 * numbers[0]


def test_density_counts_entries_above_a_share_of_the_largest():
    product = torch.tensor([2.0, -1.0, 1e-3, 1e-7, 0.0])
    assert product_density(product) == 0.6
    assert product_density(product, threshold=0.4) == 0.4
    assert product_density(torch.zeros(3)) == 0.0


def test_smooth_fields_have_dense_products_and_relu_has_not():
    """The theorem's claim on one pixel: idle units of ReLU leave whole rows of zeros."""
    found = {}
    for name in ("sine", "sinc", "relu"):
        task = tiny_image_task(name, width=16)
        product, size = hessian_operator(task, torch.tensor([7]))
        found[name] = product_density(product(rademacher(torch.empty(size, dtype=torch.float64), generator())))
    assert found["sine"] > 0.99
    assert found["sinc"] > 0.99
    assert found["relu"] < 0.6


def test_lanczos_finds_all_eigenvalues_in_as_many_steps_as_there_are():
    matrix = symmetric()
    pairs = lanczos(lambda v: matrix @ v, torch.ones(12, dtype=torch.float64), steps=12)
    assert torch.allclose(pairs.values, torch.linalg.eigvalsh(matrix), atol=1e-9)
    assert float(pairs.weights.sum()) == pytest.approx(1)


def test_lanczos_outer_values_come_first_and_its_quadrature_is_exact_for_low_powers():
    values = torch.cat([torch.linspace(-1, 1, 198, dtype=torch.float64), torch.tensor([5.0, -7.0]).double()])
    rotation, _ = torch.linalg.qr(symmetric(200))
    matrix = rotation @ torch.diag(values) @ rotation.T
    start = rademacher(values, generator())
    pairs = lanczos(lambda v: matrix @ v, start, steps=20)
    assert float(pairs.values[-1]) == pytest.approx(5.0, abs=1e-6)
    assert float(pairs.values[0]) == pytest.approx(-7.0, abs=1e-6)
    unit = start / start.norm()
    for power in (1, 2, 5):
        moment = unit @ torch.linalg.matrix_power(matrix, power) @ unit
        assert float((pairs.weights * pairs.values**power).sum()) == pytest.approx(float(moment), rel=1e-9)


def test_lanczos_stops_where_the_start_reaches_no_further():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    pairs = lanczos(lambda v: matrix @ v, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64), steps=4)
    assert torch.allclose(pairs.values, torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.allclose(pairs.weights, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_the_mean_of_random_starts_is_the_trace():
    task = tiny_image_task("sine", width=4)
    hessian = dense_hessian(task, BATCH)
    pairs = spectral_pairs(task, BATCH, steps=3, probes=200, generator=generator())
    traces = torch.stack([(one.weights * one.values).sum() for one in pairs]) * len(hessian)
    spread = float(traces.std()) / 200**0.5
    assert abs(float(traces.mean() - hessian.trace())) < 4 * spread
