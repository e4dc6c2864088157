"""The start of captures without points: rows lie where photographs agree, in their colours, and in sight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scene.sights import HEIGHT, WIDTH, arc, ball, camera_at, capture_of, grey, orbit, texture, wall
from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.constants import SH_C0
from splatopt.core.frame import Frame
from splatopt.data import Capture
from splatopt.raster.constants import NEAR_PLANE
from splatopt.scene import ray_start
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import neighbour_distances, start_random
from splatopt.scene.plane_sweep import depth_range, neighbours, sweep, sweep_views
from splatopt.scene.ray_start import FAR_SHARE, Rows, _reached, rows_on_rays

COUNT = 150


def rows_of(capture: Capture, count: int = 400, seed: int = 0) -> Rows:
    return rows_on_rays(capture, count, torch.Generator().manual_seed(seed))


def start(capture: Capture, count: int = 400, seed: int = 0) -> GaussianCloud:
    return start_random(capture, count, 1, torch.Generator().manual_seed(seed))


def pixels(camera: Camera, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Column and row of each position, and whether it is seen beyond the near plane."""
    local = positions.double() @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    column = camera.fx * local[:, 0] / local[:, 2] + camera.cx
    row = camera.fy * local[:, 1] / local[:, 2] + camera.cy
    inside = (local[:, 2] > NEAR_PLANE) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    return column.clamp(0, WIDTH - 1).long(), row.clamp(0, HEIGHT - 1).long(), inside


def turned_away(count: int) -> list[Camera]:
    """Cameras in one place, looking around."""
    return [camera_at((0.0, 0.0, 0.0), (x, 0.3, 1.0)) for x in torch.linspace(-1, 1, count).tolist()]


RIGS = {
    "orbit": orbit(),
    "arc": arc(),
    "one": orbit(1),
    "two from opposite sides": [camera_at((0, 0, -3.0)), camera_at((0, 0.1, 3.0))],
    "one place": turned_away(5),
    "walk": [camera_at((0.1 * i, 0.3, 0.5 * i), (0.2 * i, 0.2, 0.5 * i + 3)) for i in range(9)],
}


@pytest.mark.parametrize("rig", RIGS)
@pytest.mark.parametrize("sight", [grey, texture])
def test_every_row_is_seen_by_a_training_view(rig, sight):
    def seen(origin, directions):
        return grey(origin, directions) if sight is grey else texture(directions)

    cameras = [*RIGS[rig], camera_at((50.0, 0, 0), (90.0, 0, 0))]
    rows = rows_of(capture_of(cameras, seen, test=[len(cameras) - 1]), 300)
    assert rows.positions.shape == (300, 3)
    assert torch.isfinite(rows.positions).all()
    assert bool(torch.stack([pixels(camera, rows.positions)[2] for camera in RIGS[rig]]).any(dim=0).all())
    assert float(rows.colors.min()) >= 0
    assert float(rows.colors.max()) <= 1


def test_rows_lie_on_what_is_textured_and_have_its_colours():
    """On a wall, within a few of the sweep's planes, where a random depth would lie anywhere on the rays."""
    capture = capture_of(arc(), wall)
    rows = rows_of(capture)
    near = rows.positions[~rows.is_far]
    off = near[:, 2].abs() / 4
    # A pixel is 1.8 % of the depth wide, and neighbours are at most 0.6 of the depth apart.
    assert float(off.median()) < 0.05
    assert float(off.quantile(0.9)) < 0.15
    on_wall = off < 0.03
    wrong = (rows.colors[~rows.is_far][on_wall] - texture(near[on_wall])).abs()
    # The texture changes by up to 0.3 from one pixel to the next; of random colours the mean would be 0.3.
    assert float(wrong.mean()) < 0.1


def test_colours_are_the_mean_of_the_photographs_that_see_a_row():
    capture = capture_of(orbit(4), lambda origin, directions: grey(origin, directions) + 0.02 * origin.sign()[0])
    means = torch.stack([capture.images[index].double().mean() / 255 for index in range(4)])
    assert len(means.unique()) > 1
    rows = rows_of(capture, 200)
    sees = torch.stack([pixels(camera, rows.positions)[2] for camera in capture.cameras]).double()
    expected = (sees * means[:, None]).sum(dim=0) / sees.sum(dim=0)
    # Each view counts by its agreement with the ray's own, which is nearly one at a difference of 0.04.
    torch.testing.assert_close(rows.colors.mean(dim=1).double(), expected, rtol=0, atol=0.006)


