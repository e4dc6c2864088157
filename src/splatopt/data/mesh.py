"""Triangle meshes: read, brought into a box, sampled, and asked what lies inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.core.files import whole_file
from splatopt.data.mesh_files import check_mesh_file

MAX_FILE_BYTES = 2 << 30
"""Larger mesh files are refused, bytes."""

BOX = 0.9
"""A mesh is scaled until its longest side reaches from -BOX to BOX."""

MAX_DISTANCE = 1e10
"""Largest coordinate of a mesh."""

_NO_MESHES = frozenset({"bz2", "zip", "tar.bz2", "tar.gz", "dxf", "xyz"})
"""What trimesh would unpack, a small archive of which may hold more than any memory, and what has no faces."""

_PAIRS = 1_000_000
"""Point-triangle pairs that are looked at together."""

_LISTED = 32_000_000
"""Faces that the cells of a grid may list together."""

_CACHED_PAIRS = 1 << 16
"""The same where each takes a score of passes, so that they stay in the cache."""


@dataclass(frozen=True)
class Mesh:
    """Triangles within [-1, 1]³.

    Attributes:
        vertices: (V, 3), float64, centred and scaled.
        faces: (F, 3), vertex numbers.
        watertight: Whether every edge has two faces of agreeing direction.
        center: What was subtracted from the file's vertices, (3,).
        scale: What they were then multiplied by.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int[Tensor, "faces 3"]
    watertight: bool
    center: Float[Tensor, " 3"]
    scale: float

    @property
    def corners(self) -> Float[Tensor, "faces 3 3"]:
        """The three corners of each face."""
        return self.vertices[self.faces]

    def restored(self, vertices: Tensor) -> Tensor:
        """Return points of the box, (N, 3), in the coordinates of the file."""
        return vertices.double() / self.scale + self.center


def is_mesh_name(path: Path) -> bool:
    """Whether a file with this ending can be read as a mesh: what trimesh reads, but for archives and points."""
    import trimesh

    return path.suffix.lower().removeprefix(".") in trimesh.available_formats() - _NO_MESHES


def load_mesh(path: Path) -> Mesh:
    """Read a mesh and bring it into the box.

    Raises:
        InputError: The file is missing, too large, damaged, or holds no triangles.
    """
    import trimesh

    if not path.is_file():
        raise InputError(f"no mesh at {path}: expected a file such as model.obj, model.ply or model.stl")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"mesh {path} is larger than {MAX_FILE_BYTES >> 30} GiB; make it coarser")
    if not is_mesh_name(path):
        raise InputError(f"mesh {path} has an ending that cannot be read; save it as .obj, .ply, .stl or .off")
    check_mesh_file(path)
    try:
        loaded: Any = trimesh.load(path, force="mesh", process=False, skip_materials=True)
        _check_triangles(path, loaded.vertices, loaded.faces)
        # trimesh joins corners within 1e-8, which means the same in any unit and at any place in the box alone.
        corners = torch.from_numpy(np.array(loaded.vertices, dtype=np.float64))
        center, scale = _box(corners[np.unique(loaded.faces)])
        loaded.vertices = ((corners - center) * scale).numpy()
        # Files of separate triangles, such as STL, name each corner anew.
        loaded.merge_vertices(merge_tex=True, merge_norm=True)
        vertices, faces = np.array(loaded.vertices, dtype=np.float64), np.array(loaded.faces, dtype=np.int64)
        watertight = bool(loaded.is_watertight and loaded.is_winding_consistent)
    except InputError:
        raise
    except Exception as error:  # what a parser may raise on a broken file is beyond any list
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"mesh {path} cannot be read ({quoted(said)}); save it anew") from error
    if not len(faces):
        raise InputError(f"mesh {path} holds no triangles")
    mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces), watertight, center, scale)
    edges = mesh.corners[:, 1:] - mesh.corners[:, :1]
    if not float(torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1).sum()) > 0:
        raise InputError(f"mesh {path} has no surface: the corners of each face lie on a line")
    return mesh


