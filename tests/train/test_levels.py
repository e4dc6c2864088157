"""Coarse to fine: what a level shows, what follows a change of level, and that runs go on bit-exactly through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.process_group import in_threads
from optim.views import Views
from splatopt.core import native
from splatopt.core.camera import Camera
from splatopt.core.checkpoint import latest_checkpoint
from splatopt.core.checks import InputError
from splatopt.core.optimizer import Progress
from splatopt.core.processes import Processes
from splatopt.core.row_statistics import GradientStatistics
from splatopt.core.state import Measurements
from splatopt.data import Capture, CaptureOptions, load_capture, make_capture
from splatopt.data.image_store import ImageStore
from splatopt.meta.inner import InnerState
from splatopt.meta.learned import LearnedOptions
from splatopt.optim.averaging import Averaged
from splatopt.optim.block_gauss_newton import BlockGaussNewton, BlockGaussNewtonOptions
from splatopt.optim.hessian_diagonal import Esgd, EsgdOptions
from splatopt.raster.cpu import NativeRenderer
from splatopt.raster.reference import ReferenceRenderer
from splatopt.scene.exposure import Exposure, ExposureMaps, identity_maps
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.pose_refinement import PoseRefinement, image_motion, pose_gauss_newton
from splatopt.train.coarse_to_fine import CoarseToFine
from splatopt.train.events import Evaluated
from splatopt.train.levels import Level, factor_at, parse_levels
from splatopt.train.loop import train
from splatopt.train.preflight import estimate_memory
from splatopt.train.process_context import ProcessContext
from train.toys import HEIGHT, WIDTH, Listener, ToyRenderer, lasting

LEVELS = "4:6,2:14"
needs_native = pytest.mark.skipif(not native.available(), reason="the native module is not installed")


class LouderAtFullSize(ToyRenderer):
    """A loss that is twice as high at full size."""

    def accumulate_gradient(self, gaussians, problem, into, seen, observed=None):
        found = super().accumulate_gradient(gaussians, problem, into, seen, observed)
        return replace(found, loss=found.loss * (2 if problem.camera.width == WIDTH else 1))


class SizeNoting(ToyRenderer):
    """Notes the size of every photograph that a gradient or a render is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.rendered = [], []

    def accumulate_gradient(self, gaussians, problem, into, seen, observed=None):
        assert problem.image.shape[:2] == (problem.camera.height, problem.camera.width)
        self.trained.append((problem.camera.width, problem.camera.height))
        return super().accumulate_gradient(gaussians, problem, into, seen, observed)

    def render(self, gaussians, camera, options):
        self.rendered.append((camera.width, camera.height))
        return super().render(gaussians, camera, options)


def a_level(capture: Capture, levels: str = "2:10") -> tuple[PhotometricObjective, CoarseToFine, ProcessContext]:
    """An objective of a capture at the first level."""
    context = ProcessContext(torch.device("cpu"), capture, Processes())
    cloud = GaussianCloud(**{name: value[:5] for name, value in a_cloud().tensors.items()})
    objective = PhotometricObjective(cloud, capture.cameras, context.images, ToyRenderer())
    shown = CoarseToFine(levels, objective, capture, context)
    shown.begin((), ())
    return objective, shown, context


def a_cloud(count: int = 30) -> GaussianCloud:
    """Gaussians of some pixels in images of 64 x 64."""
    draws = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=draws)  # noqa: E731
    return GaussianCloud(
        means=0.5 * normal(count, 3),
        log_scales=-1.2 + 0.1 * normal(count, 3),
        quats=normal(count, 4),
        logit_opacities=normal(count),
        sh_dc=normal(count, 3),
        sh_rest=torch.zeros(count, 3, 3),
    )


# ---------------------------------------------------------------------- the setting


def test_levels_are_read_and_found_by_step():
    levels = parse_levels(" 4:300 , 2:900 ")
    assert levels == (Level(4, 300), Level(2, 900))
    assert [factor_at(levels, step) for step in (0, 299, 300, 899, 900, 10**6)] == [4, 4, 2, 2, 1, 1]
    assert parse_levels("") == parse_levels("  ") == ()
    assert factor_at((), 0) == 1