def test_rows_are_denser_where_rays_meet():
    rows = rows_of(capture_of(orbit(), grey), 4000)
    distance = rows.positions[~rows.is_far].norm(dim=1)
    inner = float((distance < 2).sum()) / 8
    outer = float(((distance > 3) & (distance < 4)).sum()) / (64 - 27)
    assert inner > 5 * outer > 0


@pytest.mark.parametrize("count", [1, 4, 50, 333])
def test_a_tenth_lies_on_a_far_sphere(count):
    capture = capture_of(
        orbit(), lambda origin, directions: texture(directions / directions.norm(dim=-1, keepdim=True))
    )
    rows = rows_of(capture, count)
    assert len(rows.positions) == count
    assert int(rows.is_far.sum()) == round(FAR_SHARE * count)
    middle = torch.stack([camera.center for camera in capture.cameras]).mean(dim=0)
    distance = (rows.positions - middle).norm(dim=1)
    if rows.is_far.any():
        cameras = torch.stack([camera.center for camera in capture.cameras])
        radius = 3 * torch.maximum(distance[~rows.is_far].quantile(0.9), (cameras - middle).norm(dim=1).max())
        torch.testing.assert_close(distance[rows.is_far], radius.expand(int(rows.is_far.sum())))


def test_what_lies_in_infinity_gets_rows_in_its_colours():
    """A sky alone: no near place agrees but those before all views, and the sphere has the colours of the rays."""
    capture = capture_of(arc(), lambda origin, directions: texture(3 * directions / directions[..., 2:]))
    rows = rows_of(capture, 1000)
    far = rows.positions[rows.is_far]
    middle = torch.stack([camera.center for camera in capture.cameras]).mean(dim=0)
    direction = far - middle
    wrong = (rows.colors[rows.is_far] - texture(3 * direction / direction[:, 2:])).abs()
    assert float(wrong.median()) < 0.03
    # Of the others most lie where the nearest neighbours see no difference to infinity.
    assert float((rows.positions[~rows.is_far][:, 2] > 8).double().mean()) > 0.6


def test_masks_carve():
    capture = capture_of(orbit(), ball)
    rows = rows_of(capture)
    assert not rows.is_far.any()
    for index, camera in enumerate(capture.cameras):
        column, row, inside = pixels(camera, rows.positions)
        alpha = capture.images.with_alpha(index)[1]
        assert bool((alpha[row, column] > 0)[inside].all()), index
    # The hull of twelve outlines of a ball from one height is a little larger than the ball.
    distance = rows.positions.norm(dim=1)
    assert float(distance.quantile(0.9)) < 1.15
    on_ball = (distance - 1).abs() < 0.05
    assert float(on_ball.double().mean()) > 0.5
    wrong = (rows.colors[on_ball] - texture(rows.positions[on_ball])).abs()
    assert float(wrong.mean()) < 0.05


def test_where_hardly_any_view_looks_no_mask_refutes_and_no_row_lies():
    """Two more views see things far above the ball, where no other looks."""

    def littered(origin, directions):
        seen = ball(origin, directions)
        if float(origin[1]) < -20:
            return torch.cat([texture(directions), torch.ones_like(directions[..., :1])], dim=-1)
        return seen

    strays = [camera_at((x, -30.0, 0.0), (x, -60.0, 1.0)) for x in (0.0, 1.0)]
    rows = rows_of(capture_of([*orbit(), *strays], littered))
    assert float(rows.positions.norm(dim=1).max()) < 2
    seen = sum(pixels(camera, rows.positions)[2].int() for camera in orbit())
    assert int(seen.min()) == 12


def test_a_twentieth_of_the_masks_may_be_wrong():
    """One empty mask of 24 does not carve everything away; two do not keep the rows from being as many as asked."""
    cameras = orbit(24)

    def capture_with(empty: int) -> Capture:
        images = iter(range(24))
        return capture_of(cameras, lambda origin, ray: ball(origin, ray) * (0.0 if next(images) < empty else 1.0))

    for empty in (1, 2):
        rows = rows_of(capture_with(empty), 100)
        assert len(rows.positions) == 100
        assert float(rows.positions.norm(dim=1).quantile(0.9)) < 1.3


