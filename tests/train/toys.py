"""A renderer and captures small enough that a training run takes a moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.objective import Oracle
from splatopt.core.row_statistics import GradientStatistics
from splatopt.data import Capture, CaptureOptions, load_capture, make_capture
from splatopt.raster.problem import ViewLoss, ViewProblem, WeightedSum
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import Gaussians, Rendering, RenderOptions
from splatopt.train.events import Stepped

VIEWS, WIDTH, HEIGHT, POINTS = 10, 24, 16, 40
NAMES = ("means", "log_scales", "quats", "logit_opacities", "sh_dc", "sh_rest")


def draw(tensors: Mapping[str, Tensor], camera: Camera, options: RenderOptions) -> Tensor:
    """An image of one colour to which every parameter contributes smoothly, other in each view."""
    weight = tensors["logit_opacities"].sigmoid()[:, None]
    centers = tensors["means"] - camera.center.to(tensors["means"])
    color = tensors["sh_dc"] + 0.1 * centers.tanh() + 0.1 * tensors["log_scales"].tanh() + 0.1 * tensors["quats"][:, 1:]
    degree = 3 if options.sh_degree is None else options.sh_degree
    count = (degree + 1) ** 2 - 1
    color = color + 0.1 * tensors["sh_rest"][:, :count].sum(dim=1)
    mixed = (weight * color).mean(dim=0) + options.background[0] / 2
    return mixed.expand(camera.height, camera.width, 3)


class ToyRenderer(Renderer):
    """Mean squared error of :func:`draw`, by autograd; ``spoil`` may change the gradients of a call."""

    name = "toy"

    def __init__(self, spoil: Callable[[int, dict[str, Tensor]], None] | None = None) -> None:
        self.calls = 0
        self.degrees: list[int | None] = []
        self.views: list[str] = []
        self._spoil = spoil

    @property
    def oracles(self) -> frozenset[Oracle]:
        return frozenset({Oracle.GRADIENT})

    def render(self, gaussians: Gaussians, camera: Camera, options: RenderOptions) -> Rendering:
        image = draw({name: getattr(gaussians, name) for name in NAMES}, camera, options).contiguous()
        empty = torch.zeros(camera.height, camera.width)
        return Rendering(image, empty, empty)

    def accumulate_gradient(
        self,
        gaussians: Gaussians,
        problem: ViewProblem,
        into: WeightedSum,
        seen: Tensor,
        observed: GradientStatistics | None = None,
    ) -> ViewLoss:
        camera, options = problem.camera, problem.options
        self.calls += 1
        self.degrees.append(options.sh_degree)
        self.views.append(camera.name)
        leaves = {name: getattr(gaussians, name).detach().clone().requires_grad_() for name in NAMES}
        with torch.enable_grad():
            loss = ((draw(leaves, camera, options) - problem.image.to(leaves["means"]) / 255) ** 2).mean()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        parts = {
            name: torch.zeros_like(leaves[name]) if part is None else part
            for name, part in zip(NAMES, found, strict=True)
        }
        if self._spoil:
            self._spoil(self.calls, parts)
        if into.overwrite:
            seen.zero_()
        into.add(parts)
        seen[0] = True
        return ViewLoss(loss.item(), loss.item())


def make_toy_capture(folder: Path, **changes: int) -> Path:
    """Write a capture of a few tiny views."""
    settings = {"seed": 0, "views": VIEWS, "width": WIDTH, "height": HEIGHT, "points": POINTS} | changes
    return make_capture(folder, **settings)


def load_toy_capture(folder: Path) -> Capture:
    """Write and load one."""
    return load_capture(make_toy_capture(folder), CaptureOptions())


class Listener:
    """Keeps all events; stops the run after a step when told to."""

    def __init__(self, stop_at: int | None = None, by: int | None = None) -> None:
        self.events = []
        self.stop_at, self.by = stop_at, by

    def __call__(self, event) -> None:
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.stop_at:
            if self.by is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.by)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lasting(folder: Path) -> list[dict]:
    """Lines without what differs between two runs of one seed: the time and the memory."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "memory_mb")} for line in lines(folder)]


def cut(folder: Path, step: int) -> Path:
    """What a kill after the checkpoint of ``step`` leaves, without the scene."""
    copy = folder.parent / f"{folder.name}-cut-{step}"
    shutil.copytree(folder, copy)
    (copy / "scene.ply").unlink()
    for path in (copy / "checkpoints").iterdir():
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    return copy
