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
from splatopt.bench.protocol import POINTS, SECONDS, Protocol, find_protocol
from splatopt.core.checks import InputError, shown
from splatopt.core.optimizer import find_optimizer
from splatopt.core.plugins import PluginFile, as_plugins
from splatopt.core.reading import DamagedFileError, read_bounded
from splatopt.core.typed import check_names, field_names, typed, typed_fields
from splatopt.runs.plugins import plugins_to_json, plugins_without_place
from splatopt.train.config import TrainConfig

OWN_SETTINGS = frozenset(
    {"capture", "out", "resume", "seed", "optimizer", "optimizer_options", "eval_at", "eval_at_seconds", "max_seconds"}
    | {"plugins"}
)
"""Settings of a run that are the suite's own business, and no setting of it."""

_Moment = TypeVar("_Moment", int, float)
_MAX_SEEDS = 1000
_MAX_BYTES = 1 << 20


def setting_names() -> set[str]:
    """Names of the settings that a suite, a scene, a setting or an optimizer entry may give."""
    return TrainConfig.setting_names() - OWN_SETTINGS


@dataclass(frozen=True)
class SceneEntry:
    """A scene of a suite.

    Attributes:
        name: What tables call it.
        path: Its folder as the suite names it.
        settings: Settings of a run for this scene.
    """

    name: str
    path: str
    settings: Mapping[str, object]


@dataclass(frozen=True)
class SettingEntry:
    """A setting that all scenes and optimizers go through.

    Attributes:
        name: What tables call it; empty where a suite has but one.
        settings: Its settings of a run.
    """

    name: str
    settings: Mapping[str, object]


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer of a suite, with what it is told: an ablation is an entry as well.

    Attributes:
        label: What tables call it.
        name: The registered optimizer.
        options: Fields of its options' dataclass.
        settings: Settings of a run for this entry.
    """

    label: str
    name: str
    options: Mapping[str, object]
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Suite:
    """What is compared: scenes × settings × optimizers × seeds, under one protocol.

    Attributes:
        title: Heading of the report.
        protocol: The rules.
        scenes: At least one.
        settings: At least one.
        optimizers: At least one.
        seeds: Seeds of every cell.
        common: Settings of a run for all cells.
        points: Steps after which all are scored. Unit: steps.
        seconds: Times at which all are scored. Unit: seconds.
        reference: Label that others are compared with.
        folder: Where the suite file lies, from which scenes are looked for.
        plugins: Files that register optimizers, losses and readers, which every cell's process loads.
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

    def to_json(self) -> dict[str, object]:
        """Return the suite as JSON values; the folder, a place on one machine, is left out."""
        values = asdict(replace(self, folder=Path(), plugins=())) | {"protocol": self.protocol.to_json()}
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
    "scenes",
    "settings",
    "optimizers",
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
    common = _settings(_table(values.get("train", {}), f"{where}: train"), f"{where}: train", protocol)
    scenes = tuple(_scene(one, f"{where}: {at}", protocol) for at, one in _entries(values, "scenes", where))
    optimizers = tuple(_optimizer(one, f"{where}: {at}", protocol) for at, one in _entries(values, "optimizers", where))
    settings = tuple(_setting(one, f"{where}: {at}", protocol) for at, one in _entries(values, "settings", where, ()))
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
    )


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


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table, got {value!r}")
    return value


def _entries(
    values: Mapping[str, object], name: str, where: str, default: Sequence[object] | None = None
) -> list[tuple[str, object]]:
    """The entries of a list, each with its place in words."""
    entries = values.get(name, default)
    if not isinstance(entries, list | tuple) or (not entries and default is None):
        raise InputError(f"{where}: [[{name}]] must be given at least once")
    return [(f"{name} {number}", one) for number, one in enumerate(entries, start=1)]


def _settings(values: Mapping[str, object], where: str, protocol: Protocol) -> dict[str, object]:
    """Fields of TrainConfig; none that the protocol fixes."""
    apart = ("loss_options", "density_options")
    given = {name: value for name, value in values.items() if name not in apart}
    settings = TrainConfig.typed_settings(given, setting_names(), where)
    for name in apart:
        if name in values:
            settings[name] = dict(_table(values[name], f"{where}: {name}"))
    for name in settings:
        if name in protocol.fixed or (protocol.inputs and name == "input_views"):
            raise InputError(f"{where}: {name} is fixed by the protocol {protocol.name}; leave it out")
    return settings


def _scene(value: object, where: str, protocol: Protocol) -> SceneEntry:
    values = dict(_table(value, where))
    if "path" not in values:
        raise InputError(f"{where}: path is missing; give the folder of a capture")
    path = typed(values.pop("path"), str, f"{where}: path")
    name = typed(values.pop("name", Path(path).name), str, f"{where}: name")
    if not path or not name:
        raise InputError(f"{where}: path and name must not be empty")
    return SceneEntry(name, path, _settings(values, f"{where} ({name})", protocol))


def _setting(value: object, where: str, protocol: Protocol) -> SettingEntry:
    values = dict(_table(value, where))
    name = typed(values.pop("name", ""), str, f"{where}: name")
    if not name:
        raise InputError(f"{where}: name is missing; tables need one")
    return SettingEntry(name, _settings(values, f"{where} ({name})", protocol))


def _optimizer(value: object, where: str, protocol: Protocol) -> OptimizerEntry:
    values = dict(_table(value, where))
    if "name" not in values:
        raise InputError(f"{where}: name is missing; give a registered optimizer")
    name = typed(values.pop("name"), str, f"{where}: name")
    try:
        options = find_optimizer(name).options
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    label = typed(values.pop("label", name), str, f"{where}: label")
    given = _table(values.pop("options", {}), f"{where}: options")
    chosen = typed_fields(given, options, field_names(options), f"option of {name}", where)
    try:
        options(**chosen)
    except InputError as error:
        raise InputError(f"{where} ({label}): {error}") from error
    return OptimizerEntry(label, name, chosen, _settings(values, f"{where} ({label})", protocol))


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
