"""Colour maps of photographs: closed form, anchor, what does not count, and photographs taken back."""

from __future__ import annotations

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.raster.problem import ViewProblem
from splatopt.raster.reference import ReferenceRenderer
from splatopt.scene import exposure as module
from splatopt.scene.exposure import (
    GAIN_WEIGHT,
    MIXING_WEIGHT,
    ExposureMaps,
    anchored_maps,
    apply_map,
    identity_maps,
    inverse_maps,
    solve_maps,
    view_system,
)
from splatopt.scene.initialization import start_from_points
from splatopt.scene.photometric import PhotometricObjective
from train.toys import load_toy_capture


def random_maps(count: int, seed: int = 0) -> torch.Tensor:
    """Gains of 0.6 to 1.6, casts, mixing and offsets."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(count, *shape, dtype=torch.float64).uniform_(low, high, generator=generator)

    gains = torch.diag_embed(uniform(0.6, 1.6, 1) * uniform(0.9, 1.1, 3)) + uniform(-0.03, 0.03, 3, 3)
    return torch.cat([gains, uniform(-0.02, 0.02, 3, 1)], dim=2)


def colors(seed: int, height: int = 48, width: int = 64, most: float = 1.0) -> torch.Tensor:
    """Smooth colours between 0.05 and ``most``, all channels different."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 8, generator=generator)
    image = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
    return (0.05 + (most - 0.05) * image).contiguous()


