"""Tasks of meta-training: a scene, the views that it is fitted to, and views held out from it."""

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
from splatopt.data import Capture, Split, load_capture
from splatopt.data.selection import camera_centers, farthest_points
from splatopt.data.synthetic import make_scene
from splatopt.raster.renderer import Renderer
from splatopt.raster.types import RenderOptions
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.initialization import start_from_points, start_random
from splatopt.scene.photometric import Images, PhotometricObjective, Weighted

_CACHED_CAPTURES = 512
_MIN_POINTS = 64
_SYNTHETIC = "synthetic:"


@dataclass(frozen=True)
class MetaTaskOptions:
    """How scenes, views and starts are drawn."""

    view_batches: tuple[int, ...] = (8, 8, 8, 4, 1)
    """Views of one inner step, drawn anew for each scene; all input views where they are fewer. Unit: views.
    Source: 8 in Learn2Splat; people train with one as well."""

    targets: int = 4
    """Held-out views that the meta-loss looks at. Unit: views. Source: 6 in Learn2Splat, of 64; ours have 16."""

    sparse: float = 0.3
    """Share of scenes with few input views. Unit: fraction. Source: Learn2Splat trains on both jointly."""

    few: tuple[int, int] = (3, 8)
    """Smallest and largest number of input views of such a scene, all but one of its views at most. Unit: views.
    Source: the sparse settings of the literature."""

    random_init: float = 0.25
    """Share of scenes that start from points scattered at random. Unit: fraction. Source: Blender scenes start so."""

    min_point_share: float = 0.1
    """Smallest share of the sparse points that a scene starts from, up to all. Unit: fraction. Source: Learn2Splat."""

    rotated: float = 1.0
    """Share of scenes whose world is rotated at random: synthetic worlds stand upright, captures as they come.
    Unit: fraction."""

    extent_factors: tuple[float, float] = (0.5, 7.4)
    """Smallest and largest factor of the means' rate, even in its logarithm: how far Adam moves a mean beside the
    Gaussian's size is 0.2 at the median of synthetic scenes, and 1.2 of captures. Unit: factor. Source: measured."""

    sh_degree: int = 3
    """Highest degree of the colour, all bands from the first step. Unit: degree. Source: Learn2Splat."""

    @classmethod
    def plain(cls, sparse: float = 0.0, targets: int = 4) -> MetaTaskOptions:
        """Return what scenes are compared on: as they come, from half to all of their points, 8 views a step."""
        return cls((8,), targets, sparse, random_init=0.0, min_point_share=0.5, rotated=0.0, extent_factors=(1.0, 1.0))

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.targets < 1:
            raise InputError(f"targets must be at least 1, got {self.targets}")
        if not self.view_batches or min(self.view_batches) < 1:
            raise InputError(f"view_batches must name numbers of at least 1, got {self.view_batches}")
        if not 1 <= self.few[0] <= self.few[1]:
            raise InputError(f"few must be two numbers of at least 1 in order, got {self.few}")
        for name in ("sparse", "random_init", "rotated"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.min_point_share <= 1:
            raise InputError(f"min_point_share must lie above 0 and not above 1, got {self.min_point_share}")
        if not 0 < self.extent_factors[0] <= self.extent_factors[1] < float("inf"):
            raise InputError(f"extent_factors must be two positive numbers in order, got {self.extent_factors}")
        if not 0 <= self.sh_degree <= 3:
            raise InputError(f"sh_degree must lie between 0 and 3, got {self.sh_degree}")


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a capture, so that few synthetic scenes stand for many.

    Attributes:
        quaternion: Unit quaternion (w, x, y, z) by which its world is rotated about the origin.
        extent_factor: Factor of its extent, by which optimizers measure their steps.
    """

    quaternion: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    extent_factor: float = 1.0

    @property
    def rotation(self) -> Tensor:
        """The rotation as a matrix, (3, 3), float64."""
        return rotation_matrices(torch.tensor([self.quaternion], dtype=torch.float64))[0]

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """Return ``cameras`` where they stand in the rotated world."""
        back = torch.eye(4, dtype=torch.float64)
        back[:3, :3] = self.rotation.T
        return [replace(camera, world_to_camera=camera.world_to_camera @ back) for camera in cameras]


@dataclass(frozen=True)
class MetaTask:
    """A scene to be fitted.

    Attributes:
        scene: The capture's key, see :func:`cached_capture`.
        objective: Its loss, over the cloud that is fitted.
        inputs: Views that an optimizer may see.
        targets: Views held out from it.
        positions: Where the input cameras stand, (inputs, 3).
        view_batch: Views of one step.
        augmentation: How the capture is shown.
    """

    scene: str
    objective: PhotometricObjective
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    positions: Tensor
    view_batch: int
    augmentation: Augmentation

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
        raise InputError(
            f"{data} holds no synthetic scenes (scene-0000, …); make some with splatopt data make --out {data}"
        )
    return folders


def synthetic_scene_key(seed: int) -> str:
    """Return the key of a scene that is made in memory when it is first asked for."""
    return f"{_SYNTHETIC}{seed}"


@lru_cache(maxsize=_CACHED_CAPTURES)
def cached_capture(scene: str) -> Capture:
    """Return the capture of a key: a folder's path, or ``synthetic:SEED``; the last few hundred stay in memory."""
    if scene.startswith(_SYNTHETIC):
        return make_scene(int(scene.removeprefix(_SYNTHETIC))).localised()
    return load_capture(Path(scene)).localised()


class CachedImages:
    """Photographs on a device: each is moved there once and kept, since meta-training looks at few small ones often."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self._images, self._device = images, device
        self._kept: dict[int, Tensor] = {}
        self.weights = images.weights if isinstance(images, Weighted) else None

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
    augmentation: Augmentation,
) -> MetaTask:
    """Return the task that fits ``cloud`` to the views ``inputs`` of the capture ``scene``."""
    capture = cached_capture(scene)
    cameras = augmentation.cameras(capture.cameras)
    device = cloud.means.device
    objective = PhotometricObjective(
        cloud,
        cameras,
        capture.images if device.type == "cpu" else CachedImages(capture.images, device),
        renderer,
        RenderOptions(capture.background, sh_degree=cloud.sh_degree),
        length_scale=augmentation.extent_factor * capture.extent,
    )
    positions = camera_centers([cameras[view] for view in inputs])
    return MetaTask(scene, objective, tuple(inputs), tuple(targets), positions, view_batch, augmentation)


def draw_task(
    scene: str,
    renderer: Renderer,
    options: MetaTaskOptions,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> MetaTask:
    """Draw views and a start for the capture ``scene``.

    With probability ``sparse`` the input views are a few far from each other and all others are held out; otherwise
    a quarter of all views is. The start is a random share of the capture's points, or as many points scattered
    where its cameras look. The world is rotated and its extent scaled as the options say.

    Args:
        scene: The key of a capture.
        renderer: What renders and differentiates.
        options: The shares.
        generator: The only source of randomness, on the CPU.
        device: Where the cloud lies.
    """
    capture = cached_capture(scene)
    count = len(capture.cameras)
    min_views, max_views = options.few
    if count <= min_views:
        raise InputError(f"capture {scene} has {count} views; meta-training needs more than {min_views}")
    order = torch.randperm(count, generator=generator).tolist()
    if float(torch.rand((), generator=generator)) < options.sparse:
        few = int(torch.randint(min_views, min(max_views, count - 1) + 1, (), generator=generator))
        inputs = farthest_points(camera_centers(capture.cameras), few, order[0])
    else:
        inputs = order[max(1, count // 4) :]
    chosen = set(inputs)
    held_out = [view for view in order if view not in chosen]
    augmentation = _draw_augmentation(options, generator)
    seen = replace(capture, split=Split("inputs", tuple(sorted(inputs)), tuple(held_out)))
    cloud = _start(seen, augmentation, options, generator).to(device)
    batch = options.view_batches[int(torch.randint(len(options.view_batches), (), generator=generator))]
    return bind(scene, cloud, sorted(inputs), held_out[: options.targets], renderer, batch, augmentation)


def _draw_augmentation(options: MetaTaskOptions, generator: torch.Generator) -> Augmentation:
    """Return an augmentation; nothing is drawn of what the options leave no choice in."""
    augmentation = Augmentation()
    if options.rotated and float(torch.rand((), generator=generator)) < options.rotated:
        quaternion = torch.nn.functional.normalize(torch.randn(4, generator=generator, dtype=torch.float64), dim=0)
        augmentation = replace(augmentation, quaternion=tuple(quaternion.tolist()))
    low, high = (math.log(extent_factor) for extent_factor in options.extent_factors)
    if low < high:
        augmentation = replace(
            augmentation, extent_factor=math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
        )
    return augmentation


def _start(
    capture: Capture, augmentation: Augmentation, options: MetaTaskOptions, generator: torch.Generator
) -> GaussianCloud:
    """Return a start from a share of the points, or from as many random ones, in the world as it is shown.

    It is random where there are few points.
    """
    points = capture.points
    available = 0 if points is None else len(points.positions)
    low = options.min_point_share
    share = low + (1 - low) * float(torch.rand((), generator=generator))
    count = max(min(_MIN_POINTS, available), round(share * available))
    scattered = float(torch.rand((), generator=generator)) < options.random_init
    # A network attends to some neighbours of each Gaussian: a few points alone would end the run.
    if points is None or available < _MIN_POINTS or scattered:
        return start_random(
            replace(capture, cameras=tuple(augmentation.cameras(capture.cameras))),
            max(_MIN_POINTS, count),
            sh_degree=options.sh_degree,
            generator=generator,
        )
    kept = torch.randperm(available, generator=generator)[:count]
    positions = (points.positions[kept].double() @ augmentation.rotation.T).to(points.positions)
    return start_from_points(positions, points.colors[kept], sh_degree=options.sh_degree)
