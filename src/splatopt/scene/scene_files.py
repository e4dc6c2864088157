"""Scene files of every kind: read by what they hold, written by their ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splatopt.core.checks import InputError, short
from splatopt.data.packed_scenes import Packed, packed_kind
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.gsply_files import load_compressed_ply, load_spz, save_compressed_ply, save_spz
from splatopt.scene.ply import load_ply, save_ply, tell
from splatopt.scene.splat_rows import load_splat, save_splat
from splatopt.scene.splat_transform import load_with_program, save_sog

_WRITERS: dict[str, Callable[[GaussianCloud, Path, list[str]], None]] = {
    ".compressed.ply": lambda cloud, path, said: save_compressed_ply(cloud, path),
    ".ply": lambda cloud, path, said: save_ply(cloud, path),
    ".spz": save_spz,
    ".splat": lambda cloud, path, said: save_splat(cloud, path),
    ".sog": lambda cloud, path, said: save_sog(cloud, path),
}
"""The longest ending comes first."""

WRITTEN = tuple(_WRITERS)
"""Endings of scenes that are written."""


def load_scene(path: Path | str, warnings: list[str] | None = None) -> GaussianCloud:
    """Read a Gaussian scene of any kind, told by what it holds, whatever its ending.

    Args:
        path: A 3DGS PLY, SuperSplat's compressed PLY, SPZ, ``.splat``; SOG and ``.ksplat`` through splat-transform.
        warnings: As of :func:`~splatopt.scene.ply.load_ply`.

    Returns:
        The cloud, float32, on the CPU, at the degree that is stored, with y down and z forward where the capture that
        it was made from had them.

    Raises:
        InputError: There is no such file, it is damaged, or what reads its kind is not installed.
    """
    said: list[str] = []
    cloud = _load(Path(path), said)
    tell(said, warnings, 3)
    return cloud


def _load(path: Path, said: list[str]) -> GaussianCloud:
    match packed_kind(path):
        case None:
            return load_ply(path, said)
        case Packed.COMPRESSED_PLY:
            return load_compressed_ply(path, said)
        case Packed.SPZ:
            return load_spz(path, said)
        case Packed.SPLAT:
            return load_splat(path, said)
        case kind:
            return load_with_program(path, kind, said)


def written_ending(path: Path) -> str | None:
    """Return that of WRITTEN in which a path ends; None for another."""
    return next((ending for ending in _WRITERS if path.name.lower().endswith(ending)), None)


def save_scene(cloud: GaussianCloud, path: Path | str, warnings: list[str] | None = None) -> None:
    """Write a scene in the format of its ending; an existing file is replaced.

    Args:
        cloud: The scene.
        path: Ends in one of WRITTEN.
        warnings: Gets a sentence for each thing that the format cannot hold; when None, they are Python's warnings.

    Raises:
        InputError: It has another ending, what writes the format is not installed, or it cannot be written.
    """
    path = Path(path)
    ending = written_ending(path)
    if ending is None:
        raise InputError(f"scenes are written as {', '.join(WRITTEN)}, got {short(Path(path.name))}")
    said: list[str] = []
    _WRITERS[ending](cloud, path, said)
    tell(said, warnings, 3)
