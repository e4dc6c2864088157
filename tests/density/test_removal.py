"""The cost of removing a Gaussian is what the loss changes by, and scores of others are what their formulas say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from raster.cases import look_from, make_camera, random_cloud
from splatopt.core.objective import MissingOracleError
from splatopt.core.scene_edit import SceneEdit
from splatopt.density.removal import SCORES, Criterion, cheapest, pup_scores, removal_costs
from splatopt.raster import reference, reference_blend
from splatopt.raster.losses import L1Ssim, Loss, SquaredError
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import Footprint, RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from train.toys import ToyRenderer

PLACES = ((0.7, -0.3, -4.0), (0.2, 0.1, -3.5), (-0.4, 0.2, -4.5))
VIEWS = [(0,), (1,), (2,)]


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def uncut(monkeypatch):
    """The rendering rule without the clamp of α, the skip below 1/255 and the end of a ray."""
    for module in (reference, reference_blend):
        monkeypatch.setattr(module, "MAX_ALPHA", 1.0)
        monkeypatch.setattr(module, "MIN_ALPHA", 1e-300)
        monkeypatch.setattr(module, "MIN_TRANSMITTANCE", 1e-300)


def overlapping(seed: int, count: int = 8, opaque: float = 0.0) -> GaussianCloud:
    """Large Gaussians before one another; the last one lies behind all cameras."""
    cloud = random_cloud(torch.Generator().manual_seed(seed), count, sh_degree=1, scale=0.4)
    cloud.logit_opacities += opaque
    cloud.means[-1, 2] = -40.0
    return cloud


def objective_of(cloud: GaussianCloud, loss: Loss, options: RenderOptions | None = None) -> PhotometricObjective:
    """Three views of 12x10 pixels, or about that."""
    sizes = ((12, 10), (11, 9), (12, 10))
    cameras = [
        replace(make_camera(*size), world_to_camera=look_from(place, 0.1, 0.0), name=str(place))
        for size, place in zip(sizes, PLACES, strict=True)
    ]
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8) for w, h in sizes]
    options = options or RenderOptions(background=(0.3, 0.1, 0.8))
    return PhotometricObjective(cloud, cameras, images, ReferenceRenderer(), options, loss=loss)


def mean_loss(objective: PhotometricObjective) -> float:
    return sum(objective.value(view) for view in VIEWS) / len(VIEWS)


def measured_changes(objective: PhotometricObjective) -> torch.Tensor:
    """What the loss changes by when each row alone is taken out."""
    cloud, whole, changes = objective.cloud, mean_loss(objective), []
    for row in range(len(cloud)):
        others = torch.arange(len(cloud)) != row
        objective.cloud = cloud.map(lambda tensor, kept=others: tensor[kept])
        objective._allocate()
        changes.append(mean_loss(objective) - whole)
    objective.cloud = cloud
    objective._allocate()
    return torch.tensor(changes, dtype=torch.float64)


@pytest.mark.parametrize(
    ("seed", "opaque", "footprint"),
    [
        (0, 0.0, Footprint.CLASSIC),
        (1, 3.0, Footprint.CLASSIC),
        (2, -3.0, Footprint.ANTIALIASED),
        (3, 8.0, Footprint.CLASSIC),
    ],
    ids=["mixed", "opaque", "faint antialiased", "nearly solid"],
)
def test_the_cost_is_what_the_squared_error_changes_by(uncut, seed, opaque, footprint):
    options = RenderOptions(background=(0.3, 0.1, 0.8), footprint=footprint)
    objective = objective_of(overlapping(seed, opaque=opaque), SquaredError(), options)
    predicted, measured = removal_costs(objective, VIEWS), measured_changes(objective)
    assert predicted.dtype == torch.float64
    assert predicted[-1] == measured[-1] == 0  # behind the cameras
    assert (measured[:-1].abs() > 1e-8).all()  # otherwise nothing is compared
    # Of 20 decimals that two losses share, some 16 are there; a row's own change has the rest.
    torch.testing.assert_close(predicted, measured, rtol=1e-4, atol=1e-14)


def test_of_other_losses_it_is_a_model(uncut):
    """So the test above can fail."""
    cloud = overlapping(0)
    own = objective_of(cloud, L1Ssim())
    predicted, measured = removal_costs(own, VIEWS), measured_changes(own)
    assert ((predicted - measured).abs() > 1e-2 * measured.abs()).any()


def test_with_the_cuts_the_cost_is_nearly_exact():
    objective = objective_of(overlapping(0), SquaredError())
    predicted, measured = removal_costs(objective, VIEWS), measured_changes(objective)
    torch.testing.assert_close(predicted, measured, rtol=0.05, atol=1e-5)


def test_the_batches_are_a_mean_however_they_are_cut():
    objective = objective_of(overlapping(0), SquaredError())
    together = removal_costs(objective, [(0, 1, 2)])
    torch.testing.assert_close(removal_costs(objective, VIEWS), together, rtol=1e-12, atol=1e-15)


def test_rows_that_are_opaque_beyond_any_derivative_are_kept():
    cloud = overlapping(0)
    cloud.logit_opacities[0] = 40.0
    cloud.logit_opacities[-1] = 40.0
    costs = removal_costs(objective_of(cloud, SquaredError()), VIEWS)
    assert costs[0] == math.inf
    assert costs[-1] == 0  # nobody sees it, however opaque
    assert torch.isfinite(costs[1:]).all()


def test_pups_score_is_the_determinant_of_the_images_derivatives():
    cloud = overlapping(0, count=6)
    objective = objective_of(cloud, SquaredError())
    found = pup_scores(objective, VIEWS)
    assert found[-1] == -math.inf  # not seen
    scales = cloud.log_scales.exp()

    def residuals(means, scales):
        moved = replace(cloud, means=means, log_scales=scales.log())
        images = [objective.renderer.image_of(moved, objective.cameras[view], objective.options) for view in range(3)]
        # The squared error's residuals are an image over √n.
        return torch.cat([image.reshape(-1) / math.sqrt(image.numel()) for image in images])

    by_mean, by_scale = torch.func.jacfwd(residuals, argnums=(0, 1))(cloud.means, scales)
    jacobians = torch.cat([by_mean, by_scale], dim=2).transpose(0, 1)
    full = torch.linalg.svdvals(jacobians)[:, -1] > 1e-6  # the first is drawn in one view, which is not enough
    assert full.tolist() == [False, True, True, True, True, False]
    expected = torch.logdet(jacobians[full].transpose(1, 2) @ jacobians[full] / 3)
    torch.testing.assert_close(found[full], expected, rtol=1e-6, atol=1e-6)
    assert found[0] < expected.min()


def test_opacity_is_a_score_and_the_cheapest_are_the_lowest():
    cloud = overlapping(0)
    found = SCORES[Criterion.OPACITY](objective_of(cloud, SquaredError()), VIEWS)
    torch.testing.assert_close(found, cloud.logit_opacities.sigmoid())
    assert cheapest(torch.tensor([2.0, 1.0, math.inf, 1.0, -3.0]), 3).tolist() == [False, True, False, True, True]
    assert cheapest(torch.tensor([1.0, 1.0, 1.0]), 1).tolist() == [True, False, False]
    assert not cheapest(torch.tensor([1.0, 2.0]), 0).any()


def test_removing_the_cheapest_hurts_less_than_removing_the_most_transparent():
    cloud = overlapping(4, count=20)
    changes = {}
    for by in (Criterion.COST, Criterion.OPACITY):
        objective = objective_of(cloud.clone(), SquaredError())
        before = mean_loss(objective)
        objective.edit_rows(SceneEdit.keep(~cheapest(SCORES[by](objective, VIEWS), 5)))
        assert len(objective.cloud) == 15
        changes[by] = mean_loss(objective) - before
    assert changes[Criterion.COST] < changes[Criterion.OPACITY]
    assert changes[Criterion.COST] < 0  # some rows only do harm before random images


def test_an_objective_without_curvature_is_refused():
    objective = objective_of(overlapping(0).to(torch.float32), SquaredError())
    objective.renderer = ToyRenderer()
    with pytest.raises(MissingOracleError, match="'the cost of removal' needs gauss_newton_diagonal"):
        removal_costs(objective, VIEWS)
    with pytest.raises(MissingOracleError, match="'the score of PUP 3D-GS' needs gauss_newton_blocks"):
        pup_scores(objective, VIEWS)
