"""Radiance fields: rays, volume rendering, batches, scores."""

from __future__ import annotations

import math

import pytest
import torch

from fields.cases import generator, random_tangent
from splatopt.core.camera import Camera
from splatopt.curvature.hessian import CentralDifference, ExactHessian
from splatopt.data import load_capture, make_capture
from splatopt.fields import Architecture, RadianceField, RadianceTask, make_field
from splatopt.fields.radiance import FEATURES, Bounds, RayBatch, Rays, camera_rays

BOUNDS = Bounds(torch.zeros(3), 2.0, 1.0, 5.0)


class Fog(torch.nn.Module):
    """Raw density and colour that are the same everywhere."""

    def __init__(self, raw: float, color: tuple[float, float, float]) -> None:
        super().__init__()
        self.raw = torch.nn.Parameter(torch.tensor(raw))
        self.tint = torch.nn.Parameter(torch.tensor(color))

    def forward(self, points, directions):
        return self.raw.expand(*points.shape[:-1], 1), self.tint.expand(points.shape)


def camera(width=4, height=3) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([0.1, -0.2, 3.0])
    rotation = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)
    pose[:3, :3] = rotation
    return Camera(pose, 5.0, 6.0, 1.9, 1.4, width, height, "one")


class Photos:
    """Images of one colour that grows with the view."""

    def __init__(self, cameras):
        self.shapes = [(one.height, one.width) for one in cameras]

    def __getitem__(self, view):
        height, width = self.shapes[view]
        return (torch.arange(height * width * 3).reshape(height, width, 3) + 40 * view).to(torch.uint8)


def radiance_field(name="gaussian", width=8, **constants) -> RadianceField:
    field = make_field(name, Architecture(3, 1 + FEATURES, width, 1), generator(), **constants)
    return RadianceField(field, generator(1))


def task(field=None, samples=8, background=(0.25, 0.5, 0.75)):
    cameras = [camera(), camera(5, 2), camera()]
    module = field or RadianceField(
        make_field("gaussian", Architecture(3, 1 + FEATURES, 8, 1), generator()), generator(1)
    )
    return RadianceTask(
        module, cameras, Photos(cameras), BOUNDS, train=[0, 1], test=[2], samples=samples, background=background
    )


def test_rays_pass_through_their_pixels_centres():
    one = camera()
    rays = camera_rays(one, torch.arange(12))
    assert torch.allclose(rays.directions.norm(dim=1), torch.ones(12))
    assert torch.allclose(rays.origins, one.center.float().expand(12, 3))
    pose = one.world_to_camera
    points = (rays.origins + 2.5 * rays.directions).double() @ pose[:3, :3].T + pose[:3, 3]
    x = one.fx * points[:, 0] / points[:, 2] + one.cx
    y = one.fy * points[:, 1] / points[:, 2] + one.cy
    assert torch.allclose(x, torch.arange(4).repeat(3).double() + 0.5, atol=1e-5)
    assert torch.allclose(y, torch.arange(3).repeat_interleave(4).double() + 0.5, atol=1e-5)


def rays(count=5):
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator()), dim=1)
    return Rays(torch.zeros(count, 3), directions)


@pytest.mark.parametrize("raw", [-3.0, 0.0, 2.0])
def test_uniform_fog_lets_through_what_beers_law_says(raw):
    """Density times what lies between the first sample and the far end, in stretches."""
    objective = task(Fog(raw, (1.0, 0.5, 0.0)), samples=16)
    shaded = objective.shade(rays(), torch.tensor(0.5))
    density = math.log1p(math.exp(raw - 1))
    left = math.exp(-density * 15.5)
    expected = (1 - left) * torch.tensor([1.0, 0.5, 0.0]) + left * torch.tensor([0.25, 0.5, 0.75])
    assert torch.allclose(shaded, expected.expand(5, 3), atol=1e-5)


def test_rendering_is_the_sum_over_samples_written_out():
    objective = task(samples=5)
    jitter = torch.rand(3, 5, generator=generator(4))
    some = rays(3)
    shaded = objective.shade(some, jitter)
    for ray in range(3):
        stretch = 4.0 / 5
        t = [1.0 + (index + float(jitter[ray, index])) * stretch for index in range(5)]
        color, through = torch.zeros(3), 1.0
        for index in range(5):
            point = some.origins[ray] + t[index] * some.directions[ray]
            raw, c = objective.field((point / 2.0)[None], some.directions[ray][None])
            gap = ((t[index + 1] if index < 4 else 5.0) - t[index]) / stretch
            alpha = 1 - math.exp(-math.log1p(math.exp(float(raw.detach()) - 1)) * gap)
            color = color + through * alpha * c[0]
            through *= 1 - alpha
        color = color + through * torch.tensor([0.25, 0.5, 0.75])
        assert torch.allclose(shaded[ray], color, atol=1e-5)


