"""Runs on masked photographs: what lies behind a mask changes no bit of scene, scores, edits and pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splatopt.cli import main
from splatopt.core.checks import InputError
from splatopt.core.row_statistics import GradientStatistics
from splatopt.data import Capture, load_capture
from splatopt.data.procedural import make_capture
from splatopt.data.seen_pixels import MaskUse
from splatopt.metrics.image import psnr
from splatopt.raster.cpu import NativeRenderer
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import start_from_points, start_random
from splatopt.scene.photometric import PhotometricObjective
from splatopt.scene.plane_sweep import sweep_views
from splatopt.train.config import TrainConfig
from splatopt.train.evaluate import PROTOCOL, check_scorable
from splatopt.train.loop import train
from splatopt.train.run import open_run
from train.density_runs import edits, gone_on, grown, same_scene
from train.toys import Listener

VIEWS, WIDTH, HEIGHT, POINTS = 8, 48, 36, 150
LEFT = np.arange(WIDTH)[None, :].repeat(HEIGHT, 0) < WIDTH // 2


def masked_capture(folder: Path, seed: int, seen: np.ndarray = LEFT) -> Path:
    """A capture whose photographs are noise where they are masked; ``seed`` decides on the noise alone."""
    make_capture(folder, views=VIEWS, width=WIDTH, height=HEIGHT, points=POINTS)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(seed)
    for file in sorted((folder / "images").iterdir()):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(np.where(seen[:, :, None], np.asarray(Image.open(file)), noise)).save(file)
        Image.fromarray(seen.astype(np.uint8) * 255).save(folder / "masks" / f"{file.name}.png")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two captures that differ behind their masks."""
    folder = tmp_path_factory.mktemp("masked")
    return masked_capture(folder / "a" / "still", 1), masked_capture(folder / "b" / "still", 2)


def run(capture: Path, folder: Path, callbacks=(), **changes) -> Path:
    settings = {"steps": 8, "threads": 1, "checkpoint_every": 4, "log_every": 4, "out": folder}
    train(TrainConfig.of(str(capture), **(settings | changes)), callbacks)
    return folder


def check_alike(first: Path, second: Path) -> None:
    assert same_scene(first, second)
    scores = [json.loads((folder / "eval.json").read_text()) for folder in (first, second)]
    for one in scores:
        del one["seconds"], one["capture"]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"downscale": 2},
        {"init": "random", "random_points": 120},
        {"optimizer": "block-gn", "view_batch": 2},
        {"loss": "charbonnier"},
    ],
    ids=str,
)
def test_what_lies_behind_masks_changes_no_bit(pair, tmp_path: Path, changes: dict) -> None:
    first, second = (run(capture, tmp_path / capture.parent.name, **changes) for capture in pair)
    check_alike(first, second)


@pytest.mark.parametrize("strategy", ["adc", "mcmc", "gain"])
def test_what_lies_behind_masks_changes_no_edit(pair, tmp_path: Path, strategy: str) -> None:
    first, second = (tmp_path / name for name in "ab")
    for capture, folder in zip(pair, (first, second), strict=True):
        grown(capture, strategy, folder, steps=6, checkpoint_every=6, max_gaussians=300)
    check_alike(first, second)
    assert edits(first)
    assert edits(first) == edits(second)


def test_without_masks_the_noise_is_trained_on(pair, tmp_path: Path) -> None:
    first, second = (run(capture, tmp_path / capture.parent.name) for capture in pair)
    for folder in pair:
        (folder / "masks").rename(folder / "away")
    try:
        third, fourth = (run(capture, tmp_path / f"plain-{capture.parent.name}") for capture in pair)
    finally:
        for folder in pair:
            (folder / "away").rename(folder / "masks")
    assert same_scene(first, second)
    assert not same_scene(third, fourth)
    assert not same_scene(first, third)
    scores = json.loads((third / "eval.json").read_text())
    assert scores["protocol"] == PROTOCOL
    assert all(set(view) == {"name", "psnr", "ssim"} for view in scores["views"])


