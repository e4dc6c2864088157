"""The run's folder: what lies in it, and how it is written without loss."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splatopt.core.checkpoint import replace_file
from splatopt.core.checks import InputError
from splatopt.train.config import TrainConfig

FORMAT = "splatopt-run-1"
FIELD_FORMAT = "splatopt-field-run-1"
_MAKERS = {FORMAT: "splatopt train", FIELD_FORMAT: "splatopt fit"}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: The folder.
        format: What kind of run it is: FORMAT of a scene, FIELD_FORMAT of a neural field.
    """

    path: Path
    format: str = FORMAT

    @property
    def config(self) -> Path:
        """What the run was told, with the version that ran it."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line, written while the run goes on."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Scores of the held-out views, before and after."""
        return self.path / "eval.json"

    @property
    def scene(self) -> Path:
        """The trained scene, in the layout that 3DGS viewers read."""
        return self.path / "scene.ply"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def is_run(self) -> bool:
        """Whether a run of this kind was started here."""
        return self._found_format() == self.format

    def _found_format(self) -> str | None:
        """The format that ``config.json`` names; None where there is none that can be read."""
        return read_json(self.config).get("format")

    @property
    def has_progress(self) -> bool:
        """Whether anything of a step was left here: a scene or a line of metrics."""
        return self.scene.exists() or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def check_free(self) -> None:
        """Make sure that a new run can begin here.

        Raises:
            InputError: The folder holds a run already, or something that is no run.
        """
        if self._found_format() in _MAKERS:
            raise InputError(
                f"{self.path} holds a run already; add --resume to go on with it, or give another folder with --out"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path} exists and is not a run of splatopt, and nothing in it is overwritten; "
                f"give another folder with --out"
            )

    def write_config(self, config: Any, version: str) -> None:
        """Write ``config.json`` from a configuration with ``to_json``; the folder is made if absent."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, {"format": self.format, "version": version, **config.to_json()})

    def read_config(self) -> TrainConfig:
        """Return the configuration, with ``out`` where the folder lies now.

        Raises:
            InputError: There is no run here.
        """
        return replace(TrainConfig.from_json(self.read_settings(), str(self.config)), out=self.path)

    def read_settings(self) -> dict[str, Any]:
        """Return what ``config.json`` holds, without its format and version.

        Raises:
            InputError: There is no run of this kind here.
        """
        if not self.is_run:
            other = _MAKERS.get(self._found_format() or "")
            if other:
                raise InputError(f"{self.path} is a run of {other}, and this wants one of {_MAKERS[self.format]}")
            raise InputError(f"{self.path} is not a run of splatopt: it has no config.json of one; give a run's folder")
        values = read_json(self.config)
        del values["format"]
        values.pop("version", None)
        return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` to ``path`` in one move; numbers keep every bit, NaN is refused."""
    replace_file(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object at ``path``, or an empty one where there is none that can be read."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@dataclass
class MetricSums:
    """Sums over the steps since the last line of metrics.

    Attributes:
        loss: Of the losses.
        psnr: Of the training views' PSNR, dB.
        count: Number of steps.
        reset_rows: Gaussians that broke down and began anew.
    """

    loss: float = 0.0
    psnr: float = 0.0
    count: int = 0
    reset_rows: int = 0

    def add(self, loss: float, psnr: float, reset_rows: int = 0) -> None:
        """Count one step."""
        self.loss += loss
        self.psnr += psnr
        self.count += 1
        self.reset_rows += reset_rows

    def to_json(self) -> dict[str, float | int]:
        """Return the sums as a checkpoint holds them."""
        return {"loss": self.loss, "psnr": self.psnr, "count": self.count, "reset_rows": self.reset_rows}


class MetricsLog:
    """Lines of JSON that stream to a file; a full disk delays them and loses none."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending.

        Args:
            path: The file; made if absent.
        """
        self._path = path
        self._pending = b""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line now; where the disk is full, keep it and try again with the next."""
        self._pending += (json.dumps(values, allow_nan=False) + "\n").encode()
        self.flush()

    def flush(self) -> bool:
        """Write what is pending; returns whether everything is written."""
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return not self._pending

    def sync(self) -> None:
        """Write what is pending and wait until the disk has it, as far as it takes it."""
        if self.flush():
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def trim(self, step: int) -> None:
        """Drop the lines after ``step`` and a last line that was cut short."""
        self.flush()
        self._pending = b""
        os.close(self._descriptor)
        kept = [line for line in self._path.read_bytes().splitlines() if _is_up_to(line, step)]
        replace_file(self._path, b"".join(line + b"\n" for line in kept))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.flush()
        os.close(self._descriptor)


class NoLog:
    """The log of a process that is not the run's first: it takes lines, which the first one writes."""

    def append(self, values: Mapping[str, Any]) -> None:
        """Take one line."""

    def sync(self) -> None:
        """Have nothing to write."""

    def trim(self, step: int) -> None:
        """Have nothing to drop."""

    def close(self) -> None:
        """Have nothing to close."""


def _is_up_to(line: bytes, step: int) -> bool:
    """Whether a line is whole and of a step that is not after ``step``."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