def _check_triangles(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Raise InputError unless these are corners of three finite numbers and faces of three corners that are there."""
    if not len(faces):
        raise InputError(f"mesh {path} holds no triangles")
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise InputError(
            f"mesh {path} is damaged: expected corners of 3 numbers and faces of 3 corners, got "
            f"{vertices.shape} and {faces.shape}; save it anew"
        )
    if not np.isfinite(vertices).all():
        raise InputError(f"mesh {path} holds infinite coordinates")
    if np.abs(vertices).max() > MAX_DISTANCE:
        raise InputError(
            f"mesh {path} reaches {np.abs(vertices).max():.3g} from the origin, expected {MAX_DISTANCE:g} at most"
        )
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(f"mesh {path} is damaged: a face names a corner that is not among its {len(vertices)}")


def make_mesh(vertices: Tensor, faces: Tensor, watertight: bool) -> Mesh:
    """Return the mesh of these triangles, centred and scaled into the box.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        watertight: Whether it is.

    Raises:
        InputError: All vertices are in one place.
    """
    center, scale = _box(vertices[faces.unique()].double())
    return Mesh((vertices.double() - center) * scale, faces.long(), watertight, center, scale)


def _box(used: Tensor) -> tuple[Tensor, float]:
    """Return what to subtract from corners, (n, 3), and what to multiply them by; see :func:`make_mesh`."""
    low, high = used.amin(dim=0), used.amax(dim=0)
    extent = float((high - low).max())
    if not extent > 1e-100:
        raise InputError("the mesh has no extent: all its vertices are in one place")
    return (low + high) / 2, 2 * BOX / extent


def write_mesh(path: Path, vertices: Tensor, faces: Tensor) -> None:
    """Write triangles in one move, in the format that the ending names, such as .ply, .obj or .stl.

    Args:
        path: The file.
        vertices: (V, 3).
        faces: (F, 3).
    """
    import trimesh

    with whole_file(path) as file:
        if path.suffix.lower() == ".ply":
            _write_ply(file, vertices.double().numpy(), faces.numpy())
        else:
            trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False).export(
                file, file_type=path.suffix.removeprefix(".")
            )


def _write_ply(file: BinaryIO, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write a binary PLY whose corners are doubles: trimesh's are floats, half a metre apart at UTM coordinates."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    file.write("\n".join(header).encode())
    file.write(vertices.astype("<f8").tobytes())
    rows = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    file.write(rows.tobytes())


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> Float[Tensor, "count 3"]:
    """Return points drawn uniformly from the surface, float64.

    Args:
        mesh: At least one face with an area.
        count: Number of points.
        generator: Source of randomness.
    """
    corners = mesh.corners
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1)
    upper = areas.cumsum(0)
    picked = torch.searchsorted(upper, torch.rand(count, generator=generator, dtype=torch.float64) * upper[-1])
    first, second = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    root = first.sqrt()
    a, b, c = corners[picked.clamp(max=len(areas) - 1)].unbind(dim=1)
    return (1 - root) * a + root * (1 - second) * b + root * second * c


def inside(mesh: Mesh, points: Float[Tensor, "count 3"]) -> Bool[Tensor, " count"]:
    """Return which points lie inside: where the surface winds around them, |winding number| > ½.

    Of a watertight mesh the number is whole and is counted along a ray; of others it is the sum of solid angles.

    Args:
        mesh: The surface; parts may overlap.
        points: (N, 3).
    """
    return inside_test(mesh)(points)


def inside_test(mesh: Mesh) -> Callable[[Tensor], Tensor]:
    """Return :func:`inside` of a mesh as a function of points, for whoever asks often."""
    if mesh.watertight:
        columns = _columns(mesh)
        return lambda points: columns.crossings_above(points) != 0
    return lambda points: winding_numbers(mesh, points).abs() > 0.5


def crossings_above(mesh: Mesh, points: Float[Tensor, "count 3"]) -> Int[Tensor, " count"]:
    """Return how many faces above each point are left upwards, less those that are entered: the winding number.

    The mesh is turned by an angle of no meaning first, so that no ray meets an edge of an axis-parallel mesh.
    Faces are kept in the cells of a grid over x and y; a point looks at those of its own cell.

    Args:
        mesh: Watertight.
        points: (N, 3).
    """
    return _columns(mesh).crossings_above(points)


@dataclass(frozen=True)
class _Columns:
    """Faces of a turned mesh in the cells of a grid over x and y.

    Attributes:
        corners: Of each face, turned, (F, 3, 3).
        low: Where the grid begins, (2,).
        size: Of a cell, (2,).
        side: Cells along x and along y.
        starts: Where the list of each cell begins, (side² + 1,).
        listed: Faces that meet each cell, one cell after the other.
    """

    corners: Tensor
    low: Tensor
    size: Tensor
    side: int
    starts: Tensor
    listed: Tensor

    def crossings_above(self, points: Tensor) -> Tensor:
        """Return the winding numbers of points, (N, 3) before the turn."""
        rotated = points.double() @ _generic_rotation().T
        cell = ((rotated[:, :2] - self.low) / self.size).floor().long()
        within = ((cell >= 0) & (cell < self.side)).all(dim=1)
        number = (cell[:, 0] * self.side + cell[:, 1]).clamp(0, self.side * self.side - 1)
        candidates = torch.where(within, self.starts[number + 1] - self.starts[number], 0)
        crossings = torch.zeros(len(points), dtype=torch.long)
        for begin, end in _portions(candidates):
            counts = candidates[begin:end]
            owner = torch.repeat_interleave(torch.arange(begin, end), counts)
            offset = torch.arange(len(owner)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
            face = self.listed[self.starts[number[owner]] + offset]
            found = _crossed_above(self.corners[face], rotated[owner])
            crossings[begin:end].index_add_(0, owner - begin, found)
        return crossings


def _columns(mesh: Mesh) -> _Columns:
    """Turn a mesh and list its faces by column."""
    corners = mesh.corners @ _generic_rotation().T
    side = max(1, min(512, round(math.sqrt(len(corners)))))
    low = corners[..., :2].amin(dim=(0, 1))
    size = (corners[..., :2].amax(dim=(0, 1)) - low).clamp(min=1e-12) / side
    # Faces as large as the mesh, of which there may be many, lie in all cells.
    while side > 1 and int(_spans(corners, low, size, side)[1].prod(dim=1).sum()) > _LISTED:
        size, side = size * (side / (side // 2)), side // 2
    return _Columns(corners, low, size, side, *_cells(corners, low, size, side))


def winding_numbers(mesh: Mesh, points: Float[Tensor, "count 3"]) -> Float[Tensor, " count"]:
    """Return how often the surface winds around each point, Σ solid angles / 4π (Jacobson et al. 2013).

    1 inside and 0 outside of a closed surface, in between near the holes of others. The solid angle of a triangle
    a, b, c seen from the point is 2·atan2(det(a, b, c), |a||b||c| + (a·b)|c| + (b·c)|a| + (c·a)|b|) (Van Oosterom and
    Strackee 1983). The cost is points times faces.

    Args:
        mesh: Faces of agreeing direction, normals outwards.
        points: (N, 3).
    """
    a, b, c = mesh.corners.unbind(dim=1)
    # With a - p for a: products of corners and of corners with p are matrices, so nothing has three axes.
    across = torch.linalg.cross(a, b) + torch.linalg.cross(b, c) + torch.linalg.cross(c, a)
    volume = (a * torch.linalg.cross(b, c)).sum(dim=1)
    inner = [(x * y).sum(dim=1) for x, y in ((a, b), (b, c), (c, a))]
    square = [(x * x).sum(dim=1) for x in (a, b, c)]
    total = torch.zeros(len(points), dtype=torch.float64)
    chunk = max(1, _CACHED_PAIRS // len(a))
    for begin in range(0, len(points), chunk):
        p = points[begin : begin + chunk].double()
        own = (p * p).sum(dim=1, keepdim=True)
        pa, pb, pc = p @ a.T, p @ b.T, p @ c.T
        la, lb, lc = ((own - 2 * px + x).clamp_(min=0).sqrt_() for px, x in zip((pa, pb, pc), square, strict=True))
        below = la * lb * lc
        for px, py, xy, length in ((pa, pb, inner[0], lc), (pb, pc, inner[1], la), (pc, pa, inner[2], lb)):
            below.addcmul_(own - px - py + xy, length)
        total[begin : begin + chunk] = torch.atan2(volume - p @ across.T, below).sum(dim=1) / (2 * math.pi)
    return total


def _generic_rotation() -> Tensor:
    """A rotation by odd angles about z, then x."""
    (ca, sa), (cb, sb) = ((math.cos(angle), math.sin(angle)) for angle in (0.7310585, 0.4180239))
    about_z = torch.tensor([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]], dtype=torch.float64)
    about_x = torch.tensor([[1, 0, 0], [0, cb, -sb], [0, sb, cb]], dtype=torch.float64)
    return about_x @ about_z


def _cells(corners: Tensor, low: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return where the list of each cell begins, (side² + 1,), and the faces whose bounds meet it."""
    first, spans = _spans(corners, low, size, side)
    across, down = spans.unbind(dim=1)
    counts = across * down
    face = torch.repeat_interleave(torch.arange(len(corners)), counts)
    offset = torch.arange(len(face)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    cell = (first[face, 0] + offset // down[face]) * side + first[face, 1] + offset % down[face]
    order = torch.argsort(cell, stable=True)
    starts = torch.zeros(side * side + 1, dtype=torch.long)
    starts[1:] = torch.bincount(cell, minlength=side * side).cumsum(0)
    return starts, face[order]


def _spans(corners: Tensor, low: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the first cell of each face and how many it meets, along x and y, (F, 2) each."""
    first = ((corners[..., :2].amin(dim=1) - low) / size).floor().long().clamp(0, side - 1)
    last = ((corners[..., :2].amax(dim=1) - low) / size).floor().long().clamp(0, side - 1)
    return first, last - first + 1


def _portions(counts: Tensor) -> list[tuple[int, int]]:
    """Ranges of points whose pairs fit together."""
    upper = counts.cumsum(0)
    bounds, begin = [], 0
    while begin < len(counts):
        done = int(upper[begin - 1]) if begin else 0
        end = max(begin + 1, int(torch.searchsorted(upper, done + _PAIRS, right=True)))
        bounds.append((begin, end))
        begin = end
    return bounds


def _crossed_above(corners: Tensor, points: Tensor) -> Tensor:
    """Whether the upward ray from each point meets its triangle, (P,): 1 from within, -1 from outside, else 0."""
    a, b, c = corners.unbind(dim=1)

    def twice_area(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    wa, wb, wc = twice_area(b, c, points), twice_area(c, a, points), twice_area(a, b, points)
    covered = ((wa > 0) == (wb > 0)) & ((wb > 0) == (wc > 0))
    area = wa + wb + wc
    height = (wa * a[:, 2] + wb * b[:, 2] + wc * c[:, 2]) / torch.where(area == 0, 1, area)
    return torch.where(covered & (height > points[:, 2]), area.sign(), 0).long()
