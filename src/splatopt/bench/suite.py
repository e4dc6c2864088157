"""Suites: what is compared, read from a TOML file or put together on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import GenericAlias
from typing import TypeVar

import splatopt.meta
import splatopt.optim  # noqa: F401 - both register optimizers
from splatopt.bench.entries import (
    OptimizerEntry,
    SceneEntry,
    SettingEntry,
    density_entries,
    entries_of,
    optimizer_entry,
    scene_entry,
    setting_entry,
    settings_of,
    table_of,
    with_densities,
)
from splatopt.bench.protocol import POINTS, SECONDS, Protocol, find_protocol
from splatopt.bench.published import PublishedSet, find_published
from splatopt.core.checks import InputError, shown
from splatopt.core.plugins import PluginFile, as_plugins
from splatopt.core.reading import DamagedFileError, read_bounded
from splatopt.core.typed import check_names, typed
from splatopt.runs.plugins import plugins_to_json, plugins_without_place

_OTHER_IMAGES = ("downscale", "max_side")
"""Settings with which no cell is comparable with published numbers."""

_Moment = TypeVar("_Moment", int, float)
_MAX_SEEDS = 1000
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Suite:
    """What is compared: scenes × settings × optimizers (× density strategies) × seeds, under one protocol.

    Attributes:
        title: Heading of the report.
        protocol: The rules.
        scenes: At least one.
        settings: At least one.
        optimizers: At least one; each with each density strategy, where the suite names any.
        seeds: Seeds of every cell.
        common: Settings of a run for all cells.
        points: Steps after which all are scored. Unit: steps.
        seconds: Times at which all are scored. Unit: seconds.
        reference: Label that others are compared with.
        folder: Where the suite file lies, from which scenes are looked for.
        plugins: Files that register optimizers, losses and readers, which every cell's process loads.
        published: Numbers of others that reports show beside these cells.
    """

    title: str
    protocol: Protocol
    scenes: tuple[SceneEntry, ...]
    settings: tuple[SettingEntry, ...]
    optimizers: tuple[OptimizerEntry, ...]
    seeds: tuple[int, ...]
    common: Mapping[str, object]
    points: tuple[int, ...]
    seconds: tuple[float, ...]
    reference: str
    folder: Path
    plugins: tuple[PluginFile, ...] = ()
    published: tuple[PublishedSet, ...] = ()

    def only(self, names: Sequence[str]) -> Suite:
        """Return the suite with these scenes alone; the whole suite where none is named.

        Raises:
            InputError: A name is none of its scenes'.
        """
        check_names(names, [scene.name for scene in self.scenes], "scene", f"--only of the suite {self.title!r}")
        return replace(self, scenes=tuple(one for one in self.scenes if one.name in names or not names))

    def to_json(self) -> dict[str, object]:
        """Return the suite as JSON values; the folder, a place on one machine, is left out."""
        values = asdict(replace(self, folder=Path(), plugins=(), published=()))
        values |= {"protocol": self.protocol.to_json(), "published": [one.to_json() for one in self.published]}
        del values["folder"]
        values["plugins"] = plugins_without_place(plugins_to_json(self.plugins))
        return {name: _json(value) for name, value in values.items()}


def _json(value: object) -> object:
    """A value as JSON holds it."""
    if isinstance(value, Mapping):
        return {name: _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return getattr(value, "value", value)


_KEYS = (
    "title",
    "protocol",
    "inputs",
    "seeds",
    "points",
    "seconds",
    "reference",
    "train",
    "plugins",
    "published",
    "scenes",
    "settings",
    "optimizers",
    "densities",
)


def read_suite(path: Path, plugins: Sequence[PluginFile] = ()) -> Suite:
    """Read a suite's TOML file.

    Args:
        path: The file.
        plugins: Those that were given beside it.

    Raises:
        InputError: It cannot be read, or something in it is unknown or impossible; names the place.
    """
    try:
        values = tomllib.loads(read_bounded(path, _MAX_BYTES).decode("utf-8"))
    except DamagedFileError as error:
        raise InputError(f"the suite {error}; give a suite's .toml file") from error
    except (ValueError, RecursionError) as error:  # of numbers too long for Python as well
        raise InputError(f"{path} is not a suite in TOML ({shown(error)[:200]})") from error
    return make_suite(values, str(path), path.parent, title=path.stem, plugins=plugins)


def make_suite(
    values: Mapping[str, object], where: str, folder: Path, title: str, plugins: Sequence[PluginFile] = ()
) -> Suite:
    """Check what a suite says and return it.

    Args:
        values: The suite as TOML gives it.
        where: Where it was read, for messages.
        folder: Scenes and plug-ins are looked for from here.
        title: The title where it gives none.
        plugins: Those that were given beside it.

    Raises:
        InputError: Something is unknown, missing or impossible.
    """
    check_names(values, _KEYS, "entry", where)
    named = typed(values.get("plugins", []), tuple[str, ...], f"{where}: plugins")
    plugins = as_plugins([*plugins, *(folder / one for one in named)])
    protocol = _protocol(values, where)
    common = settings_of(table_of(values.get("train", {}), f"{where}: train"), f"{where}: train", protocol)
    scenes = tuple(scene_entry(one, f"{where}: {at}", protocol) for at, one in entries_of(values, "scenes", where))
    optimizers = tuple(
        optimizer_entry(one, f"{where}: {at}", protocol) for at, one in entries_of(values, "optimizers", where)
    )
    optimizers = with_densities(optimizers, density_entries(values.get("densities", []), where, protocol), where)
    settings = tuple(
        setting_entry(one, f"{where}: {at}", protocol) for at, one in entries_of(values, "settings", where, ())
    )
    settings = settings or (SettingEntry("", {}),)
    if protocol.inputs:
        settings = _with_inputs(settings, protocol.inputs)
    for what, names in (
        ("scene", [scene.name for scene in scenes]),
        ("setting", [setting.name for setting in settings]),
        ("label", [entry.label for entry in optimizers]),
    ):
        _check_unique(names, what, where)
    reference = typed(values.get("reference", optimizers[0].label), str, f"{where}: reference")
    check_names([reference], [entry.label for entry in optimizers], "optimizer entry labelled", where)
    published = _published(values.get("published", []), where, folder)
    if published:
        given = [common, *(one.settings for one in scenes), *(one.settings for one in settings)]
        _check_comparable(protocol, [*given, *(one.settings for one in optimizers)], where)
    return Suite(
        title=typed(values.get("title", title), str, f"{where}: title"),
        protocol=protocol,
        scenes=scenes,
        settings=settings,
        optimizers=optimizers,
        seeds=_seeds(values.get("seeds", 1), where),
        common=common,
        points=_moments(values.get("points", POINTS), int, f"{where}: points"),
        seconds=_moments(values.get("seconds", SECONDS), float, f"{where}: seconds"),
        reference=reference,
        folder=folder,
        plugins=plugins,
        published=published,
    )


def _published(value: object, where: str, folder: Path) -> tuple[PublishedSet, ...]:
    """The published sets that a suite names: one, or a list."""
    named = typed([value] if isinstance(value, str) else value, tuple[str, ...], f"{where}: published")
    return find_published(named, folder, where) if named else ()


def _check_comparable(protocol: Protocol, settings: Sequence[Mapping[str, object]], where: str) -> None:
    """Refuse published numbers beside cells that could not be compared with them."""
    if protocol.name != "dense":
        raise InputError(f"{where}: published numbers belong to the protocol dense; the suite's is {protocol.name}")
    for name in _OTHER_IMAGES:
        if any(name in one for one in settings):
            raise InputError(f"{where}: published numbers are of whole photographs; leave out {name}, or published")


def _protocol(values: Mapping[str, object], where: str) -> Protocol:
    protocol = find_protocol(values.get("protocol", "dense"), where)
    if "inputs" not in values:
        return protocol
    if not protocol.inputs:
        raise InputError(f"{where}: inputs belongs to the protocol sparse; the suite's is {protocol.name}")
    inputs = typed(values["inputs"], tuple[int, ...], f"{where}: inputs")
    if not inputs or min(inputs) < 1 or len(set(inputs)) < len(inputs):
        raise InputError(f"{where}: inputs must be different numbers of at least 1, got {list(inputs)}")
    return replace(protocol, inputs=inputs)


def _with_inputs(settings: Sequence[SettingEntry], inputs: Sequence[int]) -> tuple[SettingEntry, ...]:
    """Each setting with each number of input views."""
    return tuple(
        SettingEntry(", ".join(filter(None, [f"{count} views", one.name])), {**one.settings, "input_views": count})
        for count in inputs
        for one in settings
    )


def _seeds(value: object, where: str) -> tuple[int, ...]:
    """A number of seeds, from 0, or their list."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = list(range(value)) if 1 <= value <= _MAX_SEEDS else []
    seeds = typed(value, tuple[int, ...], f"{where}: seeds")
    if not 1 <= len(seeds) <= _MAX_SEEDS or min(seeds) < 0:
        raise InputError(f"{where}: seeds must be a number from 1 to {_MAX_SEEDS}, or a list of seeds of at least 0")
    _check_unique(seeds, "seed", where)
    return seeds


def _moments(value: object, number: type[_Moment], where: str) -> tuple[_Moment, ...]:
    moments = typed(list(value) if isinstance(value, tuple) else value, GenericAlias(tuple, (number, ...)), where)
    if any(not 0 <= moment < float("inf") for moment in moments):
        raise InputError(f"{where} must be at least 0, got {list(moments)}")
    return tuple(sorted(set(moments)))


def _check_unique(names: Sequence[str | int], what: str, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: the {what} {name!r} stands there twice; give one of them another name or label")
