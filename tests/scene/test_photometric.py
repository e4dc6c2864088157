"""The photometric objective against autograd on a toy, and against the reference renderer."""

from __future__ import annotations

import math

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.core.objective import MissingOracleError, Oracle
from splatopt.core.scene_edit import SceneEdit
from splatopt.metrics.image import psnr, ssim
from splatopt.raster.reference import ReferenceRenderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.initialization import start_from_points
from splatopt.scene.photometric import PhotometricObjective, decibels
from train.toys import NAMES, ToyRenderer, draw, load_toy_capture


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    return load_toy_capture(tmp_path_factory.mktemp("capture") / "toy")


def make(capture, renderer=None, **options) -> PhotometricObjective:
    cloud = start_from_points(capture.points.positions, capture.points.colors)
    return PhotometricObjective(cloud, capture.cameras, capture.images, renderer or ToyRenderer(), **options)


def test_the_gradient_is_that_of_the_mean_over_views(capture):
    objective = make(capture)
    leaves = {name: value.clone().requires_grad_() for name, value in objective.parameters.items()}
    losses = []
    for view in (1, 4, 6):
        image = draw(leaves, capture.cameras[view], RenderOptions())
        losses.append(((image - capture.images[view].float() / 255) ** 2).mean())
    expected = torch.autograd.grad(sum(losses) / 3, list(leaves.values()))
    evaluation = objective.gradient([1, 4, 6])
    for name, gradient in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(evaluation.gradient[name], gradient, rtol=1e-5, atol=1e-9)
    assert evaluation.loss == pytest.approx(sum(loss.item() for loss in losses) / 3, rel=1e-6)
    expected_psnr = sum(-10 * math.log10(loss.item()) for loss in losses) / 3
    assert evaluation.metrics["psnr"] == pytest.approx(expected_psnr, rel=1e-6)
    assert evaluation.seen is not None
    assert evaluation.seen.tolist() == [True] + [False] * (len(objective.cloud) - 1)


def test_buffers_are_reused_and_cleared(capture):
    objective = make(capture)
    first = objective.gradient([1]).gradient
    kept = {name: value.clone() for name, value in first.items()}
    second = objective.gradient([1]).gradient
    for name, value in second.items():
        assert value.data_ptr() == first[name].data_ptr()
        assert torch.equal(value, kept[name])
    parts = list(second.values())
    assert parts[1].data_ptr() == parts[0].data_ptr() + 4 * parts[0].numel(), "one flat buffer"


def test_row_edits_resize_cloud_and_buffers(capture):
    objective = make(capture)
    count = len(objective.cloud)
    means = objective.cloud.means.clone()
    edit = SceneEdit(torch.tensor([3, 3, 0]), torch.tensor([False, True, False]))
    objective.edit_rows(edit)
    assert count > 3
    assert torch.equal(objective.parameters["means"], means[[3, 3, 0]])
    evaluation = objective.gradient([2])
    assert evaluation.gradient["sh_rest"].shape == (3, 15, 3)
    assert evaluation.seen.shape == (3,)


def test_the_degree_is_what_the_renderer_gets(capture):
    renderer = ToyRenderer()
    objective = make(capture, renderer)
    assert objective.sh_degree == 3
    objective.sh_degree = 1
    evaluation = objective.gradient([1])
    assert renderer.degrees == [1]
    assert objective.sh_degree == 1
    assert evaluation.gradient["sh_rest"][:, 3:].abs().max() == 0
    assert evaluation.gradient["sh_rest"][:, :3].abs().max() > 0


def test_evaluation_clamps_and_scores_each_view(capture):
    objective = make(capture)
    objective.cloud.sh_dc.fill_(40.0)
    seen = []
    scores = objective.evaluate([0, 8], seen.append)
    white = torch.ones(16, 24, 3)
    for score, view in zip(scores, (0, 8), strict=True):
        target = capture.images[view].float() / 255
        assert score.name == capture.cameras[view].name
        assert score.psnr == pytest.approx(psnr(white, target), abs=1e-5)
        assert score.ssim == pytest.approx(ssim(white, target), abs=1e-5)
    assert seen == [1, 2]


def test_with_the_reference_renderer_it_agrees_with_finite_differences(capture):
    cloud = start_from_points(capture.points.positions[:12], capture.points.colors[:12]).to(torch.float64)
    cloud.logit_opacities += 2
    objective = PhotometricObjective(cloud, capture.cameras, capture.images, ReferenceRenderer())
    gradient = {name: value.clone() for name, value in objective.gradient([1, 2]).gradient.items()}
    step = 1e-6
    for name in ("logit_opacities", "sh_dc"):
        parameter = objective.parameters[name].view(-1)
        index = int(gradient[name].abs().view(-1).argmax())
        losses = []
        for change in (step, -2 * step):
            parameter[index] += change
            losses.append(objective.gradient([1, 2]).loss)
        parameter[index] += step
        assert gradient[name].view(-1)[index].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


def test_it_offers_what_its_renderer_offers(capture):
    objective = make(capture)
    assert objective.oracles == {Oracle.GRADIENT}
    assert objective.backend == "toy"
    with pytest.raises(MissingOracleError, match=r"hvp.*toy"):
        objective.require(frozenset({Oracle.HVP}), "second")


@pytest.mark.parametrize("options", [{"length_scale": 0.0}, {"length_scale": math.nan}])
def test_numbers_without_sense_are_refused(capture, options):
    with pytest.raises(InputError, match="must"):
        make(capture, **options)


def test_an_empty_batch_is_refused(capture):
    with pytest.raises(ValueError, match="at least one view"):
        make(capture).gradient([])


@pytest.mark.parametrize(("error", "expected"), [(0.0, 100.0), (1.0, 0.0), (0.01, 20.0), (1e-30, 100.0)])
def test_decibels(error, expected):
    assert decibels(error) == pytest.approx(expected)


def test_decibels_do_not_hide_a_nan():
    assert math.isnan(decibels(math.nan))