def test_an_alpha_that_is_opaque_everywhere_is_no_mask():
    def opaque(origin, directions):
        colors = texture(directions)
        return torch.cat([colors, torch.ones_like(colors[..., :1])], dim=-1)

    assert int(rows_of(capture_of(arc(), opaque)).is_far.sum()) == 40


def test_photographs_of_nothing_are_refused():
    with pytest.raises(InputError, match="all photographs are transparent throughout"):
        start(capture_of(orbit(), lambda origin, directions: torch.zeros(*directions.shape[:2], 4)))
    with pytest.raises(InputError, match="at least 1 Gaussian, got 0"):
        start(capture_of(orbit(), grey), 0)


@pytest.mark.parametrize("sight", [wall, ball])
def test_same_seed_same_bits_at_any_number_of_threads(sight):
    capture, before = capture_of(orbit() if sight is ball else arc(), sight), torch.get_num_threads()
    first = start(capture, 100)
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            again = start(capture, 100)
            assert all(torch.equal(value, getattr(again, name)) for name, value in first.tensors.items())
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(first.means, start(capture, 100, seed=1).means)


@pytest.mark.parametrize(("scale", "shift"), [(100.0, (3.0, -40.0, 7.0)), (1e-3, (0.0, 0.0, 0.0))])
@pytest.mark.parametrize("sight", [wall, ball])
def test_rows_follow_the_cameras(sight, scale, shift):
    capture = capture_of(orbit() if sight is ball else arc(), sight)
    moved = []
    for camera in capture.cameras:
        pose = camera.world_to_camera.clone()
        pose[:3, 3] = scale * pose[:3, 3] - pose[:3, :3] @ torch.tensor(shift, dtype=torch.float64)
        moved.append(replace(camera, world_to_camera=pose))
    here, there = rows_of(capture), rows_of(replace(capture, cameras=tuple(moved)))
    expected = scale * here.positions + torch.tensor(shift, dtype=torch.float64)
    torch.testing.assert_close(there.positions, expected, rtol=1e-7, atol=1e-7 * scale)
    torch.testing.assert_close(there.colors, here.colors)
    torch.testing.assert_close(there.max_sizes, scale * here.max_sizes, rtol=1e-7, atol=0)
    assert torch.equal(there.is_far, here.is_far)


def test_sizes_are_those_of_neighbours_unless_a_row_would_fill_a_photograph():
    capture = capture_of(arc(), wall)
    rows, cloud = rows_of(capture, COUNT), start(capture, COUNT)
    assert torch.equal(cloud.means, rows.positions.float())
    torch.testing.assert_close(torch.sigmoid(cloud.logit_opacities), torch.full((COUNT,), 0.1))
    torch.testing.assert_close(cloud.sh_dc * SH_C0 + 0.5, rows.colors)
    assert cloud.sh_degree == 1
    assert not cloud.sh_rest.any()
    sizes = cloud.log_scales.double().exp()
    distances = torch.empty(COUNT, dtype=torch.float64)
    distances[rows.is_far] = neighbour_distances(rows.positions[rows.is_far])
    distances[~rows.is_far] = neighbour_distances(rows.positions[~rows.is_far])
    expected = torch.minimum(distances, rows.max_sizes)
    torch.testing.assert_close(sizes, expected[:, None].expand(COUNT, 3), rtol=1e-5, atol=0)
    assert 0 < int((distances > rows.max_sizes).sum()) < COUNT
    widest = 4 / COUNT**0.5
    for camera in capture.cameras:
        inside = pixels(camera, rows.positions)[2]
        depth = (rows.positions @ camera.world_to_camera[2, :3] + camera.world_to_camera[2, 3])[inside]
        assert float((sizes[inside, 0] * camera.fx / depth).max()) <= widest * WIDTH * (1 + 1e-4)


def test_neighbours_look_the_same_way_from_other_places():
    views = sweep_views(capture_of([*orbit(12), orbit(12)[0]], grey))
    chosen = neighbours(views)
    centers = torch.stack([view.camera.center for view in views])
    axes = torch.stack([view.camera.world_to_camera[2, :3] for view in views])
    for index, others in enumerate(chosen):
        assert others
        assert index not in others
        assert bool((axes[others] @ axes[index] > 0.5).all())
        assert float((centers[others] - centers[index]).norm(dim=1).min()) > 0.1
    # Of two from opposite sides each is all that the other has.
    assert neighbours(sweep_views(capture_of(RIGS["two from opposite sides"], grey))) == [[1], [0]]
    assert neighbours(sweep_views(capture_of(turned_away(4), grey))) == [[], [], [], []]


