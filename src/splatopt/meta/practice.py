"""What learned optimizers practise on: a scene, the views that it is fitted to, and views held out from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError
from splatopt.core.schema import rotation_matrices
from splatopt.data import Capture, load_capture
from splatopt.data.made import make_scene
from splatopt.data.selection import camera_centers, farthest_points
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import start_from_points, start_random
from splatopt.scene.photometric import Images, PhotometricObjective

_KEPT_CAPTURES = 512
_FEWEST_POINTS = 64
_MADE = "made:"


@dataclass(frozen=True)
class PracticeOptions:
    """How scenes, views and starts are drawn."""

    view_batches: tuple[int, ...] = (8, 8, 8, 4, 1)
    """Views of one inner step, drawn anew for each scene; all input views where they are fewer. Unit: views.
    Source: 8 in Learn2Splat; people train with one as well."""

    targets: int = 4
    """Held-out views that the meta-loss looks at. Unit: views. Source: 6 in Learn2Splat, of 64; ours have 16."""

    sparse: float = 0.3
    """Share of scenes with few input views. Unit: fraction. Source: Learn2Splat trains on both jointly."""

    few: tuple[int, int] = (3, 8)
    """Least and most input views of such a scene, all but one of its views at most. Unit: views. Source: the sparse
    settings of the literature."""

    random_start: float = 0.25
    """Share of scenes that start from points scattered at random. Unit: fraction. Source: Blender scenes start so."""

    fewest_points: float = 0.1
    """Least share of the sparse points that a scene starts from, up to all. Unit: fraction. Source: Learn2Splat."""

    turned: float = 1.0
    """Share of scenes whose world is turned at random: worlds that are made stand upright, captures as they come.
    Unit: fraction."""

    paces: tuple[float, float] = (0.5, 7.4)
    """Least and largest factor of the means' rate, even in its logarithm: how far Adam moves a mean beside the
    Gaussian's size is 0.2 at the median of made scenes, and 1.2 of captures. Unit: factor. Source: measured."""

    sh_degree: int = 3
    """Highest degree of the colour, all bands from the first step. Unit: degree. Source: Learn2Splat."""

    @classmethod
    def plain(cls, sparse: float = 0.0, targets: int = 4) -> PracticeOptions:
        """Return what scenes are compared on: as they come, from half to all of their points, 8 views a step."""
        return cls((8,), targets, sparse, random_start=0.0, fewest_points=0.5, turned=0.0, paces=(1.0, 1.0))

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.targets < 1:
            raise InputError(f"targets must be at least 1, got {self.targets}")
        if not self.view_batches or min(self.view_batches) < 1:
            raise InputError(f"view_batches must name numbers of at least 1, got {self.view_batches}")
        if not 1 <= self.few[0] <= self.few[1]:
            raise InputError(f"few must be two numbers of at least 1 in order, got {self.few}")
        for name in ("sparse", "random_start", "turned"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.fewest_points <= 1:
            raise InputError(f"fewest_points must lie above 0 and not above 1, got {self.fewest_points}")
        if not 0 < self.paces[0] <= self.paces[1] < float("inf"):
            raise InputError(f"paces must be two positive numbers in order, got {self.paces}")
        if not 0 <= self.sh_degree <= 3:
            raise InputError(f"sh_degree must lie between 0 and 3, got {self.sh_degree}")


@dataclass(frozen=True)
class Guise:
    """How a capture is shown, so that few made scenes stand for many.

    Attributes:
        turn: Unit quaternion (w, x, y, z) by which its world is turned about the origin.
        pace: Factor of its extent, by which optimizers measure their steps.
    """

    turn: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    pace: float = 1.0

    @property
    def rotation(self) -> Tensor:
        """The turn as a matrix, (3, 3), float64."""
        return rotation_matrices(torch.tensor([self.turn], dtype=torch.float64))[0]

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """Return ``cameras`` where they stand in the turned world."""
        back = torch.eye(4, dtype=torch.float64)
        back[:3, :3] = self.rotation.T
        return [replace(camera, world_to_camera=camera.world_to_camera @ back) for camera in cameras]


@dataclass(frozen=True)
class Practice:
    """A scene to be fitted.

    Attributes:
        scene: The capture's key, see :func:`kept_capture`.
        objective: Its loss, over the cloud that is fitted.
        inputs: Views that an optimizer may see.
        targets: Views held out from it.
        positions: Where the input cameras stand, (inputs, 3).
        view_batch: Views of one step.
        guise: How the capture is shown.
    """

    scene: str
    objective: PhotometricObjective
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    positions: Tensor
    view_batch: int
    guise: Guise

    def draw_views(self, generator: torch.Generator) -> tuple[int, ...]:
        """Return the views of one step: one at random, and those farthest from it and from each other."""
        first = int(torch.randint(len(self.inputs), (), generator=generator))
        chosen = farthest_points(self.positions, min(self.view_batch, len(self.inputs)), first)
        return tuple(self.inputs[place] for place in chosen)


def scene_folders(data: Path) -> tuple[str, ...]:
    """Return the keys of the captures below ``data``, as ``splatopt data make`` leaves them.

    Raises:
        InputError: There are none.
    """
    folders = tuple(sorted(str(path) for path in data.glob("scene-*") if (path / "sparse").is_dir()))
    if not folders:
        raise InputError(f"{data} holds no made scenes (scene-0000, …); make some with splatopt data make --out {data}")
    return folders


def made_scene(seed: int) -> str:
    """Return the key of a scene that is made in memory when it is first asked for."""
    return f"{_MADE}{seed}"


@lru_cache(maxsize=_KEPT_CAPTURES)
def kept_capture(scene: str) -> Capture:
    """Return the capture of a key: a folder's path, or ``made:SEED``; the last few hundred stay in memory."""
    if scene.startswith(_MADE):
        return make_scene(int(scene.removeprefix(_MADE)))
    return load_capture(Path(scene))


class KeptImages:
    """Photographs on a device: each is moved there once and kept, since practice looks at few small ones often."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self._images, self._device = images, device
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        """Return photograph ``index``, (H, W, 3), uint8, on the device."""
        if index not in self._kept:
            self._kept[index] = self._images[index].to(self._device)
        return self._kept[index]


def bind(
    scene: str,
    cloud: GaussianCloud,
    inputs: Sequence[int],
    targets: Sequence[int],
    renderer: Renderer,
    view_batch: int,
    guise: Guise,
) -> Practice:
    """Return the practice that fits ``cloud`` to the views ``inputs`` of the capture ``scene``."""
    capture = kept_capture(scene)
    cameras = guise.cameras(capture.cameras)
    device = cloud.means.device
    objective = PhotometricObjective(
        cloud,
        cameras,
        capture.images if device.type == "cpu" else KeptImages(capture.images, device),
        renderer,
        RenderOptions(capture.background, sh_degree=cloud.sh_degree),
        length_scale=guise.pace * capture.extent,
    )
    positions = camera_centers([cameras[view] for view in inputs])
    return Practice(scene, objective, tuple(inputs), tuple(targets), positions, view_batch, guise)


def draw_practice(
    scene: str,
    renderer: Renderer,
    options: PracticeOptions,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Practice:
    """Draw views and a start for the capture ``scene``.

    With probability ``sparse`` the input views are a few far from each other and all others are held out; otherwise
    a quarter of all views is. The start is a random share of the capture's points, or as many points scattered
    where its cameras look. The world is turned and the means' pace changed as the options say.

    Args:
        scene: The key of a capture.
        renderer: What renders and differentiates.
        options: The shares.
        generator: The only source of randomness, on the CPU.
        device: Where the cloud lies.
    """
    capture = kept_capture(scene)
    count = len(capture.cameras)
    least, most = options.few
    if count <= least:
        raise InputError(f"capture {scene} has {count} views; practice needs more than {least}")
    order = torch.randperm(count, generator=generator).tolist()
    if float(torch.rand((), generator=generator)) < options.sparse:
        few = int(torch.randint(least, min(most, count - 1) + 1, (), generator=generator))
        inputs = farthest_points(camera_centers(capture.cameras), few, order[0])
    else:
        inputs = order[max(1, count // 4) :]
    chosen = set(inputs)
    held_out = [view for view in order if view not in chosen]
    guise = _draw_guise(options, generator)
    cloud = _start(capture, guise, options, generator).to(device)
    batch = options.view_batches[int(torch.randint(len(options.view_batches), (), generator=generator))]
    return bind(scene, cloud, sorted(inputs), held_out[: options.targets], renderer, batch, guise)


def _draw_guise(options: PracticeOptions, generator: torch.Generator) -> Guise:
    """Return a guise; nothing is drawn of what the options leave no choice in."""
    guise = Guise()
    if options.turned and float(torch.rand((), generator=generator)) < options.turned:
        turn = torch.nn.functional.normalize(torch.randn(4, generator=generator, dtype=torch.float64), dim=0)
        guise = replace(guise, turn=tuple(turn.tolist()))
    low, high = (math.log(pace) for pace in options.paces)
    if low < high:
        guise = replace(guise, pace=math.exp(low + (high - low) * float(torch.rand((), generator=generator))))
    return guise


def _start(capture: Capture, guise: Guise, options: PracticeOptions, generator: torch.Generator) -> GaussianCloud:
    """Return a start from a share of the points, or from as many random ones, in the world as it is shown.

    It is random where there are few points.
    """
    points = capture.points
    available = 0 if points is None else len(points.positions)
    low = options.fewest_points
    share = low + (1 - low) * float(torch.rand((), generator=generator))
    count = max(min(_FEWEST_POINTS, available), round(share * available))
    scattered = float(torch.rand((), generator=generator)) < options.random_start
    # A network attends to some neighbours of each Gaussian: a few points alone would end the run.
    if points is None or available < _FEWEST_POINTS or scattered:
        return start_random(
            guise.cameras(capture.cameras), max(_FEWEST_POINTS, count), sh_degree=options.sh_degree, generator=generator
        )
    kept = torch.randperm(available, generator=generator)[:count]
    positions = (points.positions[kept].double() @ guise.rotation.T).to(points.positions)
    return start_from_points(positions, points.colors[kept], sh_degree=options.sh_degree)
