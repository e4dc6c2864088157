"""The run's folder: what lies in it, and how it is written without loss."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from splatopt.core.checkpoint import replace_file, sweep_checkpoints
from splatopt.core.checks import InputError
from splatopt.core.files import append_only, locked, make_folder, partial_path, sweep, trim_lines
from splatopt.core.reading import read_object
from splatopt.core.typed import Json, told

FORMAT = "splatopt-run-1"
FIELD_FORMAT = "splatopt-field-run-1"
TRAINED_ON = "trained_on"
"""Where ``config.json`` holds the fingerprint of what the run is trained on."""
_MAKERS = {FORMAT: "splatopt train", FIELD_FORMAT: "splatopt fit"}
_WRITTEN = (
    *("config.json", "metrics.jsonl", "density.jsonl", "eval.json", "scene.ply", "report.html"),
    *("result.png", "mesh.ply", "metrics.json", "cell.json", "capture", "pruning.json", "plan.json"),
)
"""What commands write into a run's folder; parts of pictures and videos lie in folders of their own."""

_PICTURE_PARTS = (
    *("views/.*.png.partial", "renders/*/.*.png.partial"),
    *("renders/*/.frames.txt.partial", "renders/.*.mp4.partial"),
)
_OLD_PART = re.compile(r"\.scene\.ply\.\d+\.tmp")
"""Parts of scenes as versions up to 0.1 named them."""


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
    def density(self) -> Path:
        """One JSON object for each edit of the scene's rows, where a density strategy is at work."""
        return self.path / "density.jsonl"

    @property
    def evaluation(self) -> Path:
        """Scores of the held-out views, before and after."""
        return self.path / "eval.json"

    @property
    def scene(self) -> Path:
        """The trained scene, in the layout that 3DGS viewers read."""
        return self.path / "scene.ply"

    @property
    def pruning(self) -> Path:
        """Of a run that ``splatopt prune`` left: quality against the number of Gaussians."""
        return self.path / "pruning.json"

    @property
    def plan(self) -> Path:
        """Of a run that planned itself, or repeats one: what it decided, by steps."""
        return self.path / "plan.json"

    @property
    def poses(self) -> Path:
        """Of a run that refined them: the training views' poses, and how far they moved."""
        return self.path / "poses.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def is_run(self) -> bool:
        """Whether a run of this kind was started here."""
        return self._found_format() == self.format

    def _found_format(self) -> object:
        """The format that ``config.json`` names; None where it names none.

        Raises:
            InputError: It is damaged, or not ours.
        """
        try:
            return read_json(self.config).get("format")
        except InputError as error:
            raise InputError(f"{error}; {self.path} is not a run of splatopt, or was damaged") from error

    @property
    def has_progress(self) -> bool:
        """Whether anything of a step was left here: a scene or a line of metrics."""
        return self.scene.exists() or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def check_free(self) -> None:
        """Make sure that a new run can begin here.

        Raises:
            InputError: The folder holds a run already, or something that is no run.
        """
        try:
            found = self._found_format()
        except InputError:
            # Whatever it is, it is somebody's.
            found = None
        if found in (FORMAT, FIELD_FORMAT):
            raise InputError(
                f"{self.path} holds a run already; add --resume to go on with it, or give another folder with --out"
            )
        if self.path.exists() and not (self.path.is_dir() and self._is_bare()):
            raise InputError(
                f"{self.path} exists and is not a run of splatopt, and nothing in it is overwritten; "
                f"give another folder with --out"
            )

    def _is_bare(self) -> bool:
        """Whether nothing lies here but what a kill leaves before ``config.json`` is whole."""
        return all(path.name == partial_path(self.config).name for path in self.path.iterdir())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from this run until the block is done; the folder is made if absent.

        What a kill left half written goes away, before anything else is written.

        Raises:
            InputError: Another process is at work on it.
        """
        make_folder(self.path)
        with locked(self.path, f"the run in {self.path}"):
            self._sweep()
            yield

    def check_idle(self) -> None:
        """Raise InputError where another process is at work on this run."""
        if self.path.is_dir():
            with locked(self.path, f"the run in {self.path}", shared=True):
                pass

    def sweep_if_idle(self) -> None:
        """Remove what a kill left half written, unless a process that is at work here may still write it."""
        if self.path.is_dir():
            with contextlib.suppress(InputError, PermissionError), locked(self.path, ""):
                self._sweep()

    def _sweep(self) -> None:
        if not (self._found_format() in _MAKERS or self._is_bare()):
            return
        parts = [partial_path(self.path / name) for name in _WRITTEN]
        parts += [path for pattern in _PICTURE_PARTS for path in self.path.glob(pattern)]
        parts += [path for path in self.path.iterdir() if _OLD_PART.fullmatch(path.name)]
        sweep(parts)
        sweep_checkpoints(self.checkpoints)

    def write_config(self, config: Configuration, version: str, trained_on: Mapping[str, str] | None = None) -> None:
        """Write ``config.json``; the folder is made if absent.

        Args:
            config: A configuration with ``to_json``.
            version: That of splatopt.
            trained_on: The fingerprint of what is trained on. It lies in this file, so that no kill parts the two.
        """
        make_folder(self.path)
        head: dict[str, object] = {"format": self.format, "version": version}
        if trained_on is not None:
            head[TRAINED_ON] = dict(trained_on)
        write_json(self.config, {**head, **config.to_json()})

    def read_settings(self) -> dict[str, Json]:
        """Return what ``config.json`` holds, without its format and version.

        Raises:
            InputError: There is no run of this kind here.
        """
        found = self._found_format()
        if found != self.format:
            if isinstance(found, str) and found in _MAKERS:
                raise InputError(
                    f"{self.path} is a run of {_MAKERS[found]}, and this wants one of {_MAKERS[self.format]}"
                )
            what = f"{self.config.name} names the format {told(found)}" if self.config.exists() else "it has none"
            raise InputError(f"{self.path} is not a run of splatopt, with a config.json: {what}; give a run's folder")
        values = read_json(self.config)
        del values["format"]
        if not isinstance(values.pop("version", ""), str):
            raise InputError(f"{self.config}: version must be a text; the file was changed since it was written")
        values.pop(TRAINED_ON, None)
        return values


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write ``values`` to ``path`` in one move; numbers keep every bit, NaN is refused."""
    replace_file(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Json]:
    """Return the object at ``path``, or an empty one where there is no file; raises InputError where it is damaged."""
    return read_object(path) or {}