def test_depths_are_measured_by_the_cameras():
    views = sweep_views(capture_of([camera_at((x, 0, -4.0), (x, 0, 0)) for x in (0.0, 1.0, 2.0)], grey))
    near, far = depth_range(views[0], views[1:], 1.0)
    assert near == pytest.approx(0.25 * 2)
    assert far == pytest.approx(55 * 2 / 3)
    assert depth_range(views[0], [], 0.0) == (1.75, 7.0)
    assert depth_range(views[0], [], 2.0) == (1.0, 4.0)
    assert depth_range(views[0], views[1:2], 1000.0) == (10.0, 40.0)


def test_views_are_at_most_128_and_spread_over_all(monkeypatch):
    monkeypatch.setattr("splatopt.scene.plane_sweep.MAX_VIEWS", 4)
    capture = capture_of(orbit(9), grey, test=[0])
    kept = sweep_views(capture)
    centers = [view.camera.center.tolist() for view in kept]
    assert centers == [capture.cameras[index].center.tolist() for index in (1, 3, 5, 7)]


@pytest.mark.parametrize("rig", ["one", "one place"])
def test_where_no_depth_can_be_told_all_are_as_likely(rig):
    """From a half to twice the usual distance, evenly in its logarithm, and no share is a NaN."""
    views = sweep_views(capture_of(RIGS[rig], grey))
    places = sweep(views, 1000, torch.Generator().manual_seed(0))
    axes = torch.stack([view.rotation[2] for view in views])
    depth = (places.positions - places.origins).norm(dim=1) * (places.directions @ axes.T).amax(dim=1)
    if rig == "one":
        expected = torch.tensor([1.75 * 4**0.1, 3.5, 1.75 * 4**0.9], dtype=torch.float64)
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.testing.assert_close(depth.quantile(levels), expected, rtol=0.1, atol=0)
    torch.testing.assert_close(places.far_share, torch.full((1000,), 1 / 64))


def test_where_nothing_agrees_no_share_is_a_nan():
    """Photographs of such different exposure that none agrees with any other."""
    bright = iter([0.1, 0.5, 0.9])
    views = sweep_views(capture_of(arc(3), lambda origin, ray: grey(origin, ray) * 0 + next(bright)))
    shares = sweep(views, 300, torch.Generator().manual_seed(0)).far_share
    assert bool((shares <= 1).all())
    assert float(shares.median()) == pytest.approx(1 / 64)


@pytest.mark.parametrize("center", [(10.0, 20.0, 30.0), (0.0, 0.0, 0.0)])
def test_what_rounding_leaves_between_cameras_is_no_baseline(center):
    x, y, z = center
    looking = [(x + math.sin(turn), y + 0.3, z + math.cos(turn)) for turn in (0.1, 1.1, 2.1, 3.1, 4.1, 5.1)]
    given = [camera_at(center, target) for target in looking]
    frame = Frame.around([camera.world_to_camera for camera in given])
    capture = capture_of([replace(one, world_to_camera=frame.pose(one.world_to_camera)) for one in given], grey)
    views = sweep_views(capture)
    assert neighbours(views) == [[]] * 6
    assert depth_range(views[0], [], 1e-13) == (1.75, 7.0)
    distance = rows_of(capture, 60).positions.norm(dim=1)
    assert 1.75 < float(distance.min()) < float(distance.max()) < 30


def test_of_more_rows_than_a_quantile_takes_some_are_looked_at():
    assert float(_reached(torch.ones((), dtype=torch.float64).expand(2**24 + 1))) == 1
    torch.testing.assert_close(_reached(torch.arange(11.0)), torch.tensor(9.0))


def test_places_do_not_pile_up_where_masks_refute_them(monkeypatch):
    """Where ten of twelve masks are empty nearly every place is refuted, in all rounds."""
    kept = []
    draw = ray_start._drawn
    monkeypatch.setattr(ray_start, "_drawn", lambda weights, *rest: kept.append(len(weights)) or draw(weights, *rest))
    images = iter(range(12))
    capture = capture_of(orbit(), lambda origin, ray: ball(origin, ray) * (0.0 if next(images) < 10 else 1.0))
    assert len(rows_of(capture, 50).positions) == 50
    assert kept == [150]
