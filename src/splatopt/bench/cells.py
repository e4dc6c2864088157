"""Cells: each one run of a suite, with its folder and all it is told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from splatopt.bench.entries import OptimizerEntry, SceneEntry, SettingEntry
from splatopt.bench.protocol import Protocol
from splatopt.bench.records import CellRecord, ProtocolRecord, PublishedPlace, check_published
from splatopt.bench.suite import Suite
from splatopt.core.checks import InputError
from splatopt.core.optimizer import find_optimizer
from splatopt.core.plugins import PluginFile
from splatopt.core.typed import Fields, typed
from splatopt.runs.plugins import load_unchanged, plugins_from_json, plugins_without_place
from splatopt.train.config import TrainConfig
from splatopt.train.density_options import AUTO, NO_DENSITY

LOOSE = (
    "capture",
    "out",
    "resume",
    "renderer",
    "threads",
    "cache_mebibytes",
    "checkpoint_every",
    "checkpoint_seconds",
    "log_every",
)
"""Settings that may differ when a suite is started again: no number of a result depends on them."""

_CELL_TEXTS = ("scene", "setting", "label", "source")

_TIME_READINGS = 40
"""Evaluations spread over a cell's time in ``fixed-time``, so that its best step is found."""


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        scene: Name of the scene.
        setting: Name of the setting; empty where there is but one.
        label: What the optimizer entry is called.
        seed: The seed.
        protocol: The rules.
        source: The scene's folder as the suite names it.
        config: What the run is told; ``out`` is its folder.
        published: Which published numbers it may be shown beside; None for none.
    """

    scene: str
    setting: str
    label: str
    seed: int
    protocol: ProtocolRecord
    source: str
    config: TrainConfig
    published: PublishedPlace | None = None

    @property
    def name(self) -> str:
        """Its folder's name, unique in its suite."""
        return self.config.folder.name

    def to_json(self) -> CellRecord:
        """Return the cell as JSON values."""
        values: CellRecord = {
            "scene": self.scene,
            "setting": self.setting,
            "label": self.label,
            "seed": self.seed,
            "protocol": self.protocol.copy(),
            "source": self.source,
            # As JSON gives it back, tuples being lists there.
            "config": json.loads(json.dumps(self.config.to_json())),
        }
        return values if self.published is None else {**values, "published": self.published}

    @classmethod
    def from_json(cls, values: object, where: str) -> Cell:
        """Return the cell that :meth:`to_json` gave; raises InputError where it is none."""
        cell = Fields(values, where)
        config = TrainConfig.from_json(cell.object("config").values, f"{where}: config")
        if config.saving.out is None:
            raise InputError(f"{where}: config names no folder; the file was changed since it was written")
        texts = {name: typed(cell.values.get(name), str, f"{where}: {name}") for name in _CELL_TEXTS}
        protocol = cell.object("protocol")
        protocol.text("name")
        published = check_published(cell.object("published")) if "published" in cell else None
        rules = cast(ProtocolRecord, protocol.values)
        return cls(**texts, seed=cell.count("seed"), protocol=rules, config=config, published=published)

    def differs_from(self, other: Cell) -> str | None:
        """Return the first setting in which ``other`` would come to other numbers, in words; None where in none."""
        if Path(self.source).name != Path(other.source).name:
            return f"scene {other.source} and not {self.source}"
        mine, theirs = self.to_json()["config"], other.to_json()["config"]
        for name in sorted(set(mine) | set(theirs)):
            here, there = (comparable(name, one.get(name)) for one in (mine, theirs))
            if name not in LOOSE and here != there:
                return f"{name} = {there!r} and not {here!r}"
        return None


def comparable(name: str, value: Any) -> Any:
    """Return a setting without places on this machine: of plug-ins the names of their files and their digests."""
    return plugins_without_place(value or ()) if name == "plugins" else value


def load_plugins_of(values: Any, where: str) -> tuple[PluginFile, ...]:
    """Load the plug-ins of the cell that :meth:`Cell.to_json` gave, in the process that is to run it; returns them.

    Raises:
        InputError: One is gone, or is no longer what the suite was started with.
    """
    config = Fields(values, where).object("config")
    return load_unchanged(plugins_from_json(config.values.get("plugins"), f"{where}: config"), "the suite")