def test_a_run_goes_on_with_its_masks_to_the_same_bits(pair, tmp_path: Path) -> None:
    whole = run(pair[0], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(pair[0], tmp_path / "short", callbacks=[Listener(stop_at=5)])
    with pytest.raises(InputError, match="mask"):
        gone_on(tmp_path / "short", mask=MaskUse.BACKGROUND)
    gone_on(tmp_path / "short")
    assert same_scene(whole, tmp_path / "short")
    (pair[0] / "masks").rename(pair[0] / "gone")
    try:
        with pytest.raises(InputError, match="its masks are none, the run's were 8 and ignored"):
            gone_on(tmp_path / "short", steps=12)
    finally:
        (pair[0] / "gone").rename(pair[0] / "masks")


def test_scores_say_how_many_pixels_they_are_of(pair, tmp_path: Path, capsys) -> None:
    folder = run(pair[0], tmp_path / "run", steps=2)
    record = json.loads((folder / "eval.json").read_text())
    assert record["protocol"].startswith(f"{PROTOCOL}; over the 50.0 % of pixels that masks leave")
    assert [view["counted"] for view in record["views"]] == [0.5]
    opened = open_run(folder)
    capture = opened.open_capture()
    objective = opened.objective(capture)
    (view,) = capture.split.test
    image = objective.renderer.render(objective.cloud, objective.cameras[view], objective.options).image.clamp(0, 1)
    half = image[:, : WIDTH // 2], capture.images[view][:, : WIDTH // 2].float() / 255
    assert record["views"][0]["psnr"] == pytest.approx(psnr(*half), abs=1e-6)
    assert opened.evaluate(capture).counted == 0.5
    assert main(["eval", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "pixels" in told
    assert "50.0 %" in told


def test_the_page_greys_what_is_masked(pair, tmp_path: Path) -> None:
    folder = run(pair[0], tmp_path / "run", steps=2)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "over the 50.0 % of their pixels that masks leave." in page
    assert "Masked pixels of photograph and difference are grey." in page


def test_background_trains_as_alpha_does(pair, tmp_path: Path) -> None:
    clear = make_capture(tmp_path / "clear", views=VIEWS, width=WIDTH, height=HEIGHT, points=POINTS)
    for file in (clear / "images").iterdir():
        alpha = LEFT.astype(np.uint8)[:, :, None] * 255
        Image.fromarray(np.concatenate([np.asarray(Image.open(file)), alpha], axis=2)).save(file)
    settings = {"background": (0.0, 1.0, 0.0), "steps": 4, "init": "random", "random_points": 60}
    masked = run(pair[0], tmp_path / "masked", mask=MaskUse.BACKGROUND, **settings)
    check_alike(masked, run(clear, tmp_path / "alpha", **settings))
    assert not same_scene(masked, run(pair[0], tmp_path / "ignored", **settings))
    assert json.loads((masked / "eval.json").read_text())["protocol"] == PROTOCOL


# ---------------------------------------------------------------------- rows


def one_sided(capture: Capture, cloud: GaussianCloud, view: int) -> torch.Tensor:
    """Rows that are drawn in masked pixels of a view alone."""
    camera = capture.cameras[view]
    local = cloud.means.double() @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    column = camera.fx * local[:, 0] / local[:, 2] + camera.cx
    reach = 4 * cloud.log_scales.exp().max(dim=1).values * camera.fx / local[:, 2] + 3
    # A window of SSIM that counts reaches 5 pixels across the edge, but sees 0 there.
    return (local[:, 2] > 0.1) & (column - reach > WIDTH // 2) & (column < WIDTH)


def test_rows_that_masks_hide_get_no_gradient_and_no_statistics(pair) -> None:
    capture = load_capture(pair[0])
    assert capture.points is not None
    cloud = start_from_points(capture.points.positions, capture.points.colors)
    cloud.log_scales.fill_(-4.0)
    objective = PhotometricObjective(cloud, capture.cameras, capture.images, NativeRenderer(threads=1))
    view = capture.split.train[0]
    hidden = one_sided(capture, cloud, view)
    assert hidden.sum() > 5
    objective.observed = GradientStatistics(cloud.tensors, absolute=True, splitting=True)
    evaluation = objective.gradient([view])
    gradient = evaluation.gradient
    assert evaluation.seen is not None
    assert not evaluation.seen[hidden].any()
    assert evaluation.seen.any()
    for values in gradient.values():
        assert not values[hidden].any()
        assert values[~hidden].any() or not values.any()
    for name, values in objective.observed.tensors().items():
        assert not values[hidden].any(), name
        assert values[~hidden].any()
    statistics = objective.statistics([view], lambda image, target: (image - target).abs().mean(dim=2))
    for name in ("weight", "pixels", "error", "weighted_error", "weighted_squared_error", "color_cross"):
        values = getattr(statistics, name)
        assert not values[hidden].any(), name
        assert values[~hidden].any()


def test_no_ray_of_a_random_start_begins_in_a_masked_pixel(pair) -> None:
    capture = load_capture(pair[0])
    for view in sweep_views(capture):
        assert view.seen is not None
        assert torch.equal(view.seen.reshape(HEIGHT, WIDTH), torch.from_numpy(LEFT))
        assert view.opaque is not None
        assert bool((view.opaque % WIDTH < WIDTH // 2).all())
    cloud = start_random(capture, 100, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(cloud.log_scales).all())
    shares = []
    for index in capture.split.train:
        camera = capture.cameras[index]
        local = cloud.means.double() @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        shares.append((camera.fx * local[:, 0] / local[:, 2] + camera.cx < WIDTH // 2) & (local[:, 2] > 0))
    assert bool(torch.stack(shares).any(dim=0).all()), "each row is seen in some view's left half"


def test_a_view_that_cannot_be_scored_is_refused_by_name(tmp_path: Path) -> None:
    border = np.zeros((HEIGHT, WIDTH), dtype=bool)
    border[:5] = True
    capture = load_capture(masked_capture(tmp_path / "still", 0, border))
    with pytest.raises(InputError, match=r"the mask of view .* leaves no pixel that could be scored"):
        check_scorable(capture)
