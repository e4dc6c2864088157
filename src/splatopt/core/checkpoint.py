"""Checkpoints: written whole or not at all, checked before they are believed.

A checkpoint is a folder ``step-000500`` with ``tensors.safetensors`` and ``checkpoint.json``; the
latter holds the numbers and the size and SHA-256 of the former. Both are written to a hidden folder,
flushed to the disk, and renamed into place, so that a kill at any moment leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from splatopt.core.checks import InputError, writing

FORMAT = "splatopt-checkpoint-1"
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case the newest is damaged."""

_NAME = re.compile(r"step-(\d+)")
_TENSORS = "tensors.safetensors"
_SCALARS = "checkpoint.json"


class DamagedCheckpointError(InputError):
    """A checkpoint is incomplete or was changed after it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on bit-exactly.

    Attributes:
        step: Steps done.
        tensors: Parameters, the optimizer's tensors, the sampler's order, the generator's state.
        scalars: Numbers of the optimizer and of the loop, as JSON holds them.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder`` and drop all but the newest KEPT.

    Args:
        folder: The run's folder of checkpoints; made if absent.
        checkpoint: What to write; tensors may be views, on any device.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: It could not be written; the checkpoints from before are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:06d}"
    partial = folder / f".{final.name}.partial"
    dense = torch.contiguous_format
    data = safetensors.torch.save(
        {name: value.detach().to("cpu", copy=True, memory_format=dense) for name, value in checkpoint.tensors.items()}
    )
    header = {
        "format": FORMAT,
        "step": checkpoint.step,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "scalars": dict(checkpoint.scalars),
    }
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write_durably(partial / _TENSORS, data)
        write_durably(partial / _SCALARS, json.dumps(header, indent=1).encode())
        sync_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _drop_old(folder, newest=checkpoint.step)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in ``folder``.

    Raises:
        DamagedCheckpointError: A file is missing, cut short or changed.
    """
    try:
        header = json.loads((folder / _SCALARS).read_bytes())
        if header["format"] != FORMAT:
            raise DamagedCheckpointError(f"{folder}: expected the format {FORMAT}, got {header['format']!r}")
        size = (folder / _TENSORS).stat().st_size
        if size != header["bytes"]:
            raise DamagedCheckpointError(f"{folder}: {_TENSORS} should hold {header['bytes']} bytes, got {size}")
        data = (folder / _TENSORS).read_bytes()
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise DamagedCheckpointError(f"{folder}: {_TENSORS} was changed since it was written")
        return Checkpoint(int(header["step"]), safetensors.torch.load(data), header["scalars"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        raise DamagedCheckpointError(f"{folder}: this checkpoint is incomplete ({error})") from error


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, and a sentence for each newer one that is not.

    Args:
        folder: The run's folder of checkpoints.
    """
    warnings: list[str] = []
    for _, path in reversed(_checkpoints(folder)):
        try:
            return load_checkpoint(path), warnings
        except DamagedCheckpointError as error:
            warnings.append(f"{error}; using the one before")
    return None, warnings


def latest_path(folder: Path) -> Path | None:
    """Return the newest checkpoint below ``folder``, whole or not; None where there is none."""
    found = _checkpoints(folder)
    return found[-1][1] if found else None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of all checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _drop_old(folder: Path, newest: int) -> None:
    """Remove what is older than the KEPT newest, and later ones that a return to ``newest`` made stale."""
    existing = _checkpoints(folder)
    kept = [path for step, path in existing if step <= newest][-KEPT:]
    for _, path in existing:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and wait until the disk has it."""
    with writing(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one move: a reader finds the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_durably(partial, data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``; nothing where folders cannot be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
