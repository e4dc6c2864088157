"""SOG and ``.ksplat`` through PlayCanvas' program splat-transform, where it is installed.

SOG holds a scene as WebP pictures and tables found by k-means; its reference is that program
(https://github.com/playcanvas/splat-transform), which is given a PLY, or gives one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from splatopt.core.checks import InputError, cut, short
from splatopt.data.packed_scenes import Packed
from splatopt.scene.gaussians import GaussianCloud
from splatopt.scene.ply import load_ply, save_ply, write_whole

_PROGRAM = "splat-transform"
_ENDINGS = {Packed.SOG: ".sog", Packed.KSPLAT: ".ksplat"}


def save_sog(cloud: GaussianCloud, path: Path) -> None:
    """Write a cloud as SOG.

    Raises:
        InputError: splat-transform is not here or fails, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "scene.ply", Path(folder) / "packed.sog"
        save_ply(cloud, plain)
        # On the CPU: a graphics card gives the same within k-means, and servers have none.
        _run(["-g", "cpu", str(plain), str(packed)], packed, f"SOG for {short(path)}")
        write_whole(path, lambda stream: stream.write(packed.read_bytes()))


def load_with_program(path: Path, kind: Packed, warnings: list[str] | None = None) -> GaussianCloud:
    """Read a scene of a kind that the program alone unpacks; warnings as of :func:`~splatopt.scene.ply.load_ply`.

    Raises:
        InputError: splat-transform is not here, or cannot read it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The program goes by endings; pictures of a SOG in parts lie beside its meta.json.
        given, plain = path.resolve(), Path(folder) / "scene.ply"
        if given.name != "meta.json" or kind is not Packed.SOG:
            given = Path(folder) / f"packed{_ENDINGS[kind]}"
            given.symlink_to(path.resolve())
        _run([str(given), str(plain)], plain, short(path))
        return load_ply(plain, warnings)


def _run(words: list[str], made: Path, what: str) -> None:
    program = shutil.which(_PROGRAM)
    if program is None:
        raise InputError(
            f"{what} needs {_PROGRAM}, which is not on the search path; npm install -g @playcanvas/splat-transform, or "
            "take another format such as .spz"
        )
    done = subprocess.run([program, "-q", *words], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not made.is_file():
        said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        error = next(
            (line for line in said if "error" in line.lower()), said[-1] if said else f"code {done.returncode}"
        )
        raise InputError(f"{what}: {_PROGRAM} failed: {cut(error)}; look at its own message, or take another format")
