"""splatopt: optimizers for 3D reconstruction.

Train a scene in five lines::

    import splatopt

    result = splatopt.train("path/to/capture", steps=2000, out="runs/first")
    print(f"{result.before.psnr:.2f} -> {result.after.psnr:.2f} dB in {result.seconds:.0f} s")
    splatopt.save_ply(result.cloud, "scene.ply")

Names are loaded on first use, so that ``import splatopt`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from splatopt.core.announced import announce
from splatopt.core.version import __version__ as __version__

if TYPE_CHECKING:
    from splatopt.core.camera import Camera
    from splatopt.core.checks import InputError
    from splatopt.core.function_objectives import ModuleObjective, ResidualObjective
    from splatopt.core.objective import Evaluation, Objective, Oracle
    from splatopt.core.optimizer import Optimizer, Progress, optimizer_names, register
    from splatopt.core.row_statistics import GradientStatistics
    from splatopt.core.scene_edit import SceneEdit, Written
    from splatopt.core.state import PerParameter
    from splatopt.data import Capture, CaptureOptions, inspect_capture, load_capture
    from splatopt.data.readers import register_reader
    from splatopt.density.strategy import DensityStrategy, register_density
    from splatopt.fit.config import FitConfig
    from splatopt.fit.loop import fit_field, open_field
    from splatopt.fit.verb import fit
    from splatopt.optim import Adam, AdamOptions, make_optimizer
    from splatopt.raster.check_loss import check_loss
    from splatopt.raster.loss_registry import register_loss
    from splatopt.raster.render import make_renderer, render
    from splatopt.raster.torch_loss import TorchLoss
    from splatopt.raster.types import Footprint, RenderOptions
    from splatopt.scene.gaussians import GaussianCloud
    from splatopt.scene.initialization import start_from_points, start_random
    from splatopt.scene.photometric import PhotometricObjective
    from splatopt.scene.ply import load_ply, save_ply
    from splatopt.scene.scene_files import load_scene, save_scene
    from splatopt.train.config import TrainConfig
    from splatopt.train.prune import PruneResult, prune
    from splatopt.train.pruning import PruneOptions
    from splatopt.train.result import TrainResult
    from splatopt.train.run import Run, open_run
    from splatopt.train.verb import train

announce("splatopt.optimizers", "splatopt.optim", "splatopt.meta")
announce("splatopt.density", "splatopt.density.adc", "splatopt.density.gain", "splatopt.density.mcmc")

_HOMES = {
    "splatopt.core.camera": ("Camera",),
    "splatopt.core.checks": ("InputError",),
    "splatopt.core.function_objectives": ("ModuleObjective", "ResidualObjective"),
    "splatopt.core.objective": ("Evaluation", "Objective", "Oracle"),
    "splatopt.core.optimizer": ("Optimizer", "Progress", "optimizer_names", "register"),
    "splatopt.core.row_statistics": ("GradientStatistics",),
    "splatopt.core.scene_edit": ("SceneEdit", "Written"),
    "splatopt.core.state": ("PerParameter",),
    "splatopt.density.strategy": ("DensityStrategy", "register_density"),
    "splatopt.data": ("Capture", "CaptureOptions", "inspect_capture", "load_capture"),
    "splatopt.optim": ("Adam", "AdamOptions", "make_optimizer"),
    "splatopt.data.readers": ("register_reader",),
    "splatopt.raster.check_loss": ("check_loss",),
    "splatopt.raster.loss_registry": ("register_loss",),
    "splatopt.raster.torch_loss": ("TorchLoss",),
    "splatopt.raster.render": ("make_renderer", "render"),
    "splatopt.raster.types": ("Footprint", "RenderOptions"),
    "splatopt.scene.gaussians": ("GaussianCloud",),
    "splatopt.scene.photometric": ("PhotometricObjective",),
    "splatopt.scene.ply": ("load_ply", "save_ply"),
    "splatopt.scene.scene_files": ("load_scene", "save_scene"),
    "splatopt.scene.initialization": ("start_from_points", "start_random"),
    "splatopt.train.config": ("TrainConfig",),
    "splatopt.fit.config": ("FitConfig",),
    "splatopt.fit.loop": ("fit_field", "open_field"),
    "splatopt.train.prune": ("PruneResult", "prune"),
    "splatopt.train.pruning": ("PruneOptions",),
    "splatopt.train.result": ("TrainResult",),
    "splatopt.train.run": ("Run", "open_run"),
}
_VERBS = ("fit", "train")
"""Rooms that can be called, each with its command's own work."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adam",
    "AdamOptions",
    "Camera",
    "Capture",
    "CaptureOptions",
    "DensityStrategy",
    "Evaluation",
    "FitConfig",
    "Footprint",
    "GaussianCloud",
    "GradientStatistics",
    "InputError",
    "ModuleObjective",
    "Objective",
    "Optimizer",
    "Oracle",
    "PerParameter",
    "PhotometricObjective",
    "Progress",
    "PruneOptions",
    "PruneResult",
    "RenderOptions",
    "ResidualObjective",
    "Run",
    "SceneEdit",
    "TorchLoss",
    "TrainConfig",
    "TrainResult",
    "Written",
    "check_loss",
    "fit",
    "fit_field",
    "inspect_capture",
    "load_capture",
    "load_ply",
    "load_scene",
    "make_optimizer",
    "make_renderer",
    "open_field",
    "open_run",
    "optimizer_names",
    "prune",
    "register",
    "register_density",
    "register_loss",
    "register_reader",
    "render",
    "save_ply",
    "save_scene",
    "start_from_points",
    "start_random",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    if name in _VERBS:
        return importlib.import_module(f"splatopt.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'splatopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