def photograph(color_map: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
    return (apply_map(color_map, scene) * 255).round().clamp(0, 255).to(torch.uint8)


def test_the_closed_form_is_that_of_least_squares_with_the_prior_as_rows(monkeypatch):
    monkeypatch.setattr(module, "_COARSE_SIDE", 1000)  # every pixel a cell
    scene, truth = colors(1), random_maps(1)[0]
    image = photograph(truth, scene)
    weights = torch.rand(48, 64, generator=torch.Generator().manual_seed(2))
    found = solve_maps(view_system(scene, image, weights))
    counted = ((image > 0) & (image < 255)).all(dim=2).double() * weights.double()
    x = torch.cat([scene.double(), torch.ones(48, 64, 1, dtype=torch.float64)], dim=2).reshape(-1, 4)
    root = counted.reshape(-1, 1).sqrt()
    total = weights.double().sum()
    for channel in range(3):
        prior = torch.full((4,), MIXING_WEIGHT, dtype=torch.float64)
        prior[channel] = GAIN_WEIGHT
        rows = torch.diag((prior * total).sqrt())
        matrix = torch.cat([root * x, rows])
        right = torch.cat([root * image[:, :, channel].reshape(-1, 1) / 255, rows[:, channel : channel + 1]])
        expected = torch.linalg.lstsq(matrix, right).solution[:, 0]
        torch.testing.assert_close(found[channel], expected, rtol=1e-6, atol=1e-8)


def test_maps_are_recovered_relative_to_their_mean():
    scenes = [colors(seed, most=0.6) for seed in range(12)]
    truth = random_maps(12)
    truth[:, :, :3] = torch.diag_embed(truth[:, :, :3].diagonal(dim1=1, dim2=2))  # as a camera makes them
    truth[:, :, 3] = 0
    images = [photograph(color_map, scene) for color_map, scene in zip(truth, scenes, strict=True)]
    maps = ExposureMaps(identity_maps(14))
    views = list(range(1, 13))
    for _ in range(2):
        found = zip(views, scenes, images, strict=True)
        maps.update(views, torch.stack([view_system(scene, image, None, maps.maps[v]) for v, scene, image in found]))
    expected = anchored_maps(truth)
    assert (maps.maps[1:13] - expected).abs().max() < 1e-2
    assert torch.equal(maps.maps[[0, 13]], identity_maps(2)), "views that are not trained on stay as they are"
    back = maps.taken_back(3, images[2])
    wanted = apply_map(inverse_maps(expected)[2], images[2].float() / 255).clamp(0, 1)
    assert (back.float() / 255 - wanted).abs().max() < 1e-2


def test_the_mean_map_stays_the_identity_whatever_the_scene_is():
    scenes = [colors(seed) for seed in range(6)]
    images = [photograph(color_map, scene) for color_map, scene in zip(random_maps(6), scenes, strict=True)]
    maps = ExposureMaps(identity_maps(6))
    first = None
    for gain in (1.0, 0.2, 3.0, 1.0):  # a scene that were to drift, or was made transparent by a strategy
        found = zip(range(6), scenes, images, strict=True)
        systems = [view_system(gain * scene, image, None, maps.maps[view]) for view, scene, image in found]
        maps.update(range(6), torch.stack(systems))
        torch.testing.assert_close(maps.maps.mean(dim=0), identity_maps(1)[0], rtol=0, atol=1e-12)
        first = maps.maps.clone() if first is None else first
        # What the scene is compared with is the same, so that it is taken back to where it was.
        assert (maps.maps - first).abs().max() < 0.05


def test_photographs_as_they_are_have_the_identity():
    maps = ExposureMaps(identity_maps(4))
    scenes = [colors(seed) for seed in range(4)]
    images = [photograph(identity_maps(1)[0], scene) for scene in scenes]
    assert maps.taken_back(2, images[2]) is images[2]
    maps.update(range(4), torch.stack([view_system(*pair, None) for pair in zip(scenes, images, strict=True)]))
    assert (maps.maps - identity_maps(4)).abs().max() < 2e-3
    assert (maps.taken_back(2, images[2]).int() - images[2].int()).abs().max() <= 1


def test_what_has_no_weight_or_is_clipped_does_not_count():
    scene, truth = colors(3, most=1.0), torch.eye(3, 4, dtype=torch.float64) * 0.8
    image = photograph(truth, scene)
    weights = torch.ones(48, 64)
    weights[:20, 10:40] = 0
    spoilt, other = image.clone(), scene.clone()
    spoilt[:20, 10:40], other[:20, 10:40] = 77, float("nan")
    assert torch.equal(view_system(scene, image, weights), view_system(other, spoilt, weights))
    assert not view_system(scene, image, torch.zeros(48, 64)).any()
    torch.testing.assert_close(solve_maps(torch.zeros(2, 4, 7, dtype=torch.float64)), identity_maps(2))
    bright = photograph(2 * truth, scene)  # of which a part is clipped
    assert (bright == 255).any()
    clipped = (solve_maps(view_system(scene, bright, None)) - 2 * truth).abs().max()
    assert clipped < 1e-2


def test_what_is_taken_back_is_in_8_bits():
    maps = ExposureMaps(identity_maps(2))
    maps.maps[0, :, :3] *= 1.6
    maps.maps[1, :, :3] *= 0.625
    maps.maps[1, 2, 3] = 0.1
    image = torch.tensor([[[200, 255, 0], [20, 100, 120]]], dtype=torch.uint8)
    assert maps.taken_back(0, image).tolist() == [[[125, 159, 0], [12, 62, 75]]]
    assert maps.taken_back(1, image).tolist() == [[[255, 255, 0], [32, 160, 151]]]
    assert maps.taken_back(1, image) is maps.taken_back(1, image), "kept"


def test_systems_that_are_no_numbers_and_maps_that_take_all_to_nothing_are_not_believed():
    scene = colors(5)
    good = view_system(scene, photograph(identity_maps(1)[0], scene), None)
    broken, opposite = torch.full((4, 7), float("nan"), dtype=torch.float64), good.clone()
    opposite[:3, 4:] *= -1  # dark where the scene is bright: of another view, or of a scene at its start
    maps = ExposureMaps(identity_maps(3))
    maps.update(range(3), torch.stack([good, broken, good]))
    assert (maps.maps - identity_maps(3)).abs().max() < 2e-3
    maps.update(range(3), torch.stack([good, opposite, good]))
    assert (maps.maps - identity_maps(3)).abs().max() < 2e-3


def test_the_sums_do_not_depend_on_the_number_of_threads():
    scene, image = colors(6, 301, 407), photograph(random_maps(1)[0], colors(6, 301, 407))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            system = view_system(scene, image, torch.rand(301, 407, generator=torch.Generator().manual_seed(0)))
            maps = ExposureMaps(identity_maps(2))
            maps.update([0, 1], torch.stack([system, 1.1 * system]))
            found.append((system, maps.maps, maps.taken_back(0, image)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.fixture(scope="module")
def objective(tmp_path_factory) -> PhotometricObjective:
    capture = load_toy_capture(tmp_path_factory.mktemp("exposure") / "toy")
    cloud = start_from_points(capture.points.positions, capture.points.colors)
    return PhotometricObjective(cloud, capture.cameras, capture.images, ReferenceRenderer())


def test_every_question_is_about_the_photograph_taken_back_and_scores_about_the_photograph(objective):
    plain = objective.evaluate([1])
    objective.exposure = ExposureMaps(identity_maps(len(objective.cameras)))
    objective.exposure.maps[1] = random_maps(1, seed=4)[0]
    try:
        image = objective.exposure.taken_back(1, objective.images[1])
        problem = objective.problem(1)
        assert torch.equal(problem.image, image)
        assert not torch.equal(image, objective.images[1])
        wanted = ViewProblem(objective.cameras[1], image, objective.options, objective.loss)
        value = objective.renderer.value(objective.cloud, wanted).loss
        assert objective.value([1]) == value
        assert objective.gradient([1]).loss == value
        assert objective.evaluate([1]) == plain
    finally:
        objective.exposure = None


def test_maps_of_another_capture_are_refused():
    with pytest.raises(InputError, match="holds the colour maps of 3 views, and the capture has 4"):
        ExposureMaps(identity_maps(3)).check_count(4, "the run")
