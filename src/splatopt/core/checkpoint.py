"""Checkpoints: written whole or not at all, checked before they are believed.

A checkpoint is a folder ``step-000500`` with ``tensors.safetensors`` and ``checkpoint.json``; the
latter holds the numbers and the size and SHA-256 of the former. Both are written to a hidden folder,
flushed to the disk, and renamed into place, so that a kill at any moment leaves the previous one. One of
the same step is moved aside first, to ``.step-000500.before``, which counts in its place until the new one is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from splatopt.core.checks import InputError
from splatopt.core.files import discard, make_folder, new_file, partial_path, sync_folder

FORMAT = "splatopt-checkpoint-1"
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case the newest is damaged."""

_NAME = re.compile(r"step-(\d+)")
_HIDDEN = re.compile(r"\.(step-\d+)\.(partial|before|dropped)")
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
    make_folder(folder)
    final = folder / f"step-{checkpoint.step:06d}"
    partial, before = partial_path(final), _hidden(final, "before")
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
    try:
        discard(partial)
        partial.mkdir()
        write_durably(partial / _TENSORS, data)
        write_durably(partial / _SCALARS, json.dumps(header, indent=1).encode())
        sync_folder(partial)
        if final.exists() or final.is_symlink():
            discard(before)
            final.rename(before)
        partial.rename(final)
        sync_folder(folder)
        discard(before)
    except OSError:
        with contextlib.suppress(OSError):
            discard(partial)
        raise
    _drop_old(folder, newest=checkpoint.step)
    return final


def _hidden(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{state}")


def sweep_checkpoints(folder: Path) -> None:
    """Finish what a kill left half done below ``folder``: parts go, and one that was moved aside comes back."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        found = _HIDDEN.fullmatch(path.name)
        if found is None:
            continue
        with contextlib.suppress(OSError):
            if found[2] == "before" and not (folder / found[1]).exists():
                path.rename(folder / found[1])
            else:
                discard(path)


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
    found = {match[1]: path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    for path in folder.glob(".step-*.before"):
        match = _HIDDEN.fullmatch(path.name)
        if match:
            # Ended between the two moves of the step's replacement.
            found.setdefault(match[1].removeprefix("step-"), path)
    return sorted((int(step), path) for step, path in found.items())


def _drop_old(folder: Path, newest: int) -> None:
    """Remove what is older than the KEPT newest, and later ones that a return to ``newest`` made stale."""
    existing = _checkpoints(folder)
    kept = [path for step, path in existing if step <= newest][-KEPT:]
    for _, path in existing:
        if path not in kept:
            # Half of one must never lie under its name.
            with contextlib.suppress(OSError):
                dropped = _hidden(path, "dropped")
                discard(dropped)
                path.rename(dropped)
                discard(dropped)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, which does not exist, and wait until the disk has it."""
    with new_file(path) as file:
        file.write(data)


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one move: a reader finds the old file or the new one, never a part."""
    partial = partial_path(path)
    discard(partial)
    try:
        write_durably(partial, data)
        partial.replace(path)
    finally:
        discard(partial)
    sync_folder(path.parent)
