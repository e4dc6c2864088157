"""What a fit leaves to look at: pictures, and the mesh of an occupancy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.files import make_folder
from splatopt.data.mesh import inside_test, load_mesh, write_mesh
from splatopt.fields.image import ImageTask
from splatopt.fields.occupancy import OccupancyTask, grid_planes, shaded, zero_surface
from splatopt.fields.radiance import RadianceTask
from splatopt.fields.task import Task
from splatopt.fit.config import FitConfig
from splatopt.runs.pictures import file_names, write_picture


@dataclass(frozen=True)
class ResultPicture:
    """One picture of what a field has become, beside what it should be.

    Attributes:
        name: What it shows.
        target: (H, W, 3) uint8; None where it takes too long to make.
        fitted: The same of the field.
    """

    name: str
    target: Tensor | None
    fitted: Tensor


def write_results(folder: Path, config: FitConfig, task: Task) -> list[ResultPicture]:
    """Write the pictures of a fit, ``result.png`` or ``views/*.png``, and ``mesh.ply`` of an occupancy.

    Args:
        folder: The run's folder.
        config: What the run was told.
        task: With the field as trained.

    Returns:
        The pictures.
    """
    grid = task.grid(config.scoring.resolution) if isinstance(task, OccupancyTask) else None
    pictures = _shape_pictures(config, grid) if grid is not None else result_pictures(config, task)
    if isinstance(task, RadianceTask):
        make_folder(folder / "views")
        names = file_names([task.cameras[view] for view in task.test])
        for picture, name in zip(pictures, names, strict=True):
            write_picture(folder / "views" / name, picture.fitted.numpy())
    else:
        write_picture(folder / "result.png", pictures[0].fitted.numpy())
    surface = zero_surface(grid) if grid is not None else None
    if surface is not None:
        mesh = load_mesh(Path(config.data.target))
        write_mesh(folder / "mesh.ply", mesh.restored(surface.vertices), surface.faces)
    return pictures


def result_pictures(config: FitConfig, task: Task) -> list[ResultPicture]:
    """Return what there is to look at of a fit."""
    if isinstance(task, ImageTask):
        return [ResultPicture("image", _bytes(task.image), _bytes(task.predict()))]
    if isinstance(task, RadianceTask):
        return [
            ResultPicture(task.cameras[view].name or f"view {view}", task.image(view), _bytes(task.render(view)))
            for view in task.test
        ]
    if isinstance(task, OccupancyTask):
        return _shape_pictures(config, task.grid(config.scoring.resolution))
    return []


def _shape_pictures(config: FitConfig, grid: Tensor) -> list[ResultPicture]:
    """The mesh and the field; of an open mesh, whose inside takes long to find, the field alone."""
    fitted = _bytes(shaded(plane > 0 for plane in grid))
    mesh = load_mesh(Path(config.data.target))
    if not mesh.watertight:
        return [ResultPicture("shape", None, fitted)]
    is_inside = inside_test(mesh)
    truth = shaded(is_inside(points).reshape(grid.shape[1:]) for points in grid_planes(len(grid)))
    return [ResultPicture("shape", _bytes(truth), fitted)]


def _bytes(image: Tensor) -> Tensor:
    """An image of one or three channels in [0, 1] as (H, W, 3) uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(*image.shape[:2], 3).contiguous()