def cell_name(scene: str, setting: str, label: str, seed: int) -> str:
    """Return the folder's name of a cell: what it is, in letters that every file system takes."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") or "x" for part in (scene, setting, label) if part]
    return ".".join([*(part[:60] for part in parts), f"seed{seed}"])


def make_cells(suite: Suite, out: Path, overrides: Mapping[str, object], data: Path | None = None) -> list[Cell]:
    """Return all cells of a suite, seed by seed: what is stopped early has compared all on the first seeds.

    Args:
        suite: What is compared.
        out: The suite's folder.
        overrides: Settings of this start, such as ``threads``, that change no number, and ``instructions``.
        data: Folder in which scenes are looked for by the last part of their path.

    Raises:
        InputError: A scene has no folder, a cell could not run, or two cells would share a folder.
    """
    cells = []
    for scene in suite.scenes:
        path = scene_folder(scene, suite.folder, data)
        published = _published(suite, scene)
        for setting in suite.settings:
            for entry in suite.optimizers:
                for seed in suite.seeds:
                    name = cell_name(scene.name, setting.name, entry.label, seed)
                    config = _config(suite, scene, setting, entry, seed, path, out / "cells" / name, overrides)
                    whose = (scene.name, setting.name, entry.label, seed, suite.protocol.to_json(), scene.path)
                    cells.append(Cell(*whose, config, published))
    _check_folders(cells)
    return sorted(cells, key=lambda cell: suite.seeds.index(cell.seed))


def _published(suite: Suite, scene: SceneEntry) -> PublishedPlace | None:
    """Which published numbers the cells of a scene may be shown beside."""
    name = scene.published_as or scene.name
    sets = [one.key for one in suite.published if name in one.scenes]
    return {"sets": sets, "scene": name} if sets else None


def make_timing_cells(
    suite: Suite, out: Path, overrides: Mapping[str, object], data: Path | None = None
) -> dict[tuple[str, str], Cell]:
    """Return, by scene and setting, the plain Adam run whose seconds are everyone's time in ``fixed-time``.

    Args:
        suite: What is compared.
        out: The suite's folder.
        overrides: As for :func:`make_cells`.
        data: As for :func:`make_cells`.
    """
    entry = OptimizerEntry("adam", "adam", {}, {})
    clocks = {}
    for scene in suite.scenes:
        path = scene_folder(scene, suite.folder, data)
        for setting in suite.settings:
            folder = out / "times" / cell_name(scene.name, setting.name, "time of adam", suite.seeds[0])
            config = _config(suite, scene, setting, entry, suite.seeds[0], path, folder, overrides)
            config = config.changed(
                steps=suite.protocol.budget_steps, horizon=None, eval_every=0, eval_at=(), eval_at_seconds=()
            )
            clocks[scene.name, setting.name] = Cell(
                scene.name, setting.name, "adam", suite.seeds[0], suite.protocol.to_json(), scene.path, config
            )
    return clocks


def scene_folder(scene: SceneEntry, folder: Path, data: Path | None) -> Path:
    """Return where a scene lies: below ``data`` if given, else from the suite's folder, else from the current one.

    Raises:
        InputError: It lies nowhere there.
    """
    path = Path(scene.path)
    if data is not None and not data.is_dir():
        raise InputError(
            f"there is no folder {data}; --data names the one that holds the scenes, {path.name} among them"
        )
    tried = [data / path.name] if data is not None else [folder / path, path]
    for place in tried:
        if place.exists():
            return place
    places = " and ".join(dict.fromkeys(str(place) for place in tried))
    raise InputError(f"scene {scene.name!r} is not at {places}; give the folder that holds the scenes with --data")


def _config(
    suite: Suite,
    scene: SceneEntry,
    setting: SettingEntry,
    entry: OptimizerEntry,
    seed: int,
    path: Path,
    folder: Path,
    overrides: Mapping[str, object],
) -> TrainConfig:
    """What a cell's run is told: what the protocol begins from, then all that is more and more special."""
    settings: dict[str, Any] = {
        **_base(suite.protocol),
        **suite.common,
        **scene.settings,
        **setting.settings,
        **entry.settings,
        **overrides,
    }
    if settings.get("density", NO_DENSITY) == NO_DENSITY:
        settings.pop("max_gaussians", None)  # a scene's bound is of its cells that grow
    try:
        return TrainConfig.of(
            path,
            optimizer=entry.name,
            optimizer_options=None if entry.name == AUTO else find_optimizer(entry.name).options(**entry.options),
            seed=seed,
            out=folder,
            eval_at=tuple(point for point in suite.points if point > 0),
            eval_at_seconds=suite.seconds,
            plugins=suite.plugins,
            **settings,
        )
    except InputError as error:
        raise InputError(f"scene {scene.name!r}, optimizer {entry.label!r}: {error}") from error


def _base(protocol: Protocol) -> dict[str, object]:
    # Checkpoints by steps alone would weigh on the clock of quick steps.
    return {"checkpoint_every": 0, "log_every": 50, "eval_every": 0, **protocol.usual, **protocol.fixed}


def timed(cell: Cell, seconds: float) -> Cell:
    """Return a ``fixed-time`` cell with its time, and evaluations spread over it.

    Args:
        cell: Without its time.
        seconds: Its time.
    """
    readings = {round(seconds * part / _TIME_READINGS, 3) for part in range(1, _TIME_READINGS)}
    moments = tuple(sorted({*(m for m in cell.config.scoring.eval_at_seconds if m < seconds), *readings}))
    return replace(cell, config=cell.config.changed(max_seconds=seconds, eval_at_seconds=moments))


def _check_folders(cells: list[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        # Some file systems do not tell capitals apart.
        other = seen.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise InputError(
                f"scene {other.scene!r} with {other.label!r} and scene {cell.scene!r} with {cell.label!r} would share "
                f"the folder {cell.name}; give one of them another name or label"
            )


def check_overrides(values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of this start in the types of their fields; raises InputError for others."""
    allowed = {*LOOSE, "instructions"} & TrainConfig.setting_names()
    return TrainConfig.typed_settings(values, allowed, "the command line")
