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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from splatopt.core.checks import InputError, quoted
from splatopt.core.files import discard, make_folder, new_file, partial_path, sync_folder, whole_file
from splatopt.core.reading import AbsentFileError, parse_tensors, read_bounded, read_json
from splatopt.core.typed import Fields, Json

FORMAT = "splatopt-checkpoint-1"
KEPT_CHECKPOINTS = 2
"""Checkpoints that are kept: the newest, and the one before in case the newest is damaged."""

_NAME = re.compile(r"step-(\d+)")
_HIDDEN = re.compile(r"\.(step-\d+)\.(partial|before|dropped)")
_TENSORS = "tensors.safetensors"
_SCALARS = "checkpoint.json"
_MAX_BYTES = 2**40
_MAX_STEPS = 10**15


class DamagedCheckpointError(InputError):
    """A checkpoint is incomplete or was changed after it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on bit-exactly.

    Attributes:
        step: Steps done.
        tensors: Parameters, the optimizer's tensors, the sampler's order, the generator's state.
        scalars: Numbers of the optimizer and of the loop, as JSON holds them.
        path: The folder that it was read from; None where it was not.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Json]
    path: Path | None = None

    @property
    def where(self) -> str:
        """What messages call its tensors: their file."""
        return str(self.path / _TENSORS) if self.path else f"the checkpoint of step {self.step}"

    @property
    def fields(self) -> Fields:
        """The numbers, to be asked for by name and type."""
        return Fields(dict(self.scalars), str(self.path / _SCALARS) if self.path else self.where)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder`` and drop all but the newest KEPT_CHECKPOINTS.

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
        DamagedCheckpointError: A file is missing, cut short, changed, or not of its form.
    """
    try:
        return _load(folder)
    except AbsentFileError as error:
        raise DamagedCheckpointError(f"{folder}: this checkpoint is incomplete ({error})") from error
    except DamagedCheckpointError:
        raise
    except InputError as error:
        raise DamagedCheckpointError(str(error)) from error


def _load(folder: Path) -> Checkpoint:
    described, tensors = folder / _SCALARS, folder / _TENSORS
    header = Fields(read_json(described), str(described))
    if header.text("format") != FORMAT:
        raise header.refusal("format", FORMAT)
    step, size, digest = header.count("step", _MAX_STEPS), header.count("bytes"), header.text("sha256")
    scalars = header.object("scalars").values
    named = _NAME.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise header.refusal("step", f"{int(named[1])}, as its folder says")
    data = read_bounded(tensors, _MAX_BYTES)
    if len(data) != size:
        raise DamagedCheckpointError(f"{tensors} is damaged: it should hold {size:,} bytes, and holds {len(data):,}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise DamagedCheckpointError(f"{tensors} is damaged: it was changed since it was written")
    return Checkpoint(step, parse_tensors(data, str(tensors)), scalars, folder)


def latest_checkpoint(
    folder: Path, check: Callable[[Checkpoint], None] = lambda checkpoint: None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, and a sentence for each newer one that is not.

    Args:
        folder: The run's folder of checkpoints.
        check: Raises DamagedCheckpointError where a checkpoint does not hold what it should.
    """
    damages: list[str] = []
    for _, path in reversed(_checkpoints(folder)):
        try:
            found = load_checkpoint(path)
            check(found)
        except DamagedCheckpointError as error:
            damages.append(str(error))
        else:
            return found, [f"{damage}; using the one before" for damage in damages]
    return None, damages


def whole_checkpoints(
    folder: Path, damages: list[str], check: Callable[[Checkpoint], None] = lambda checkpoint: None
) -> Iterator[Checkpoint]:
    """Yield every checkpoint that is whole, the oldest first, one after the other.

    Args:
        folder: The run's folder of checkpoints.
        damages: Gets a sentence for each that is not.
        check: Raises DamagedCheckpointError where a checkpoint does not hold what it should.
    """
    for _, path in _checkpoints(folder):
        try:
            found = load_checkpoint(path)
            check(found)
        except DamagedCheckpointError as error:
            damages.append(str(error))
        else:
            yield found


@contextlib.contextmanager
def damage_in(where: str) -> Iterator[None]:
    """Have what is refused as input mean that a checkpoint is damaged.

    Args:
        where: The checkpoint, for messages that do not name it.

    Raises:
        DamagedCheckpointError: Something was refused.
    """
    try:
        yield
    except DamagedCheckpointError:
        raise
    except InputError as error:
        said = str(error)
        raise DamagedCheckpointError(said if where in said else f"{where}: {said}") from error


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_tensor_names(found: Collection[str], known: Collection[str], where: str) -> None:
    """Raise DamagedCheckpointError where a tensor is missing, or there is one that nobody knows.

    Args:
        found: Names that are there.
        known: Names that are to be there.
        where: Whose they are, for the message.
    """
    for name in known:
        if name not in found:
            raise DamagedCheckpointError(f"{where} lacks the tensor {quoted(name)}")
    for name in found:
        if name not in known:
            raise DamagedCheckpointError(f"{where} holds a tensor {quoted(name)}, which it should not")


def check_like(found: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> None:
    """Make sure that tensors have the names, shapes and types of others, and finite numbers.

    Args:
        found: What was read.
        like: What it is to be like.
        where: Whose they are, for messages.

    Raises:
        DamagedCheckpointError: One is not.
    """
    check_tensor_names(found, like, where)
    for name, one in like.items():
        value = found[name]
        if value.shape != one.shape or value.dtype != one.dtype:
            wanted, came = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (one, value))
            raise DamagedCheckpointError(f"{where}: {name} must be {wanted}, got {came}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DamagedCheckpointError(f"{where}: {name} must hold finite numbers")


def check_generator(state: Tensor, where: str) -> None:
    """Make sure that a generator on the CPU can go on from ``state``.

    Args:
        state: As ``torch.Generator.get_state`` gives it.
        where: What it is, for the message.

    Raises:
        DamagedCheckpointError: It cannot.
    """
    scratch = torch.Generator()
    like = scratch.get_state()
    if state.dtype == like.dtype and state.shape == like.shape:
        try:
            scratch.set_state(state)
        except RuntimeError:  # its own check of the numbers
            pass
        else:
            return
    raise DamagedCheckpointError(f"{where} is no state of a random generator")


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
    """Remove what is older than the KEPT_CHECKPOINTS newest, and later ones that a return to ``newest`` made stale."""
    existing = _checkpoints(folder)
    kept = [path for step, path in existing if step <= newest][-KEPT_CHECKPOINTS:]
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
    with whole_file(path) as file:
        file.write(data)