@pytest.mark.parametrize(
    "text",
    ["4", "4:", ":300", "4:300,", "1:300", "2.5:300", "4:0", "2:300,4:900", "4:300,2:300", "-4:3", "4:1e3", "2000:3"],
)
def test_other_levels_are_refused_in_one_sentence(settings, text):
    with pytest.raises(InputError, match="--levels") as refused:
        settings(levels=text)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- what a level shows


def test_a_level_shows_what_a_capture_shows_that_is_downscaled(capture_folder):
    capture = load_capture(capture_folder)
    objective, shown, context = a_level(capture)
    small = load_capture(capture_folder, CaptureOptions(downscale=2))
    for view, camera in enumerate(small.cameras):
        assert objective.cameras[view] == replace(camera, world_to_camera=objective.cameras[view].world_to_camera)
        assert torch.equal(objective.images[view], small.images[view])
    with shown.full_size():
        assert objective.cameras[0].width == WIDTH
        assert objective.images is capture.images
    assert objective.cameras[0].width == WIDTH // 2
    shown.before_step(10)
    assert objective.images is capture.images
    assert objective.cameras[0] == replace(capture.cameras[0], world_to_camera=objective.cameras[0].world_to_camera)
    context.close()


def test_masks_shrink_with_their_photographs(tmp_path):
    folder = make_capture(tmp_path / "masked", seed=0, views=4, width=24, height=16, points=20)
    (folder / "masks").mkdir()
    for number, file in enumerate(sorted((folder / "images").iterdir())):
        seen = np.arange(24)[None, :].repeat(16, 0) < 9 + number
        Image.fromarray(seen.astype(np.uint8) * 255).save(folder / "masks" / f"{file.name}.png")
    capture, small = load_capture(folder), load_capture(folder, CaptureOptions(downscale=2))
    objective, shown, context = a_level(capture)
    for view in range(4):
        assert torch.equal(objective.weights_of(view), small.images.seen(view).float())
    with shown.full_size():
        assert objective.weights_of(0).shape == (16, 24)
    context.close()


def test_photographs_in_memory_shrink_as_well(capture_folder):
    files = load_capture(capture_folder).images
    given = ImageStore.decoded(files.sources, files.background, [files[view] for view in range(len(files))])
    small, expected = given.shrunk(2), files.shrunk(2)
    assert small[3].shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert torch.equal(small[3], expected[3])


def test_poses_that_were_refined_stay_through_a_change_of_level(capture_folder):
    capture = load_capture(capture_folder)
    objective, shown, context = a_level(capture)
    pose = objective.cameras[2].world_to_camera.clone()
    pose[0, 3] += 0.25
    objective.replace_camera(2, replace(objective.cameras[2], world_to_camera=pose))
    shown.before_step(10)
    assert torch.equal(objective.cameras[2].world_to_camera, pose)
    assert (objective.cameras[2].width, objective.cameras[2].fx) == (WIDTH, capture.cameras[2].fx)
    context.close()


