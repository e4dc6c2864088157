"""Entries of a suite: its scenes, settings, optimizers and density strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from splatopt.bench.protocol import Protocol
from splatopt.core.checks import InputError
from splatopt.core.optimizer import find_optimizer
from splatopt.core.typed import field_names, typed, typed_fields
from splatopt.density.strategy import find_density
from splatopt.train.config import TrainConfig
from splatopt.train.density_options import AUTO, NO_DENSITY
from splatopt.train.recipe import find_recipe

OWN_SETTINGS = frozenset(
    {"capture", "out", "resume", "seed", "optimizer", "optimizer_options", "eval_at", "eval_at_seconds", "max_seconds"}
    | {"plugins"}
)
"""Settings of a run that are the suite's own business, and no setting of it."""


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
        published_as: What published numbers call it; its name when None.
    """

    name: str
    path: str
    settings: Mapping[str, object]
    published_as: str | None = None


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


def table_of(value: object, where: str) -> Mapping[str, object]:
    """Return a table of TOML; raises InputError where it is none."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table, got {value!r}")
    return value


def entries_of(
    values: Mapping[str, object], name: str, where: str, default: Sequence[object] | None = None
) -> list[tuple[str, object]]:
    """The entries of a list, each with its place in words."""
    entries = values.get(name, default)
    if not isinstance(entries, list | tuple) or (not entries and default is None):
        raise InputError(f"{where}: [[{name}]] must be given at least once")
    return [(f"{name} {number}", one) for number, one in enumerate(entries, start=1)]


def settings_of(values: Mapping[str, object], where: str, protocol: Protocol) -> dict[str, object]:
    """Fields of TrainConfig; none that the protocol fixes."""
    apart = ("loss_options", "density_options")
    given = {name: value for name, value in values.items() if name not in apart}
    settings = TrainConfig.typed_settings(given, setting_names(), where)
    for name in apart:
        if name in values:
            settings[name] = dict(table_of(values[name], f"{where}: {name}"))
    for name in settings:
        if name in protocol.fixed or (protocol.inputs and name == "input_views"):
            raise InputError(f"{where}: {name} is fixed by the protocol {protocol.name}; leave it out")
    return settings


def scene_entry(value: object, where: str, protocol: Protocol) -> SceneEntry:
    """Return one of [[scenes]]; raises InputError where something is unknown or missing."""
    values = dict(table_of(value, where))
    if "path" not in values:
        raise InputError(f"{where}: path is missing; give the folder of a capture")
    path = typed(values.pop("path"), str, f"{where}: path")
    published_as = typed(values.pop("published_as", None), str | None, f"{where}: published_as")
    name = typed(values.pop("name", Path(path).name), str, f"{where}: name")
    if not path or not name:
        raise InputError(f"{where}: path and name must not be empty")
    return SceneEntry(name, path, settings_of(values, f"{where} ({name})", protocol), published_as)


def setting_entry(value: object, where: str, protocol: Protocol) -> SettingEntry:
    """Return one of [[settings]]; raises InputError where something is unknown or missing."""
    values = dict(table_of(value, where))
    name = typed(values.pop("name", ""), str, f"{where}: name")
    if not name:
        raise InputError(f"{where}: name is missing; tables need one")
    return SettingEntry(name, settings_of(values, f"{where} ({name})", protocol))


def optimizer_entry(value: object, where: str, protocol: Protocol) -> OptimizerEntry:
    """Return one of [[optimizers]]; raises InputError where something is unknown, missing or impossible."""
    values = dict(table_of(value, where))
    if "recipe" in values and "name" not in values:
        return _recipe_entry(values, where, protocol)
    if "name" not in values:
        raise InputError(f"{where}: name is missing; give a registered optimizer")
    name = typed(values.pop("name"), str, f"{where}: name")
    try:
        options = find_optimizer(name).options
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    label = typed(values.pop("label", _joined(name, values.get("density"))), str, f"{where}: label")
    given = table_of(values.pop("options", {}), f"{where}: options")
    chosen = typed_fields(given, options, field_names(options), f"option of {name}", where)
    try:
        options(**chosen)
    except InputError as error:
        raise InputError(f"{where} ({label}): {error}") from error
    return OptimizerEntry(label, name, chosen, settings_of(values, f"{where} ({label})", protocol))


def _recipe_entry(values: Mapping[str, object], where: str, protocol: Protocol) -> OptimizerEntry:
    """Return an entry of runs that plan themselves, by the name of their recipe."""
    if not protocol.plans:
        raise InputError(f"{where}: recipes are of the protocol minutes, and the suite's is {protocol.name}")
    settings = settings_of({name: one for name, one in values.items() if name != "label"}, where, protocol)
    recipe = str(settings["recipe"])
    find_recipe(recipe)
    return OptimizerEntry(typed(values.get("label", recipe), str, f"{where}: label"), AUTO, {}, settings)


def _joined(label: str, density: object) -> str:
    """What tables call an optimizer with a density strategy."""
    return f"{label} + {density}" if isinstance(density, str) and density != NO_DENSITY else label


@dataclass(frozen=True)
class DensityEntry:
    """A density strategy of a suite, which all optimizers go through.

    Attributes:
        label: What tables call it.
        settings: Its settings of a run.
    """

    label: str
    settings: Mapping[str, object]


def density_entries(value: object, where: str, protocol: Protocol) -> list[DensityEntry]:
    """Return a suite's density strategies; each is a name, or a table with name, label, options and settings.

    Args:
        value: As TOML gives it.
        where: The suite, for messages.
        protocol: Its rules.

    Raises:
        InputError: Something is unknown, missing or impossible.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: densities must be a list of density strategies, got {value!r}")
    found = []
    for number, one in enumerate(value, start=1):
        at = f"{where}: densities {number}"
        values = {"name": one} if isinstance(one, str) else dict(table_of(one, at))
        if "name" not in values:
            raise InputError(f"{at}: name is missing; give a density strategy, or none")
        name = typed(values.pop("name"), str, f"{at}: name")
        label = typed(values.pop("label", name), str, f"{at}: label")
        options = table_of(values.pop("options", {}), f"{at}: options")
        settings = settings_of(values, f"{at} ({label})", protocol) | {"density": name}
        if name != NO_DENSITY:
            _check_density(name, options, at)
            settings["density_options"] = dict(options)
        elif options:
            raise InputError(f"{at}: none is no strategy and has no options")
        found.append(DensityEntry(label, settings))
    return found


def _check_density(name: str, options: Mapping[str, object], where: str) -> None:
    """Refuse a strategy that there is not, and options that it does not have or cannot take."""
    try:
        kind = find_density(name).options
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    chosen = typed_fields(options, kind, field_names(kind), f"option of {name}", where)
    try:
        kind(**chosen)
    except InputError as error:
        raise InputError(f"{where} ({name}): {error}") from error


def with_densities(
    optimizers: Sequence[OptimizerEntry], densities: Sequence[DensityEntry], where: str
) -> tuple[OptimizerEntry, ...]:
    """Return every optimizer with every density strategy, one after the other; as they are where there are none.

    Raises:
        InputError: An optimizer has a strategy of its own already.
    """
    for entry in optimizers:
        if densities and "density" in entry.settings:
            raise InputError(
                f"{where}: {entry.label} names a density strategy, and densities go through all; give one of the two"
            )
    return tuple(
        replace(one, label=_joined(one.label, density.label), settings={**one.settings, **density.settings})
        for one in optimizers
        for density in densities
    ) or tuple(optimizers)