@runtime_checkable
class Configuration(Protocol):
    """What a run was asked for."""

    def to_json(self) -> Mapping[str, object]:
        """Return the settings as JSON holds them."""
        ...


@dataclass
class MetricSums:
    """Sums over the steps since the last line of metrics.

    Attributes:
        loss: Of the losses.
        psnr: Of the training views' PSNR, dB.
        count: Number of steps.
        reset_rows: Gaussians that broke down and began anew.
        broken_rows: Gaussians that broke down and were removed.
        added: Gaussians that were added.
        removed: Gaussians that were removed, those that broke down too.
    """

    loss: float = 0.0
    psnr: float = 0.0
    count: int = 0
    reset_rows: int = 0
    broken_rows: int = 0
    added: int = 0
    removed: int = 0

    def add(self, loss: float, psnr: float) -> None:
        """Count one step."""
        self.loss += loss
        self.psnr += psnr
        self.count += 1

    def to_json(self) -> dict[str, float | int]:
        """Return the sums as a checkpoint holds them."""
        return asdict(self)


class MetricsLog:
    """Lines of JSON that stream to a file; a full disk delays them and loses none."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending.

        Args:
            path: The file; made if absent.
        """
        self._path = path
        self._pending = b""
        self._descriptor = append_only(path)

    def append(self, values: Mapping[str, object]) -> None:
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
        trim_lines(self._path, step)
        self._descriptor = append_only(self._path)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.flush()
        os.close(self._descriptor)


class NoLog:
    """The log of a process that is not the run's first: it takes lines, which the first one writes."""

    def append(self, values: Mapping[str, object]) -> None:
        """Take one line."""

    def sync(self) -> None:
        """Have nothing to write."""

    def trim(self, step: int) -> None:
        """Have nothing to drop."""

    def close(self) -> None:
        """Have nothing to close."""