def test_photographs_are_taken_back_anew_at_another_size(capture_folder):
    capture = load_capture(capture_folder)
    objective, shown, context = a_level(capture)
    maps = identity_maps(len(capture.cameras))
    maps[:, 0, 0] = 1.25
    objective.exposure = ExposureMaps(maps)
    assert objective.problem(1).image.shape == (HEIGHT // 2, WIDTH // 2, 3)
    shown.before_step(10)
    assert objective.problem(1).image.shape == (HEIGHT, WIDTH, 3)
    context.close()


# ---------------------------------------------------------------------- runs


def test_a_run_sees_its_levels_and_is_scored_at_full_size(settings):
    renderer, listener = SizeNoting(), Listener()
    train(settings(steps=18, levels=LEVELS, eval_every=4), [listener], renderer=renderer)
    timed = [(WIDTH, HEIGHT)] * 2  # what a gradient takes at full size, for the time that is left
    sizes = timed + [(WIDTH // 4, HEIGHT // 4)] * 6 + [(WIDTH // 2, HEIGHT // 2)] * 8 + [(WIDTH, HEIGHT)] * 4
    assert renderer.trained == sizes
    assert set(renderer.rendered) == {(WIDTH, HEIGHT)}
    assert len(listener.of(Evaluated)) == 6


def test_without_levels_the_bits_are_those_of_a_run_that_knows_none(settings, monkeypatch):
    with_none = train(settings("a", levels=""), renderer=ToyRenderer())
    monkeypatch.setattr(CoarseToFine, "begin", lambda *_: None)
    monkeypatch.setattr(CoarseToFine, "before_step", lambda *_: None)
    without = train(settings("b"), renderer=ToyRenderer())
    assert lasting(with_none.folder) == lasting(without.folder)
    for name, value in with_none.cloud.tensors.items():
        assert torch.equal(value, without.cloud.tensors[name]), name


@pytest.mark.parametrize("stop_at", [3, 6])
def test_a_run_goes_on_bit_exactly_within_and_between_levels(settings, stop_at):
    whole = train(settings("whole", steps=20, levels=LEVELS), renderer=ToyRenderer())
    with pytest.raises(KeyboardInterrupt):
        train(settings("part", steps=20, levels=LEVELS), [Listener(stop_at)], renderer=ToyRenderer())
    part = train(settings("part", steps=20, resume=True), renderer=ToyRenderer())
    assert lasting(part.folder) == lasting(whole.folder)
    for name, value in whole.cloud.tensors.items():
        assert torch.equal(value, part.cloud.tensors[name]), name


@needs_native
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "block-gn", "refine_poses": True},
        {"optimizer": "learned", "exposure": Exposure.AFFINE, "view_batch": 3},
        {"stages": "tr2:7,esgd:5", "density": "gain", "max_gaussians": 60},
    ],
)
def test_levels_go_with_all_else_and_go_on_bit_exactly(settings, changes):
    changes = {"steps": None, "levels": "3:4,2:8", "threads": 1, "stages": None} | changes
    changes["steps"] = changes["steps"] if changes["stages"] else 12
    whole = train(settings("whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        train(settings("part", **changes), [Listener(5)])
    part = train(settings("part", **(changes | {"resume": True})))
    first, second = (latest_checkpoint(run.folder / "checkpoints")[0].tensors for run in (whole, part))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_two_processes_see_the_levels_of_one(capture_folder, settings):
    alone = train(settings("one", steps=12, levels=LEVELS, view_batch=2), renderer=ToyRenderer())
    renderers = [SizeNoting(), SizeNoting()]

    def run(processes: Processes):
        config = settings("two", steps=12, levels=LEVELS, view_batch=2)
        return train(config, renderer=renderers[processes.rank], processes=processes)

    two = in_threads(2, run)
    assert renderers[0].trained == renderers[1].trained
    assert renderers[0].trained[:2] == [(WIDTH, HEIGHT)] * 2  # timed, for the time that is left
    assert len(set(renderers[0].trained[2:])) == 2
    for name, value in alone.cloud.tensors.items():
        torch.testing.assert_close(two[0].cloud.tensors[name], value, rtol=1e-4, atol=1e-5)


def test_memory_is_counted_at_full_size_with_the_photographs_of_a_level(settings):
    capture, cloud, renderer = load_capture(Path(settings().data.capture)), a_cloud(), ReferenceRenderer()
    without = estimate_memory(settings(), capture, cloud, renderer, on_host=True)
    within = estimate_memory(settings(levels="4:20,2:30"), capture, cloud, renderer, on_host=True)
    views = len(capture.split.train)
    assert within.total - without.total == 3 * views * (WIDTH // 2) * (HEIGHT // 2)


# ---------------------------------------------------------------------- what follows a change


def camera_of(size: int) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 4.0
    return Camera(pose, 1.2 * size, 1.2 * size, size / 2, size / 2, size, size)


@needs_native
def test_losses_and_curvature_are_means_over_pixels_that_keep_their_size():
    found = []
    for size in (64, 32):
        camera, images = camera_of(size), [torch.full((size, size, 3), 90, dtype=torch.uint8)]
        objective = PhotometricObjective(a_cloud(), [camera], images, NativeRenderer(1))
        gradient = {name: value.norm().clone() for name, value in objective.gradient((0,)).gradient.items()}
        diagonal = {name: value.sum().clone() for name, value in objective.exact_gauss_newton_diagonal((0,)).items()}
        motion, curvature = image_motion(objective.cloud, camera), pose_gauss_newton(objective, 0)
        found.append((gradient, diagonal, float(torch.linalg.solve(motion, curvature).trace())))
    (gradient, diagonal, fine), (coarse_gradient, coarse_diagonal, coarse) = found
    for name in ("means", "log_scales", "logit_opacities", "sh_dc"):
        assert float(coarse_gradient[name] / gradient[name]) == pytest.approx(1, abs=0.25), name
        assert float(coarse_diagonal[name] / diagonal[name]) == pytest.approx(1, abs=0.25), name
    assert coarse / fine == pytest.approx(4, rel=0.25)


def test_measurements_count_as_one_and_the_next_goes_half_way():
    objective = Views(dtype=torch.float32)
    ages = Measurements("age", objective.parameters)
    ages.values.copy_(torch.tensor([0.0, 1.0, 7.0, 30.0]))
    ages.follow_level(2.0)
    assert ages.values.tolist() == [0, 1, 1, 1]


def test_curvature_stays_and_counts_as_one_measurement():
    objective = Views()
    options = EsgdOptions()
    optimizer = Esgd(objective, options, torch.Generator().manual_seed(0))
    for step in range(4):
        optimizer.step((0, 1, 2), Progress(step, 10))
    direction = optimizer.direction
    before = {name: direction.corrected_curvature(value) for name, value in direction.curvature.values.items()}
    count = direction._measured.values.clone()
    optimizer.follow_level(2.0)
    assert float(count.max()) > 1
    assert float(direction._measured.values.max()) == 1
    for name, value in direction.curvature.values.items():
        torch.testing.assert_close(direction.corrected_curvature(value), before[name])


@pytest.mark.parametrize("averaged", [False, True])
def test_blocks_stay_and_count_as_one_measurement(averaged):
    objective = Views()
    plain = BlockGaussNewton(objective, BlockGaussNewtonOptions(refresh=1), torch.Generator().manual_seed(0))
    optimizer = Averaged(plain, 5.0) if averaged else plain
    for step in range(3):
        optimizer.step((0, 1, 2), Progress(step, 10))
    blocks = plain.direction.blocks.values.clone()
    optimizer.follow_level(2.0)
    assert torch.equal(plain.direction.blocks.values, blocks)
    assert float(plain.direction._age.values.max()) == 1
    assert int(plain.direction.steps.value) == 3


def test_a_learned_run_forgets_its_lowest_loss_and_sees_no_jump():
    cloud = a_cloud()
    state = InnerState.begin(cloud.tensors, 4)
    for loss in (0.5, 0.4, 0.35, 0.3):
        state.count(loss)
    before = state.running_losses()
    state.rescale_losses(0.6)
    after = state.running_losses()
    assert after[0] == pytest.approx(0.6)
    assert [one / after[0] for one in after] == pytest.approx([one / before[0] for one in before])
    state.rescale_losses(float("nan"))
    assert state.running_losses() == after


def test_a_learned_run_does_not_fall_back_when_the_loss_rises_with_the_level(settings):
    options = LearnedOptions(fallback_window=3)
    config = settings(steps=40, levels="2:10", optimizer="learned", optimizer_options=options, threads=1)
    result = train(config, renderer=LouderAtFullSize())
    assert {line["fallback"] for line in lasting(result.folder)} == {0.0}


def test_gradient_statistics_begin_again():
    statistics = GradientStatistics(a_cloud().tensors, absolute=True)
    statistics.gradient += 1
    statistics.absolute += 2
    statistics.views += 3
    statistics.follow_level(2.0)
    assert all(not value.any() for value in statistics.tensors().values())


def test_the_curvature_of_a_pixels_motion_is_of_a_smaller_pixel(capture_folder):
    objective, _, context = a_level(load_capture(capture_folder))
    refinement = PoseRefinement(objective, ())
    refinement._curvature.fill_(8.0)
    refinement.follow_level(2.0)
    assert float(refinement._curvature) == 2.0
    context.close()
