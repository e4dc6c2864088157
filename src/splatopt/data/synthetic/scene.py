"""Synthetic scenes by seed: a random world, photographed, with sparse points, as a capture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splatopt.core.camera import Camera
from splatopt.core.checks import InputError, nearest_names
from splatopt.data.capture import Capture, CaptureOptions, make_split
from splatopt.data.image_store import ImageSource, ImageStore
from splatopt.data.images import over_background
from splatopt.data.lens import Lens
from splatopt.data.source import Points, PosedImage
from splatopt.data.synthetic.cameras import random_poses
from splatopt.data.synthetic.images import render_images
from splatopt.data.synthetic.points import sparse_points
from splatopt.data.synthetic.tracing import Tracer
from splatopt.data.synthetic.worlds import KINDS

_ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4)


@dataclass(frozen=True)
class SceneOptions:
    """What synthetic scenes are like."""

    side: int = 128
    """Longer side of a photograph; the shorter one is random per scene. Unit: pixels.
    Source: a step of a meta-training episode on a CPU should stay below 20 ms."""

    views: int = 16
    """Photographs of a scene, held-out ones included. Unit: views. Source: 8 to 64 in Learn2Splat."""

    points: int = 2000
    """Sparse points before 0 to 90 % of them are left out. Unit: points. Source: about an eighth of the pixels of
    a photograph, as fox has."""

    samples: int = 2
    """Rays per pixel and side. Unit: rays. Source: smooth edges by eye; SSIM compares them."""

    kinds: tuple[str, ...] = ("objects", "room", "terrain")
    """Worlds to choose from, each equally often. Unit: none. Source: indoor, outdoor and object captures in the
    benchmarks' mix."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: Names the option, what it must be and what came.
        """
        for name, value, low, high in (
            ("side", self.side, 16, 4096),
            ("views", self.views, 2, 1000),
            ("points", self.points, 0, 1_000_000),
            ("samples", self.samples, 1, 8),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} must lie between {low} and {high}, got {value}")
        if not self.kinds:
            raise InputError(f"kinds must name at least one of {', '.join(KINDS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"there is no kind of scene {kind!r}; {nearest_names(kind, KINDS)}")


@dataclass(frozen=True)
class SyntheticScene:
    """A scene before it becomes a capture in memory or on disk.

    Attributes:
        pictures: One per view, (H, W, 3) uint8, or (H, W, 4) with what lies behind left open.
        poses: World to camera, (4, 4) each, OpenCV axes.
        focal: Focal length, pixels.
        positions: Sparse points, (P, 3), to six decimals.
        colors: Their colours, (P, 3) uint8.
    """

    pictures: tuple[np.ndarray, ...]
    poses: tuple[np.ndarray, ...]
    focal: float
    positions: np.ndarray
    colors: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a photograph, pixels."""
        return self.pictures[0].shape[1], self.pictures[0].shape[0]

    @property
    def names(self) -> list[str]:
        """The photographs' names."""
        return [f"view_{index:03d}.png" for index in range(len(self.pictures))]

    def capture(self, name: str) -> Capture:
        """Return the capture that loading the written scene would give, without any file."""
        width, height = self.size
        options, path = CaptureOptions(), Path(name)
        lens = Lens("PINHOLE", width, height, (self.focal, self.focal, width / 2, height / 2))
        posed = [
            PosedImage(view, path / "images" / view, torch.from_numpy(pose), lens)
            for view, pose in zip(self.names, self.poses, strict=True)
        ]
        images = [torch.from_numpy(over_background(picture, options.background)) for picture in self.pictures]
        see_through = self.pictures[0].shape[2] == 4
        return Capture(
            name=name,
            path=path,
            kind="procedural",
            cameras=tuple(
                Camera(view.world_to_camera, self.focal, self.focal, width / 2, height / 2, width, height, view.name)
                for view in posed
            ),
            images=ImageStore.decoded(
                [ImageSource(view.path, lens, width, height) for view in posed], options.background, images
            ),
            points=Points(torch.from_numpy(self.positions.astype(np.float64)), torch.from_numpy(self.colors)),
            split=make_split(posed, options.test_every),
            warnings=(),
            camera_models=("PINHOLE",),
            background=options.background if see_through else (0.0, 0.0, 0.0),
        )


def build_scene(seed: int, options: SceneOptions | None = None) -> SyntheticScene:
    """Make the scene of one seed.

    Raises:
        InputError: The seed is negative, or the ray caster is not installed.
    """
    options = options or SceneOptions()
    if seed < 0:
        raise InputError(f"the seed must be at least 0, got {seed}")
    rng, viewing, sparse = np.random.default_rng(seed).spawn(3)
    world = KINDS[options.kinds[int(rng.integers(len(options.kinds)))]](rng)
    tracer = Tracer(world)
    aspect = _ASPECTS[int(viewing.integers(len(_ASPECTS)))]
    size = (
        max(16, round(options.side * min(1, aspect))),
        max(16, round(options.side * min(1, 1 / aspect))),
    )
    angle = viewing.uniform(60, 85) if world.kind == "room" else viewing.uniform(40, 65)
    focal = float(0.5 * max(size) / math.tan(0.5 * math.radians(angle)))
    poses = random_poses(viewing, tracer, options.views, focal, size)
    pictures = render_images(tracer, poses, focal, size, options.samples)
    plain = [over_background(picture, CaptureOptions().background) for picture in pictures]
    positions, colors = sparse_points(sparse, tracer, poses, focal, size, plain, options.points)
    return SyntheticScene(tuple(pictures), tuple(poses), focal, positions, colors)


def make_scene(seed: int, options: SceneOptions | None = None) -> Capture:
    """Make the capture of one seed in memory; the same seed and options give the same numbers.

    Args:
        seed: Decides on everything, at least 0.
        options: Sizes and kinds; the defaults if None.

    Raises:
        InputError: The seed is negative, or the ray caster is not installed.
    """
    return build_scene(seed, options).capture(f"scene-of-seed-{seed}")


def scene_seed(seed: int, index: int) -> int:
    """Return the seed of scene ``index`` of the collection ``seed``, whatever the collection's length.

    Raises:
        InputError: A number is negative.
    """
    if min(seed, index) < 0:
        raise InputError(f"the seed and the number of a scene must be at least 0, got {seed} and {index}")
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def scene_stream(seed: int, options: SceneOptions | None = None, start: int = 0) -> Iterator[Capture]:
    """Make scenes without end, each when it is asked for: those that ``splatopt data make`` writes.

    Args:
        seed: Of the collection, at least 0.
        options: Sizes and kinds; the defaults if None.
        start: The first scene's number.

    Raises:
        InputError: A number is negative, or the ray caster is not installed.
    """
    index = start
    while True:
        yield build_scene(scene_seed(seed, index), options).capture(scene_name(index))
        index += 1


def scene_name(index: int) -> str:
    """Return the folder name of scene ``index``."""
    return f"scene-{index:04d}"
