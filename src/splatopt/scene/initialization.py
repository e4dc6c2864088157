"""Where training begins: a cloud from a capture's points, a random one, or a scene from a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from splatopt.core import native
from splatopt.core.checks import InputError, quoted
from splatopt.core.constants import MAX_COORDINATE, SH_C0
from splatopt.core.devices import free_memory
from splatopt.core.schema import SH_REST_COUNTS
from splatopt.data import Capture
from splatopt.data.packed_scenes import SCENE_ENDINGS
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ray_start import BYTES_OF_A_ROW, rows_on_rays
from splatopt.scene.scene_files import load_scene

START_OPACITY = 0.1
"""Opacity of every Gaussian at the start; 3DGS."""

_NEIGHBOURS = 3
_MIN_SQUARED_DISTANCE = 1e-7
"""Squared units of the training frame; 3DGS. Keeps points that coincide from becoming Gaussians without size."""
_LONE_DISTANCE = 0.1
"""Units of the training frame: the size of a Gaussian that has no neighbour at all."""


def neighbour_distances(positions: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
    """Return the root mean square distance of each point to its 3 nearest neighbours.

    With fewer than 4 points, to as many as there are. Never below √1e-7, so that coinciding points
    have a size.

    Args:
        positions: (P, 3), world units.

    Returns:
        (P,), world units, the type of ``positions``.
    """
    count = positions.shape[0]
    if count < 2:
        return positions.new_full((count,), _LONE_DISTANCE)
    points = positions.double()
    away = points[_nearest_rows(points, min(count - 1, _NEIGHBOURS))] - points[:, None]
    squared = (away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2).mean(dim=1)
    return squared.clamp_min(_MIN_SQUARED_DISTANCE).sqrt().to(positions.dtype)


def _nearest_rows(points: Float[Tensor, "p 3"], count: int) -> Int[Tensor, "p k"]:
    """The rows of as many nearest others of each point; of those that coincide with it, it may be itself."""
    centred = (points - points.mean(dim=0)).float()
    if native.available() and float(centred.abs().max()) <= MAX_COORDINATE:
        rows = torch.empty(len(points), count, dtype=torch.int64)
        native.nearest_others(centred, rows, isa="portable")  # the same rows whatever set a run takes
        return rows
    from scipy.spatial import cKDTree

    _, found = cKDTree(points.numpy()).query(points.numpy(), k=count + 1)
    return torch.from_numpy(found[:, 1:])


def _cloud(positions: Tensor, colors: Tensor, sizes: Tensor, sh_degree: int) -> GaussianCloud:
    """Return round, faint Gaussians of some ``sizes`` with ``colors`` in [0, 1], seen alike from all sides."""
    if sh_degree not in (0, 1, 2, 3):
        raise InputError(f"the spherical-harmonics degree must be 0, 1, 2 or 3, got {sh_degree}")
    count = positions.shape[0]
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    return GaussianCloud(
        means=positions.contiguous(),
        log_scales=sizes.log()[:, None].repeat(1, 3),
        quats=quats,
        logit_opacities=torch.full((count,), math.log(START_OPACITY / (1 - START_OPACITY))),
        sh_dc=(colors - 0.5) / SH_C0,
        sh_rest=torch.zeros(count, SH_REST_COUNTS[sh_degree], 3),
    )


def start_from_points(
    positions: Float[Tensor, "p 3"], colors: UInt8[Tensor, "p 3"], sh_degree: int = 3
) -> GaussianCloud:
    """Put one Gaussian on every point, as 3DGS does.

    Round, as large as the root mean square distance to the 3 nearest neighbours, opacity 0.1, the
    point's colour from every side.

    Args:
        positions: (P, 3), world units.
        colors: (P, 3), uint8, RGB.
        sh_degree: Degree at which colours are stored, 0 to 3.

    Returns:
        P Gaussians, float32.

    Raises:
        InputError: No points, or positions that are not finite.
    """
    if positions.shape[0] == 0:
        raise InputError("the capture has no points to start from; start from random ones with --init random")
    bad = int((~torch.isfinite(positions).all(dim=1)).sum())
    if bad:
        raise InputError(
            f"{bad} of {positions.shape[0]} points of the capture have NaN or infinite positions; mend the "
            f"capture or use --init random"
        )
    positions = positions.detach().cpu().float().clone()
    return _cloud(positions, colors.cpu().float() / 255, neighbour_distances(positions), sh_degree)


def start_random(
    capture: Capture, count: int, sh_degree: int = 3, generator: torch.Generator | None = None
) -> GaussianCloud:
    """Scatter Gaussians over what the training views see, where their photographs agree.

    Each lies on a ray through a random pixel, at a depth drawn by how well the photographs agree there, and has the
    colours in which they see it; a tenth lies on a far sphere, unless photographs have alpha masks, which carve. See
    :mod:`splatopt.scene.ray_start`. Round, opacity 0.1, as large as the root mean square distance to the 3 nearest
    neighbours (on the sphere, to those on the sphere), but in no photograph larger than 4 spacings of as many rows that
    are spread evenly over it.

    Args:
        capture: Its training views are looked at; nothing of its points and its held-out views is used.
        count: Number of Gaussians.
        sh_degree: Degree at which colours are stored, 0 to 3.
        generator: Source of randomness, on the CPU; PyTorch's own when None.

    Returns:
        ``count`` Gaussians, float32, in the frame of the capture's cameras.

    Raises:
        InputError: ``count`` is below 1, or a photograph cannot be read or shows nothing.
    """
    if count < 1:
        raise InputError(f"a random initialization needs at least 1 Gaussian, got {count}")
    rows = rows_on_rays(capture, count, generator or torch.default_generator)
    sizes = torch.empty_like(rows.max_sizes)
    for group in (rows.is_far, ~rows.is_far):
        sizes[group] = torch.minimum(neighbour_distances(rows.positions[group]), rows.max_sizes[group])
    return _cloud(rows.positions.float(), rows.colors, sizes.float(), sh_degree)


# ---------------------------------------------------------------------- what a run is told


class Initialization(ABC):
    """Where the cloud of a run comes from."""

    has_bands: ClassVar[bool] = False
    """Whether the cloud comes with colours that differ by direction, so that no band need wait for its turn."""

    @abstractmethod
    def cloud(
        self, capture: Capture, sh_degree: int, generator: torch.Generator, warnings: list[str] | None = None
    ) -> GaussianCloud:
        """Return the cloud that training begins from.

        Args:
            capture: Gives points and cameras.
            sh_degree: Degree at which colours are stored, 0 to 3.
            generator: Source of randomness, on the CPU.
            warnings: Gets a sentence for what a scene file holds and is not taken as it stands; when None, they are
                Python's warnings.

        Raises:
            InputError: The capture has no points, the scene cannot be used, or memory is too small.
        """


def has_points(capture: Capture) -> bool:
    """Whether the capture holds points that a cloud can begin from."""
    return capture.points is not None and len(capture.points.positions) > 0


@dataclass(frozen=True)
class FromPoints(Initialization):
    """One Gaussian on every point of the capture."""

    def cloud(
        self, capture: Capture, sh_degree: int, generator: torch.Generator, warnings: list[str] | None = None
    ) -> GaussianCloud:
        """Return the cloud that training begins from; see :func:`start_from_points`."""
        if capture.points is None or not has_points(capture):
            raise InputError(
                f"capture {capture.path} holds no points to start from; start with --init random, or from a "
                f"scene with --init scene.ply"
            )
        return start_from_points(capture.points.positions, capture.points.colors, sh_degree=sh_degree)


def points_file(initialization: Initialization, capture: Capture) -> str:
    """Return the name of the file beside the poses whose points are begun from; empty where it is something else."""
    return capture.points.file if isinstance(initialization, FromPoints) and capture.points is not None else ""


@dataclass(frozen=True)
class Random(Initialization):
    """Gaussians on random rays of the cameras, where photographs agree.

    Attributes:
        count: Number of Gaussians.
    """

    count: int

    def cloud(
        self, capture: Capture, sh_degree: int, generator: torch.Generator, warnings: list[str] | None = None
    ) -> GaussianCloud:
        """Return the cloud that training begins from; see :func:`start_random`."""
        numbers = 14 + 3 * ((sh_degree + 1) ** 2 - 1)
        needed, free = (4 * numbers + BYTES_OF_A_ROW) * self.count, free_memory(torch.device("cpu"))
        if needed > free:
            raise InputError(
                f"--random-points {self.count:,} needs {needed / 2**30:.1f} GiB of memory, and "
                f"{free / 2**30:.1f} are free; give fewer"
            )
        return start_random(capture, self.count, sh_degree=sh_degree, generator=generator)


@dataclass(frozen=True)
class FromScene(Initialization):
    """The scene of a file, PLY or packed.

    Attributes:
        path: The file.
    """

    path: Path
    has_bands: ClassVar[bool] = True

    def cloud(
        self, capture: Capture, sh_degree: int, generator: torch.Generator, warnings: list[str] | None = None
    ) -> GaussianCloud:
        """Return the cloud that training begins from."""
        return load_scene(self.path, warnings).with_sh_degree(sh_degree).in_local(capture.frame)


def parse_initialization(init: str, random_points: int) -> Initialization:
    """Return what ``--init`` stands for.

    Args:
        init: sfm, random, or the path of a scene file.
        random_points: Gaussians of a random one.

    Raises:
        InputError: It is nothing of these.
    """
    if init == "sfm":
        return FromPoints()
    if init == "random":
        return Random(random_points)
    if Path(init).suffix.lower() in SCENE_ENDINGS or Path(init).is_file():
        return FromScene(Path(init))
    raise InputError(f"--init must be sfm, random or the path of a scene file, got {quoted(init)}")
