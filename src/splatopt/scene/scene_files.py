"""Scene files of every kind: read by what they hold, written by their ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splatopt.core.checks import InputError, short
from splatopt.data.packed_scenes import SPLAT_ROW, Packed, packed_kind
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.gsply_files import load_compressed_ply, load_spz, save_compressed_ply, save_spz
from splatopt.scene.ply import load_ply, save_ply, tell
from splatopt.scene.splat_rows import load_splat, save_splat
from splatopt.scene.splat_transform import load_with_program, save_sog

_WRITERS: dict[str, Callable[[GaussianCloud, Path, list[str]], None]] = {
    ".compressed.ply": save_compressed_ply,
    ".ply": lambda cloud, path, said: save_ply(cloud, path),
    ".spz": save_spz,
    ".splat": save_splat,
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
            _check_known(path)
            return load_ply(path, said)
        case Packed.COMPRESSED_PLY:
            return load_compressed_ply(path, said)
        case Packed.SPZ:
            return load_spz(path, said)
        case Packed.SPLAT:
            return load_splat(path, said)
        case kind:
            return load_with_program(path, kind, said)


def _check_known(path: Path) -> None:
    """Raise InputError for a file that is of no kind that is read."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(3) == b"ply":
            return
    size = path.stat().st_size
    why = (
        f" (the rows of a .splat take {SPLAT_ROW.itemsize} bytes each, and it has {size:,})"
        if path.suffix.lower() == ".splat"
        else ""
    )
    raise InputError(f"{short(path)} is no scene of a kind that is read{why}; export or copy it again")


def written_ending(path: Path) -> str | None:
    """Return that of WRITTEN in which a path ends; None for another."""
    return next((ending for ending in _WRITERS if path.name.lower().endswith(ending)), None)


def save_scene(
    cloud: GaussianCloud, path: Path | str, warnings: list[str] | None = None, *, antialiased: bool = False
) -> None:
    """Write a scene in the format of its ending; an existing file is replaced.

    Args:
        cloud: The scene.
        path: Ends in one of WRITTEN.
        warnings: Gets a sentence for each thing that the format cannot hold; when None, they are Python's warnings.
        antialiased: Whether the scene wants the antialiased footprint, which SPZ alone can say.

    Raises:
        InputError: It has another ending, what writes the format is not installed, or it cannot be written.
    """
    path = Path(path)
    ending = written_ending(path)
    if ending is None:
        raise InputError(f"scenes are written as {', '.join(WRITTEN)}, got {short(Path(path.name))}")
    said: list[str] = []
    if antialiased and ending == ".spz":
        save_spz(cloud, path, said, antialiased=True)
    else:
        _WRITERS[ending](cloud, path, said)
        if antialiased:
            said.append(f"{ending} does not say that the scene wants antialiasing; switch it on in the viewer")
    tell(said, warnings, 3)
