"""Occupancy: points, losses, scores, surfaces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fields.cases import generator, random_tangent
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.data.mesh import BOX, inside, inside_test
from splatopt.data.torus_knot import make_torus_knot
from splatopt.fields import Architecture, OccupancyTask, make_field
from splatopt.fields.occupancy import (
    LabelledPoints,
    grid_planes,
    intersection_over_union,
    sample_points,
    shaded,
    zero_surface,
)
from splatopt.optim.dry_run import CountedMemory

KNOT = make_torus_knot(around=10, along=80)


def task(count=60):
    source = generator()
    field = make_field("sine", Architecture(3, 1, 6, 1), source, omega=3.0).double()
    points = torch.rand(count, 3, generator=source, dtype=torch.float64) * 2 - 1
    labelled = LabelledPoints(points, (points.norm(dim=1) < 0.8).double())
    return OccupancyTask(field, labelled, labelled)


def test_points_are_a_third_each_and_rightly_labelled():
    found = sample_points(KNOT, 3001, generator())
    assert found.points.shape == (3001, 3)
    assert torch.equal(found.labels > 0.5, inside(KNOT, found.points.double()))
    uniform, wide, close = found.points.split([1001, 1000, 1000])
    assert uniform.abs().max() <= 1
    assert float(uniform.std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)
    again = sample_points(KNOT, 3001, generator())
    assert torch.equal(again.points, found.points)
    # Of points this close to the surface about half lie on either side; of those of the box few lie inside.
    shares = [float((inside(KNOT, part.double())).double().mean()) for part in (uniform, wide, close)]
    assert shares[0] < 0.1
    assert 0.4 < shares[2] < 0.6
    assert shares[0] < shares[1] < shares[2]


def test_the_loss_is_the_mean_cross_entropy_and_half_the_squared_residual():
    objective = task()
    batch = torch.tensor([0, 5, 17])
    logits = objective.module(objective.training.points[batch]).squeeze(-1)
    p, y = logits.sigmoid(), objective.training.labels[batch]
    expected = float(-(y * p.log() + (1 - y) * (1 - p).log()).mean().detach())
    assert objective.gradient(batch).loss == pytest.approx(expected, rel=1e-12)
    (r,) = objective.residuals(batch)
    assert float(0.5 * r.square().sum()) == pytest.approx(expected, rel=1e-12)
    vjp_value = objective.vjp(batch, (r,))
    for name, part in objective.gradient(batch).gradient.items():
        assert torch.allclose(vjp_value[name], part, rtol=1e-9, atol=1e-15)


def test_the_hessian_product_agrees_with_finite_differences():
    objective = task()
    batch, v = torch.arange(60), random_tangent(objective.parameters)
    exact = objective.hvp(batch, v, ExactHessian())
    near = objective.hvp(batch, v, CentralDifference(1e-6))
    for name, part in exact.items():
        assert torch.allclose(part, near[name], rtol=1e-5, atol=1e-8)


def test_a_point_that_is_surely_right_has_a_finite_slope():
    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(200.0))

        def forward(self, points):
            return self.logit.expand(len(points), 1)

    labelled = LabelledPoints(torch.zeros(2, 3), torch.ones(2))
    objective = OccupancyTask(Sure(), labelled, labelled)
    batch = torch.arange(2)
    assert objective.gradient(batch).loss == 0
    vjp_value = objective.vjp(batch, (torch.ones(2),))
    assert torch.isfinite(vjp_value["logit"])


def test_intersection_over_union():
    a = torch.tensor([True, True, False, False])
    b = torch.tensor([True, False, True, False])
    assert intersection_over_union(a, b) == pytest.approx(1 / 3)
    assert intersection_over_union(a & ~a, b & ~b) == 1.0


class Ball(nn.Module):
    """Logit 0.6 - |x|: a ball."""

    def __init__(self) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(0.6))

    def forward(self, points):
        return self.radius - points.norm(dim=-1, keepdim=True)


def ball_task():
    points = torch.rand(2000, 3, generator=generator()) * 2 - 1
    labelled = LabelledPoints(points, (points.norm(dim=1) < 0.6).float())
    return OccupancyTask(Ball(), labelled, labelled)


def test_the_score_is_of_the_held_out_points():
    objective = ball_task()
    assert objective.score() == {"iou": 1.0}
    objective.parameters["radius"].fill_(0.3)
    points = objective.held_out.points.norm(dim=1)
    expected = int((points < 0.3).sum()) / int((points < 0.6).sum())
    assert objective.score()["iou"] == pytest.approx(expected)


def test_the_surface_of_a_ball_is_a_sphere_with_normals_outwards():
    surface = zero_surface(ball_task().grid(33))
    assert surface.vertices.norm(dim=1).sub(0.6).abs().max() < 0.005
    a, b, c = surface.vertices[surface.faces].unbind(dim=1)
    volume = float((a * torch.linalg.cross(b, c)).sum()) / 6
    assert volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.03)


def test_a_shape_that_leaves_the_box_is_closed_at_its_faces():
    surface = zero_surface(torch.ones(33, 33, 33))
    a, b, c = surface.vertices[surface.faces].unbind(dim=1)
    assert float((a * torch.linalg.cross(b, c)).sum()) / 6 == pytest.approx(8, rel=0.08)
    edges = torch.cat([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]])
    assert len(edges) == len(torch.unique(edges, dim=0)) == 2 * len(torch.unique(edges.sort(dim=1).values, dim=0))


def test_a_grid_is_made_plane_by_plane():
    objective = ball_task()
    axis = torch.linspace(-1, 1, 5)
    whole = objective.module(torch.cartesian_prod(axis, axis, axis)).detach().reshape(5, 5, 5)
    assert torch.equal(objective.grid(5), whole)
    with CountedMemory(2**40) as memory:
        grid = objective.grid(65)
    assert memory.peak < 1.5 * grid.nbytes
    with CountedMemory(2**40) as memory:
        is_inside = inside_test(KNOT)
        picture = shaded(is_inside(points).reshape(65, 65) for points in grid_planes(65))
    points = torch.cat(list(grid_planes(65)))
    assert memory.peak < 48 * len(points), "all points at once take 24 in double precision, turned as much, and more"
    assert torch.equal(picture, shaded(inside(KNOT, points).reshape(65, 65, 65)))


def test_nothing_inside_is_no_surface():
    assert zero_surface(torch.full((9, 9, 9), -1.0)) is None


def test_the_picture_is_seen_from_the_front_with_z_up():
    occupied = torch.zeros(8, 8, 8, dtype=torch.bool)
    occupied[1:3, 2:5, 5:7] = True
    picture = shaded(occupied)[..., 0]
    dark = picture < 1
    assert dark.nonzero().amin(dim=0).tolist() == [1, 1], "z = 6 is row 1 from above, x = 1 the second column"
    assert dark.nonzero().amax(dim=0).tolist() == [2, 2]


def test_the_box_has_room_around_the_mesh():
    assert KNOT.vertices.abs().max() == pytest.approx(BOX)
