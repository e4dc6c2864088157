"""From a configuration to what is trained: capture, starting cloud, objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core import native
from splatopt.core.checks import InputError
from splatopt.core.devices import cuda_problem, free_memory
from splatopt.data import Capture, CaptureOptions, load_capture
from splatopt.data.selection import camera_centers, sparse_split
from splatopt.raster.render import find_backend, make_renderer
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.photometric import Images, PhotometricObjective
from splatopt.scene.ply import load_ply
from splatopt.scene.starts import start_from_points, start_random
from splatopt.train.config import TrainConfig
from splatopt.train.sampler import ViewChoice


def open_capture(config: TrainConfig) -> Capture:
    """Load the capture of ``config`` at the size, split and background it names."""
    options = CaptureOptions(
        downscale=config.downscale,
        max_side=config.max_side,
        skip_missing=config.skip_missing,
        cache_mebibytes=config.cache_mebibytes,
        test_every=config.test_every,
    )
    if config.background is not None:
        options = replace(options, background=config.background)
    capture = load_capture(Path(config.capture), options)
    return replace(capture, split=sparse_split(capture, config.input_views)) if config.input_views else capture


def training_positions(config: TrainConfig, capture: Capture) -> Tensor | None:
    """Return the training cameras' centres, (n, 3), where views are chosen by them, else None."""
    if config.view_choice is not ViewChoice.FARTHEST:
        return None
    return camera_centers([capture.cameras[view] for view in capture.split.train])


def open_renderer(config: TrainConfig) -> Renderer:
    """Make the renderer of ``config``."""
    return make_renderer(config.renderer, config.threads, config.device, config.instructions)


def render_device(config: TrainConfig) -> torch.device:
    """Return where the renderer of ``config`` computes."""
    return find_backend(config.renderer, config.device).device


def on_this_machine(config: TrainConfig, asked: TrainConfig | None = None) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with the device spelt out, and warnings.

    Args:
        config: What a run is to be done with.
        asked: What was asked for, where ``config`` is of a run from before: if that was on a GPU that is not here,
            and nothing else was asked for, it goes on wherever it can.

    Raises:
        InputError: Renderer or device cannot be used here.
    """
    warnings = []
    elsewhere = cuda_problem(config.device) if config.device.startswith("cuda") else None
    if elsewhere and asked is not None and (asked.device, asked.renderer) == ("auto", "auto"):
        before, config = config.device, replace(config, device="auto", renderer="auto")
        warnings.append(f"the run was on {before}, which is not here ({elsewhere}); it goes on on {{}}")
    config = replace(config, device=str(find_backend(config.renderer, config.device).device))
    return config, [warning.format(config.device) for warning in warnings]


def with_own_instructions(config: TrainConfig, asked: TrainConfig | None = None) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with the instruction set spelt out, and warnings.

    Args:
        config: What a run is to be done with, its device spelt out.
        asked: What was asked for, where ``config`` is of a run from before: if that took a set that is not here,
            and none was asked for, it goes on with the fastest that is.

    Raises:
        InputError: This machine lacks the set.
    """
    wanted = config.instructions
    if config.device.startswith("cuda"):
        ignored = f"--instructions {wanted} is not read by a run on {config.device}, which takes no native passes"
        return replace(config, instructions="auto"), [] if wanted == "auto" else [ignored]
    elsewhere = (
        asked is not None and asked.instructions == "auto" and wanted not in ("auto", *native.instruction_sets())
    )
    found = native.find_instructions("auto" if elsewhere else wanted)
    warning = f"the run was with {wanted} instructions, which are not here; it goes on with {found}, up to rounding"
    return replace(config, instructions=found), [warning] if elsewhere else []


def starting_cloud(config: TrainConfig, capture: Capture, generator: torch.Generator) -> GaussianCloud:
    """Return the cloud that training begins from, at the configuration's degree.

    Args:
        config: Names the start.
        capture: Gives points and cameras.
        generator: Draws a random start.

    Raises:
        InputError: The capture has no points, or the scene file cannot be used.
    """
    if config.start == "random":
        _check_points(config)
        return start_random(capture.cameras, config.random_points, sh_degree=config.sh_degree, generator=generator)
    if config.start == "sfm":
        if capture.points is None or not len(capture.points.positions):
            raise InputError(
                f"capture {capture.path} holds no points to start from; start with --start random, or from a "
                f"scene with --start scene.ply"
            )
        return start_from_points(capture.points.positions, capture.points.colors, sh_degree=config.sh_degree)
    return load_ply(Path(config.start)).with_sh_degree(config.sh_degree)


def _check_points(config: TrainConfig) -> None:
    """Refuse more Gaussians of a random start than the memory takes."""
    numbers = 14 + 3 * ((config.sh_degree + 1) ** 2 - 1)
    needed, free = 4 * numbers * config.random_points, free_memory(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"--random-points {config.random_points:,} needs {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} are free; give fewer"
        )


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
        RenderOptions(config.background or capture.background, config.footprint, config.sh_degree),
        loss=config.make_loss(),
        length_scale=capture.extent,
    )


def sh_degree_at(config: TrainConfig, step: int) -> int:
    """Return the spherical-harmonics degree of the step after ``step`` steps.

    It rises by one every ``sh_interval`` steps, as in 3DGS, so that the constant colour settles first;
    a scene that comes with its bands keeps them all.
    """
    if config.sh_interval == 0 or config.start.endswith(".ply"):
        return config.sh_degree
    return min(config.sh_degree, step // config.sh_interval)