def test_the_colour_of_a_dense_field_does_not_depend_on_what_lies_behind():
    near = task(Fog(50.0, (0.2, 0.4, 0.6)), background=(1.0, 1.0, 1.0)).shade(rays(), torch.tensor(0.5))
    assert torch.allclose(near, torch.tensor([0.2, 0.4, 0.6]).expand(5, 3), atol=1e-6)


def test_a_batch_has_the_rays_and_colours_of_its_pixels():
    objective = task()
    assert objective.size == 12 + 10
    batch = objective.draw(torch.tensor([0, 13, 11, 21]), generator())
    first, second = objective.cameras[0], objective.cameras[1]
    for place, (one, view, pixel) in enumerate([(first, 0, 0), (second, 1, 1), (first, 0, 11), (second, 1, 9)]):
        expected = camera_rays(one, torch.tensor([pixel]))
        assert torch.equal(batch.rays.directions[place], expected.directions[0])
        assert torch.equal(batch.rays.origins[place], expected.origins[0])
        assert torch.equal(batch.colors[place], objective.images[view].reshape(-1, 3)[pixel] / 255)
    assert batch.jitter.shape == (4, 8)
    assert 0 <= batch.jitter.min() < batch.jitter.max() < 1
    again = objective.draw(torch.tensor([0, 13, 11, 21]), generator())
    assert torch.equal(again.jitter, batch.jitter)


def test_the_loss_is_the_mean_squared_error_of_the_batch():
    objective = task()
    batch = objective.draw(torch.arange(22), generator())
    shaded = objective.shade(batch.rays, batch.jitter)
    evaluation = objective.gradient(batch)
    assert evaluation.loss == pytest.approx(float((shaded - batch.colors).square().mean().detach()), rel=1e-5)
    assert evaluation.metrics["psnr"] == pytest.approx(-10 * math.log10(evaluation.loss))


def test_masked_pixels_take_no_part_in_loss_and_scores():
    objective = task()
    expected = objective.score()["psnr"]
    shown = [torch.ones(one.height, one.width) for one in objective.cameras]
    shown[1][:, 1:] = 0
    objective.weights = [None, shown[1], None]
    batch = objective.draw(torch.arange(22), generator())
    kept = batch.seen.bool()[:, 0]
    assert kept.tolist() == [True] * 12 + [True, False, False, False, False] * 2
    shaded = objective.shade(batch.rays, batch.jitter)
    evaluation = objective.gradient(batch)
    error = (shaded - batch.colors)[kept].square().mean()
    assert evaluation.loss == pytest.approx(float(error.detach()), rel=1e-5)
    gradient = {name: value.clone() for name, value in evaluation.gradient.items()}
    batch.colors[~kept] = 0.5
    for name, value in objective.gradient(batch).gradient.items():
        assert torch.equal(value, gradient[name])
    assert objective.score()["psnr"] == expected
    objective.weights = [None, None, shown[0] * (torch.arange(4) < 2)]
    half = objective.render(2)[:, :2].double() - objective.image(2)[:, :2].double() / 255
    assert objective.score()["psnr"] == pytest.approx(-10 * math.log10(float(half.square().mean())), abs=1e-4)


def test_the_hessian_product_agrees_with_finite_differences():
    objective = task(radiance_field("sine", width=4, omega=3.0).double())
    drawn = objective.draw(torch.arange(6), generator())
    batch = RayBatch(
        Rays(drawn.rays.origins.double(), drawn.rays.directions.double()), drawn.colors.double(), drawn.jitter.double()
    )
    objective.background = objective.background.double()
    v = random_tangent(objective.parameters)
    exact, near = (objective.hvp(batch, v, method) for method in (ExactHessian(), CentralDifference(1e-6)))
    for name, part in exact.items():
        assert torch.allclose(part, near[name], rtol=1e-4, atol=1e-7), name


def test_rendering_a_view_puts_samples_in_the_middle_and_rows_in_order():
    objective = task()
    image = objective.render(2)
    assert image.shape == (3, 4, 3)
    expected = objective.shade(camera_rays(objective.cameras[2], torch.tensor([7])), torch.tensor(0.5))
    assert torch.allclose(image[1, 3], expected[0].detach().clamp(0, 1))


def test_small_views_are_scored_without_ssim_and_large_ones_with(tmp_path):
    assert list(task().score()) == ["psnr"]
    capture = load_capture(make_capture(tmp_path / "c", views=8, width=24, height=16, points=40))
    split = capture.split
    objective = RadianceTask(
        radiance_field(), capture.cameras, capture.images, BOUNDS, train=split.train, test=split.test, samples=4
    )
    assert list(objective.score()) == ["psnr", "ssim"]


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="from 3 to 16 numbers"):
        RadianceField(make_field("relu", Architecture(2, 3, 4, 0), generator()), generator())
