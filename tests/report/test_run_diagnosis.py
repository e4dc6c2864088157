"""A run's sharpness, shares, spectra and steps against dense matrices in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fields.cases import tiny_image_task
from raster.cases import make_camera, random_cloud
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress, find_optimizer
from splatopt.curvature.flat import FlatLayout
from splatopt.curvature.spectrum import dense_hessian, top_space
from splatopt.optim.field_optimizers import make_field_optimizer
from splatopt.raster.losses import L1Ssim
from splatopt.raster.render import make_renderer
from splatopt.report.run_diagnosis import RunDiagnosisPlan, diagnose_point, diagnose_points, units_of
from splatopt.runs.points import RunPoint
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.similarity import Similarity

ALL = RunDiagnosisPlan(lanczos_steps=1000, probes=1)


def scene(moves: Similarity | None = None, name: str = "adam") -> RunPoint:
    """Two Gaussians in float64 whose blocks are exact, as loss and renderer have it."""
    moves = moves or Similarity.staying()
    cloud, camera = random_cloud(torch.Generator().manual_seed(0), 2, 0, scale=0.3), make_camera(6, 5)
    image = torch.randint(0, 256, (5, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    objective = PhotometricObjective(
        moves.cloud(cloud),
        [moves.camera(camera)],
        [image],
        make_renderer("reference"),
        loss=L1Ssim(0.0),
        length_scale=2 * moves.scale,
    )
    entry = find_optimizer(name)
    optimizer = entry.optimizer(objective, entry.options())
    return RunPoint(0, name, objective, optimizer, Progress(0, 10))


def dense_jacobian(objective) -> torch.Tensor:
    """J, (residuals, parameters)."""
    layout = FlatLayout(objective.parameters)
    size = layout.flatten(objective.parameters).numel()
    columns = [
        torch.cat([part.flatten() for part in objective.jvp([0], layout.unflatten(unit))])
        for unit in torch.eye(size, dtype=torch.float64)
    ]
    return torch.stack(columns, dim=1)


def expected_shares(matrix: torch.Tensor, gradient: torch.Tensor, count: int) -> torch.Tensor:
    vectors = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :count]
    return (vectors.T @ gradient).square().cumsum(dim=0) / gradient.square().sum()


@pytest.mark.slow
def test_a_scene_equals_its_dense_matrix():
    point = scene()
    objective, twin = point.objective, scene()
    layout = FlatLayout(objective.parameters)
    kept = layout.flatten(objective.parameters)
    units = layout.flatten(
        {name: torch.full_like(value, units_of(objective)[name]) for name, value in objective.parameters.items()}
    )
    jacobian = dense_jacobian(objective)
    matrix = units[:, None] * (jacobian.T @ jacobian) * units
    gradient = layout.flatten(objective.gradient([0]).gradient)
    found = diagnose_point(point, [0], ALL)
    assert torch.equal(layout.flatten(objective.parameters), kept)

    values = torch.linalg.eigvalsh(matrix).flip(0)
    close = {"rtol": 1e-9, "atol": 1e-9 * float(values[0])}
    torch.testing.assert_close(torch.tensor(found.eigenvalues, dtype=torch.float64), values[:10], **close)
    assert found.found == 10
    shares = expected_shares(matrix, units * gradient, 10)
    torch.testing.assert_close(torch.tensor(found.shares, dtype=torch.float64), shares, rtol=0, atol=1e-7)

    twin.optimizer.step([0], Progress(0, 10))
    step = layout.flatten(twin.objective.parameters) - kept
    assert found.slope == pytest.approx(float(gradient @ step), rel=1e-9)
    assert found.curvature == pytest.approx(float((jacobian @ step).square().sum()), rel=1e-9)
    assert found.step_norm == pytest.approx(float((step / units).norm()), rel=1e-9)
    assert found.reach == pytest.approx(found.curvature / -found.slope)
    assert found.sharpest_reach == pytest.approx(float(values[0] * (step / units).square().sum() / -(gradient @ step)))

    rows = layout.flatten(
        {
            name: torch.arange(2.0).view(2, *[1] * (value.dim() - 1)).expand_as(value)
            for name, value in objective.parameters.items()
        }
    )
    alone = sum(float((jacobian[:, rows == row] @ step[rows == row]).square().sum()) for row in range(2))
    assert found.overlap == pytest.approx(found.curvature / alone, rel=1e-9)
    assert found.overlap != pytest.approx(1.0, abs=0.01)
    for one in found.spectrum:  # of as many steps as there are dimensions, the whole of zᵀAz/zᵀz
        assert float(one.weights.sum()) == pytest.approx(1.0)


@pytest.mark.slow
def test_a_resized_world_looks_the_same():
    moves = Similarity(torch.eye(3).double(), 2.5, torch.tensor([3.0, -1, 0.5]).double())
    few = replace(ALL, lanczos_steps=4, top=2)
    here, there = (diagnose_point(point, [0], few) for point in (scene(), scene(moves)))
    for one, other in zip(here.eigenvalues, there.eigenvalues, strict=True):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-9 * here.sharpness)
    assert there.reach == pytest.approx(here.reach, rel=1e-6)


def field_point(name: str = "sgd") -> RunPoint:
    task = tiny_image_task("sine", width=3)
    optimizer = make_field_optimizer(name, task, "sine", None, torch.Generator().manual_seed(0))
    return RunPoint(0, name, task, optimizer, Progress(0, 10))


def test_a_field_equals_its_dense_hessian():
    point, batch = field_point(), torch.arange(36)
    layout = FlatLayout(point.objective.parameters)
    hessian, gradient = dense_hessian(point.objective, batch), layout.flatten(point.objective.gradient(batch).gradient)
    found = diagnose_point(point, batch, replace(ALL, top=6))
    values = torch.linalg.eigvalsh(hessian).flip(0)
    torch.testing.assert_close(torch.tensor(found.eigenvalues, dtype=torch.float64), values[:6], rtol=1e-8, atol=1e-9)
    shares = expected_shares(hessian, gradient, 6)
    torch.testing.assert_close(torch.tensor(found.shares, dtype=torch.float64), shares, rtol=0, atol=1e-7)
    assert found.overlap is None
    assert any((one.values < -0.01).any() for one in found.spectrum)  # a field has directions that curve down
    many = diagnose_point(field_point(), batch, replace(ALL, probes=40)).spectrum
    mean = sum(float(one.weights @ one.values) for one in many) / len(many)
    assert mean * len(hessian) == pytest.approx(float(hessian.trace()), rel=0.1)
    # Of a step of plain gradient descent, -ηg, the sharpest reach is the edge of stability's ηλ₁.
    rate = found.step_norm / float(gradient.norm())
    assert found.sharpest_reach == pytest.approx(rate * float(values[0]), rel=1e-6)


def test_an_eigenvalue_lies_within_its_residual():
    root = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = root @ root.T
    values, start = torch.linalg.eigvalsh(matrix), torch.ones(40, dtype=torch.float64)
    found = top_space(lambda vector: matrix @ vector, start, 12, 5)
    assert float(found.residuals.max()) > 1e-3  # so few steps leave something
    for value, residual, vector in zip(found.values, found.residuals, found.vectors, strict=True):
        assert float((values - value).abs().min()) <= residual * (1 + 1e-9)
        assert float((matrix @ vector - value * vector).norm()) == pytest.approx(float(residual), rel=1e-6)


def test_time_and_memory_are_bounded():
    point, batch, asked = field_point(), torch.arange(36), iter([True, True, False, False, False])
    found = diagnose_point(point, batch, ALL, goes_on=lambda: next(asked))
    assert found.products == (3,)
    assert len(diagnose_points([point], lambda one: batch, replace(ALL, minutes=0.01), lambda text: None)) == 1
    few = replace(ALL, max_memory=20 * 8 * found.parameters / 2**30)
    assert diagnose_point(point, batch, few).products == (10,)
    with pytest.raises(InputError, match=r"parameters that Lanczos keeps need .* --max-memory allows 1e-06"):
        diagnose_point(point, batch, replace(ALL, max_memory=1e-6))
