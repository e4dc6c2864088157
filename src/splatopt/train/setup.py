"""From a configuration to what is trained: capture, starting cloud, objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.objective import Objective
from splatopt.core.optimizer import Optimizer, find_optimizer
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.data.selection import camera_centers, sparse_split
from splatopt.density.penalised import Penalised
from splatopt.density.strategy import DensityLimits, DensityStrategy, find_density
from splatopt.optim.averaging import Averaged
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import Images, PhotometricObjective
from splatopt.train.config import TrainConfig
from splatopt.train.sampler import ViewChoice


def open_capture(config: TrainConfig) -> Capture:
    """Load the capture of ``config`` at the size, split and background it names."""
    data = config.data
    options = CaptureOptions(
        images=data.images,
        downscale=data.downscale,
        max_side=data.max_side,
        skip_missing=data.skip_missing,
        cache_mebibytes=data.cache_mebibytes,
        test_every=data.test_every,
        mask=data.mask,
    )
    if config.scene.background is not None:
        options = replace(options, background=config.scene.background)
    capture = load_capture(Path(data.capture), options)
    return replace(capture, split=sparse_split(capture, data.input_views)) if data.input_views else capture


def training_positions(config: TrainConfig, capture: Capture) -> Tensor | None:
    """Return the training cameras' centres, (n, 3), where views are chosen by them, else None."""
    if config.schedule.view_choice is not ViewChoice.FARTHEST:
        return None
    return camera_centers([capture.cameras[view] for view in capture.split.train])


def starting_cloud(
    config: TrainConfig, capture: Capture, generator: torch.Generator, warnings: list[str] | None = None
) -> GaussianCloud:
    """Return the cloud that training begins from, at the configuration's degree.

    Args:
        config: Says where it comes from.
        capture: Gives points and cameras.
        generator: Draws a random one.
        warnings: Gets a sentence for what a scene file holds and is not taken as it stands; when None, they are
            Python's warnings.

    Raises:
        InputError: The capture has no points, or the scene file cannot be used.
    """
    return config.scene.initialization.cloud(capture, config.scene.sh_degree, generator, warnings)


def render_options(config: TrainConfig, capture: Capture) -> RenderOptions:
    """Return how the scene is rendered at its full degree; over the capture's background where none was given."""
    scene = config.scene
    return RenderOptions(scene.background or capture.background, scene.footprint, scene.sh_degree)


def make_optimizer(name: str, config: TrainConfig, objective: Objective, generator: torch.Generator) -> Optimizer:
    """Return an optimizer of the run, with its options and the running average that ``config`` asks for.

    Args:
        name: The optimizer.
        config: Gives its options.
        objective: What it steps on.
        generator: The run's source of randomness.

    Raises:
        InputError: It cannot be used on this objective.
    """
    entry = find_optimizer(name)
    options = config.schedule.options_by_name.get(name) or entry.options()
    optimizer: Optimizer = entry.optimizer(objective, options, generator)
    return Averaged(optimizer, config.schedule.average) if config.schedule.average else optimizer


def make_strategy(
    config: TrainConfig, objective: Penalised, limits: DensityLimits, generator: torch.Generator
) -> DensityStrategy:
    """Return the run's strategy, whose penalty is in ``objective`` from then on.

    Args:
        config: Names it, with its options.
        objective: What it asks, or around that.
        limits: What it keeps to.
        generator: The run's source of randomness.

    Raises:
        InputError: It cannot be used on this objective.
    """
    entry = find_density(config.density.density)
    strategy = entry.strategy(objective, config.density.density_options or entry.options(), limits, generator)
    if type(strategy).penalty is not DensityStrategy.penalty:
        objective.penalty = strategy.penalty
    return strategy


def make_objective(
    config: TrainConfig, capture: Capture, cloud: GaussianCloud, renderer: Renderer, images: Images | None = None
) -> PhotometricObjective:
    """Bind ``cloud`` to the capture's views, rendered as ``config`` says.

    Args:
        config: What is done.
        capture: Gives cameras and photographs.
        cloud: What is optimised.
        renderer: What renders.
        images: The capture's photographs where they are rendered; the capture's own when None.
    """
    return PhotometricObjective(
        cloud,
        capture.cameras,
        images or capture.images,
        renderer,
        render_options(config, capture),
        loss=config.scene.make_loss(),
        length_scale=capture.extent,
    )
